"""The preset `reference_repo` owes the ids and losses of the DPO paper's code.

Goldens: eric-mitchell/direct-preference-optimization at f8b8c0f, its
`tokenize_batch_element` on 32 dialogues and its `preference_loss` in float64.
"""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layout_cases import rows_of

from dpo_jax.configs import dpo
from dpo_jax.data import planning, tokenize
from dpo_jax.losses import LOSSES, find, options
from dpo_jax.objectives.preference import pair_metrics
from dpo_jax.types import PairLogps
from dpo_jax.wiring import data as data_wiring
from dpo_jax.wiring import reading

UNSCORED = -100  # the reference code's label of what carries no loss
CUTS = [
    ("keep_end", 512, 256),
    ("keep_end", 96, 48),
    ("keep_start", 512, 256),
    ("keep_start", 96, 48),
]


@pytest.fixture
def goldens(shared):
    text = (shared / "goldens" / "reference_repo" / "goldens.json").read_text()
    return json.loads(text)


def preset(cut):
    config = dpo.get_config("preset=reference_repo")
    assert (config.data.max_tokens, config.data.max_prompt_tokens) == (512, 256)
    side, config.data.max_tokens, config.data.max_prompt_tokens = cut
    config.data.truncate_prompt = side
    return config


def sequences(batch, num_slots):
    """Reads {(index, chosen or rejected): (ids, labels)} back out of a batch."""
    sides = {}
    for chosen, rejected in batch.pairs[batch.pairs[..., 0] >= 0]:
        sides[int(chosen)], sides[int(rejected)] = "chosen", "rejected"
    found = {}
    for place, side in sides.items():
        row, slot = divmod(place, num_slots)
        own = batch.slots[row] == slot
        parents, targets = batch.parents[row, own], batch.targets[row, own]
        doc = batch.docs[row] == batch.docs[row, parents[0]]
        branch = batch.branches[row, batch.ends[row, slot]]
        seen = doc & np.isin(batch.branches[row], (0, branch))
        ids = batch.tokens[row, seen]
        np.testing.assert_array_equal(batch.positions[row, seen], np.arange(len(ids)))
        labels = np.full(len(ids), UNSCORED)
        labels[batch.positions[row, parents] + 1] = targets
        found[int(batch.ids[row, slot]), side] = (ids.tolist(), labels.tolist())
    return found


@pytest.mark.parametrize("layout", sorted(planning.LAYOUTS))
@pytest.mark.parametrize("cut", CUTS)
def test_ids_and_scored_positions(shared, goldens, tmp_path, cut, layout):
    rows = [
        row
        for row in goldens["rows"]
        if (row["truncation"], row["max_length"], row["max_prompt_length"]) == cut
    ]
    assert len(rows) == (10 if cut[0] == "keep_end" else 6)
    config = preset(cut)
    config.data.train = str(tmp_path / "rows.jsonl")
    columns = ("prompt", "chosen", "rejected")
    lines = [json.dumps({name: row[name] for name in columns}) for row in rows]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    tokenizer = tokenize.load_tokenizer(str(shared / goldens["tokenizer"]))
    records = data_wiring.load_data(reading.request_of(config), tokenizer).train

    _, shape, batch = rows_of(layout, records)
    found = sequences(batch, shape.slots)

    assert len(found) == 2 * len(rows)
    for index, row in enumerate(rows):
        for side in ("chosen", "rejected"):
            ids, labels = found[index, side]
            assert ids == row[f"{side}_input_ids"], (index, side)
            assert labels == row[f"{side}_labels"], (index, side)


def loss_and_rewards(goldens, case, dtype):
    """Computes a case's unreduced losses, chosen and rejected rewards."""
    given = goldens["losses"]
    sides = ("policy_chosen", "policy_rejected", "reference_chosen")
    names = (*sides, "reference_rejected")
    values = [jnp.asarray(given[f"{name}_logps"], dtype) for name in names]
    pairs = PairLogps(*values, jnp.ones(16, dtype), jnp.ones(16, dtype))
    section = dpo.get_config("preset=reference_repo").loss
    loss = find("ipo" if case.get("ipo") else "dpo", LOSSES)
    chosen = {name: section[name] for name in options(loss)} | {"beta": case["beta"]}
    if "label_smoothing" in case:
        chosen["label_smoothing"] = case["label_smoothing"]
    compared = pairs
    if case.get("reference_free"):
        nothing = jnp.zeros(16, dtype)
        compared = pairs._replace(ref_chosen=nothing, ref_rejected=nothing)
    one = jax.vmap(
        lambda pair: pair_metrics(
            jax.tree.map(lambda x: x[None], pair)._replace(mask=jnp.ones(1, bool)),
            case["beta"],
        )
    )
    metrics = one(pairs)
    rewards = [metrics[f"rewards/{side}"][0] for side in ("chosen", "rejected")]
    return loss(compared, chosen), *rewards


@pytest.mark.parametrize("case", range(5))
@pytest.mark.parametrize("dtype, rtol", [("float64", 1e-12), ("float32", 1e-5)])
def test_losses_and_rewards(goldens, case, dtype, rtol):
    """16 random pairs under dpo (β .1, .5), cDPO, IPO as a sum, and reference-free."""
    golden = goldens["losses"]["cases"][case]
    wide = dtype == "float64"
    with jax.enable_x64(True) if wide else contextlib.nullcontext():
        got = loss_and_rewards(goldens, golden, dtype)
        assert {value.dtype.name for value in got} == {dtype}
    names = ("losses", "chosen_rewards", "rejected_rewards")
    for name, values in zip(names, got, strict=True):
        np.testing.assert_allclose(values, golden[name], rtol=rtol, err_msg=name)
