"""TRL's other offline trainers, step by step: reward, KTO, SFT, ORPO, CPO.

As `test_trl_goldens`, whose tolerances these are. TRL's KTO lends a prompt the response
of the row before it in the batch, ours that of the row after: each batch of 8 is read
backwards. `logps/*` of ORPO and SimPO are per token in TRL; β times them are the
rewards, which are compared.
"""

import json

import pytest
from test_trl_goldens import ROOT, check, golden_steps, train

pytestmark = pytest.mark.parity
FOLDER = "trl_others"
assert ROOT and train  # a fixture, and what it reads
FREE = {"ref.mode": "none", "ref.path": ""}
REWARD = {**FREE, "objective": "reward", "loss.name": "bradley_terry"}
KTO = {"objective": "unpaired"}
SFT = {**FREE, "objective": "sft", "loss.name": "sft"}
SIMPO = {**FREE, "loss.gamma": 0.5}
CASES = {  # golden -> rows, options
    "reward": ("pairs", {**REWARD, "loss.centering": 0.0}),
    "reward_centered": ("pairs", {**REWARD, "loss.centering": 0.01}),
    "reward_margin": (
        "margins",
        {**REWARD, "loss.centering": 0.0, "loss.margin": "data"},
    ),
    "kto": ("unpaired", {**KTO, "loss.name": "kto"}),
    "kto_weights": (
        "unpaired",
        {
            **KTO,
            "loss.name": "kto",
            "loss.desirable_weight": 1.33,
            "loss.undesirable_weight": 0.7,
        },
    ),
    "apo_zero_unpaired": ("unpaired", {**KTO, "loss.name": "apo_zero_unpaired"}),
    "sft": ("completions", SFT),
    "sft_whole": ("completions", {**SFT, "loss.likelihood": "whole"}),
    "orpo": ("pairs", {**FREE, "loss.name": "orpo", "loss.likelihood": "whole"}),
    "cpo": ("pairs", {**FREE, "loss.name": "cpo"}),
    "simpo": ("pairs", {**SIMPO, "loss.name": "simpo"}),
    "cpo_simpo": (
        "pairs",
        {**SIMPO, "loss.name": "simpo+sft", "loss.weights": (1.0, 0.5)},
    ),
}
OTHERS = {"num_tokens", "min_reward", "max_reward", "kl", "logits/chosen"} | {
    *("logits/rejected", "nll_loss", "log_odds_ratio", "log_odds_chosen")
}  # TRL's alone
PER_TOKEN = {"logps/chosen", "logps/rejected"}
NOT_COMPARED = {  # of the prompt's tokens, too
    "sft_whole": {"entropy", "mean_token_accuracy"},
    **dict.fromkeys(("orpo", "simpo", "cpo_simpo"), PER_TOKEN),
}


def in_their_words(line):
    """Adds what TRL's trainers log of what ours do."""
    line = dict(line)
    if "scores/chosen" in line:
        line["accuracy"], line["margin"] = (
            line["scores/accuracies"],
            line["scores/margins"],
        )
        line["mean_reward"] = (line["scores/chosen"] + line["scores/rejected"]) / 2
    if "rewards/margins" not in line and "rewards/chosen" in line:
        line["rewards/margins"] = line["rewards/chosen"] - line["rewards/rejected"]
    return line


def backwards(path, out):
    """Writes the rows of each batch of 8 in reverse."""
    rows = path.read_text().splitlines(keepends=True)
    batches = [rows[i : i + 8][::-1] for i in range(0, len(rows), 8)]
    out.write_text("".join(row for batch in batches for row in batch))
    return out


@pytest.mark.parametrize(
    "case, layout",
    [(case, "prefix_shared") for case in CASES]
    + [
        pytest.param(case, layout, marks=pytest.mark.nightly)
        for case in CASES
        for layout in ("padded", "packed")
    ],
)
def test_steps(shared, train, tmp_path, case, layout):  # noqa: F811
    rows, flags = CASES[case]
    folder = shared / "goldens" / FOLDER
    data = folder / f"{rows}.jsonl"
    if rows == "unpaired":
        data = backwards(data, tmp_path / "rows.jsonl")
    flags = flags | {"data.train": data, "data.layout": layout}
    if rows in ("pairs", "margins") and flags.get("objective") == "reward":
        flags["model.path"] = folder / "classifier"
    ours = [in_their_words(line) for line in train(FOLDER, 4, flags)]
    left_out = OTHERS | NOT_COMPARED.get(case, set())
    golden = golden_steps(shared, FOLDER, case)
    kept = [{k: v for k, v in s.items() if k not in left_out} for s in golden]
    assert len(kept) == 4 and all({"loss", "grad_norm"} <= s.keys() for s in kept)
    check(ours, kept)


def test_the_cases_are_all_there_are(shared):
    text = (shared / "goldens" / FOLDER / "goldens.json").read_text()
    assert json.loads(text)["cases"].keys() == CASES.keys() and len(CASES) == 12
