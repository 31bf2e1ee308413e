"""Every loss against what its authors' own function returns, in float64.

The goldens hold inputs (log-probs, or logits and labels), the mean loss and its
gradient. Those of logits go through scorer and objective, so that masks, the head, KL,
weights of pairs and what a sum is divided by are in the test.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import schema
from dpo_jax.losses import LOSSES, find
from dpo_jax.objectives import OBJECTIVES
from dpo_jax.types import (
    Batch,
    Head,
    ListLogps,
    PairLogps,
    PairScores,
    SingleLogps,
)
from dpo_jax.wiring import objective as wiring

pytestmark = pytest.mark.parity
NEVER = -100  # the label of what is not scored
OPTIONS = schema.base().loss.to_dict()
RECORDS = {
    "pairs": PairLogps,
    "singles": SingleLogps,
    "lists": ListLogps,
    "scores": PairScores,
}
VARIED = {
    "pairs": ("chosen", "rejected"),
    "singles": ("logps",),
    "lists": ("ratios",),
    "scores": ("chosen", "rejected"),
}
OURS = {  # golden -> loss of the table, and options beside the golden's
    "rpo_bwd_kl": ("rpo", {"rpo_distance": "backward"}),
    "rpo_fwd_kl": ("rpo", {"rpo_distance": "forward"}),
    "rpo_sq": ("rpo", {"rpo_distance": "squared"}),
    "list_infonca": ("infonca", {}),
    "list_nca": ("nca", {}),
    "sppo_soft": ("sppo", {}),
    "sppo_hard": ("sppo", {}),  # the official code has the half
    "arpo": ("arpo", {"nll_weight": 0.0}),
    "cpo": ("cpo", {}),
    "orpo": ("orpo", {"likelihood": "tokens"}),
    "orpo_with_prompt": ("orpo", {"likelihood": "whole"}),
    "d2po": ("d2po", {}),
    "exo_pref": ("exo_pair", {"label_smoothing": np.exp(-10.0)}),
    "tdpo1": ("tdpo1", {}),
    "wpo_clamped": ("dpo", {"weighting": "wpo_clamped"}),
}
NAMES = {  # the golden's word -> ours
    "gt_reward_scale": "rating_scale",
    "temperature_alpha": "temperature",
    "eta": "rating_scale",
    "eta1": "arpo_scale",
    "eta2": "arpo_rate",
    "cpo_alpha": "nll_weight",
}
UNREAD = ("probs_win", "log_epsilon")  # they stand in the inputs, or in OURS
FILES = (
    *("bco_pair", "bradley_terry", "cal_dpo", "discopop", "dpo", "dpo_shift", "dpop"),
    *("dr_dpo", "ipo", "kto", "mmpo", "nca_pair", "r_dpo", "sppo_hard"),
)
OF_LOGITS = (
    *("cpo", "d2po", "exo_pref", "orpo", "orpo_with_prompt", "tdpo1", "wpo_clamped"),
)
MISSING = (
    *("arpo", "rpo_bwd_kl", "rpo_fwd_kl", "rpo_sq", "list_infonca", "list_nca"),
    *("rebel", "apo_zero_unpaired", "simper", "sppo_soft"),
)


@pytest.fixture
def authors(shared):
    return shared / "goldens" / "authors"


def cases_of(path):
    return json.loads(path.read_text())["cases"]


def options_of(golden, given):
    """Returns the loss of the table and its options, in our words."""
    name, more = OURS.get(golden, (golden, {}))
    said = {NAMES.get(k, k): v for k, v in given.items() if k not in UNREAD}
    if name == "tdpo1":
        del said["tdpo_alpha"]
    assert said.keys() <= OPTIONS.keys(), said
    return name, {**OPTIONS, **said, **more}


def record_of(golden, name, case):
    """Puts the inputs of a golden into the record of the loss."""
    takes = find(name, LOSSES).takes
    inputs = {key: np.float64(value) for key, value in case["inputs"].items()}
    if golden in ("sppo_soft", "sppo_hard"):
        chance = np.float64(case["options"].get("probs_win", 1.0))
        chance = np.broadcast_to(chance, inputs["chosen"].shape)
        inputs |= {"chosen_ratings": chance, "rejected_ratings": 1 - chance}
    if takes == "singles":
        inputs |= {"mask": np.ones(inputs["logps"].shape, bool)}
    if takes == "lists":
        inputs |= {"mask": np.ones(inputs["ratios"].shape, bool)}
    return RECORDS[takes](**inputs)


def judged(name, given, record):
    """Returns the mean loss, the losses, and the gradients of the mean."""
    row = find(name, LOSSES)
    fields = VARIED[row.takes]
    start = row.running.start if row.running else {}

    def mean(varied):
        losses = row(record._replace(**varied), {**given, **start})
        count = len(losses)
        if row.takes == "singles":
            count = (record.labels != 0).sum()
        return losses.sum() / count, losses

    with jax.enable_x64(True):
        varied = {field: getattr(record, field) for field in fields}
        grads, losses = jax.grad(mean, has_aux=True)(varied)
        return mean(varied)[0], np.asarray(losses), jax.tree.map(np.asarray, grads)


def check(golden, case):
    name, given = options_of(golden, case["options"])
    record = record_of(golden, name, case)
    value, losses, grads = judged(name, given, record)
    np.testing.assert_allclose(value, case["value"], rtol=1e-6)
    # Cal-DPO's code adds the squares' mean over the batch to every pair.
    if case["losses"] is not None and golden != "cal_dpo":
        np.testing.assert_allclose(losses, case["losses"], rtol=1e-6, atol=1e-9)
    for field, expected in case["gradients"].items():
        if golden == "dpop":  # at its corner theirs has the slope ½, ours 0
            inside = record.chosen != record.ref_chosen
            grads[field], expected = grads[field][inside], np.array(expected)[inside]
        scale = np.abs(expected).max()
        np.testing.assert_allclose(
            grads[field], expected, rtol=1e-6, atol=1e-6 * scale, err_msg=field
        )


@pytest.mark.parametrize("golden", FILES)
def test_losses(authors, golden):
    cases = cases_of(authors / f"{golden}.json")
    assert cases
    for case in cases:
        check(golden, case)


@pytest.mark.parametrize("golden", MISSING)
def test_losses_that_had_no_row(authors, golden):
    cases = cases_of(authors / "missing_rows.json")
    assert cases.keys() == set(MISSING)
    for case in cases[golden]:
        check(golden, case)


def compared(golden, case, of_logits):
    """Returns the relative errors of the mean loss and of its gradient."""
    name, given = options_of(golden, case["options"])
    if of_logits:
        if golden == "d2po":  # the official code counts tokens from 1
            given["beta"] *= given["decay"]
        with jax.enable_x64(True):
            value, grad = from_logits(name, given, case["inputs"])
        grads = {"logits": np.asarray(grad)}
    else:
        record = record_of(golden, name, case)
        value, _, grads = judged(name, given, record)
    slopes = [
        np.abs(grads[field] - expected).max() / max(np.abs(expected).max(), 1e-300)
        for field, expected in case["gradients"].items()
    ]
    return abs(float(value) / case["value"] - 1), max(slopes)


def test_the_table(authors):
    """Prints source, errors and defaults of each golden; pytest -s shows it.

    `dpop` differs at its corner alone, `exo_pref` by a log(1 − ε) that its code leaves
    out; where a golden's options are not the usual ones of the row, they are named.
    """
    files = {name: cases_of(authors / f"{name}.json") for name in FILES}
    missing = cases_of(authors / "missing_rows.json")
    logits = {n: cases_of(authors / f"logits_{n}.json") for n in OF_LOGITS}
    lines = []
    for of_logits, goldens in ((False, files | missing), (True, logits)):
        for golden, cases in goldens.items():
            errors = [compared(golden, case, of_logits) for case in cases]
            value, slope = (max(column) for column in zip(*errors, strict=True))
            name, given = options_of(golden, cases[0]["options"])
            usual = {**OPTIONS, **find(name, LOSSES).usual}
            off = {k: v for k, v in given.items() if usual[k] != v}
            shown = [
                f"{k}={v:.2e}" if isinstance(v, float) and v < 1e-3 else f"{k}={v}"
                for k, v in off.items()
            ]
            source = cases[0]["source"].split(" ")[0]
            lines.append((golden, name, value, slope, ", ".join(shown), source))
    print(
        "\ngolden             loss                  value gradient  not as usual here"
    )
    for golden, name, value, slope, unusual, source in lines:
        print(f"{golden:18} {name:18} {value:8.1e} {slope:8.1e}  {unusual:46} {source}")
    apart = {line[0] for line in lines if max(line[2:4]) > 1e-6}
    assert apart == {"dpop", "exo_pref"}


def test_no_golden_is_left_out(authors):
    files = {path.stem for path in authors.glob("*.json")}
    ours = {*FILES, *(f"logits_{name}" for name in OF_LOGITS)}
    assert files == ours | {"missing_rows", "presets"}


def rows_of(inputs):
    """Lays ids and labels out: a row a response, the chosen ones first."""
    ids, labels = np.int32(inputs["ids"]), np.int32(inputs["labels"])
    scored = labels != NEVER
    number, width = ids.shape
    first, past = scored.argmax(1), width - scored[:, ::-1].argmax(1)
    place = np.broadcast_to(np.arange(width), ids.shape)
    at = np.minimum(place + first[:, None], width - 1)  # the list starts with them
    listed = place < (past - first)[:, None]
    assert (scored.sum(1) == past - first).all()
    chosen = np.arange(number // 2)
    compared = np.full((number, 1, 2), -1)
    compared[: len(chosen), 0] = np.stack([chosen, chosen + len(chosen)], 1)
    targets = np.take_along_axis(ids, at, axis=1)
    token = {}
    if "ref_logits" in inputs:
        logits = np.float64(inputs["ref_logits"])
        states = np.take_along_axis(logits, at[..., None] - 1, axis=1)
        normal = states - np.logaddexp.reduce(states, axis=-1, keepdims=True)
        logps = np.take_along_axis(normal, targets[..., None], axis=-1)[..., 0]
        token = {"ref_logps": jnp.array(logps), "ref_states": jnp.array(states)}
    return Batch(
        tokens=ids,
        positions=place,
        docs=np.int32(place < past[:, None]),
        branches=np.int32(place >= first[:, None]),
        parents=at - 1,
        targets=targets,
        slots=np.where(listed, 0, 1),
        ends=past[:, None] - 1,
        ids=np.concatenate([chosen, chosen])[:, None],
        pairs=compared,
        token=token,
    )


def from_logits(name, given, inputs):
    """Returns the mean loss of logits, and its gradient."""
    batch, size = rows_of(inputs), np.shape(inputs["logits"])[-1]
    head = lambda *_: Head(jnp.eye(size), None)  # noqa: E731
    losses = wiring.losses_of({**given, "name": name}, LOSSES)
    whole = wiring.needs_whole_reference(losses)
    if not whole:
        batch.token.pop("ref_states", None)
    objective = wiring.make_objective(
        OBJECTIVES["preference"],
        losses,
        given,
        lambda logits, batch: (logits, head(), {}),
        chunk=4,
        ref_head=head if whole else None,
    )
    hyper = {k: np.float64(v) for k, v in {"beta": given["beta"]}.items()}
    for bound in losses:
        hyper |= {key: np.float64(value) for key, value in bound.hyper.items()}

    def mean(logits):
        key = jax.random.key(0)
        columns, reports = objective.score(logits, {"ref": {}}, batch, key, hyper)
        counts = objective.counts(batch)
        return objective.loss(columns, reports, {}, hyper, counts)[0]

    return jax.value_and_grad(mean)(jnp.float64(inputs["logits"]))


@pytest.mark.parametrize("golden", OF_LOGITS)
def test_losses_of_logits(authors, golden):
    for case in cases_of(authors / f"logits_{golden}.json"):
        name, given = options_of(golden, case["options"])
        if golden == "d2po":  # the official code counts tokens from 1
            given["beta"] *= given["decay"]
        with jax.enable_x64(True):
            value, grad = from_logits(name, given, case["inputs"])
        expected = np.asarray(case["gradients"]["logits"])
        atol = 1e-6 * np.abs(expected).max()
        left_out = np.exp(-10.0) if golden == "exo_pref" else 0.0  # their log(1 − ε)
        np.testing.assert_allclose(value, case["value"], rtol=1e-6, atol=left_out)
        np.testing.assert_allclose(grad, expected, rtol=1e-6, atol=atol + left_out / 10)
