"""Figure 2's experiment: pairs, trials, what is read of run folders, claims, tables."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from dpo_jax.cli import sweep as cli_sweep
from dpo_jax.data.sources import sentiment
from dpo_jax.errors import ConfigError
from dpo_jax.launch import trial as trial_lib
from dpo_jax.losses import LOSSES
from dpo_jax.rewards import REWARDS
from dpo_jax.wiring import checks
from experiments.fig2_imdb_frontier import budget, claims, data, figure, sweep, table
from experiments.fig2_imdb_frontier import openings as openings_lib
from experiments.fig2_imdb_frontier import pairs as pairs_lib
from experiments.fig2_imdb_frontier import points as points_lib
from experiments.fig2_imdb_frontier.tiers import HERE, QUICK, TIERS

EXPECTED = Path(HERE) / "expected.csv"


def samples(*texts):
    """Samples of one prompt, as `sample --out` has them."""
    return [
        {
            "index": 0,
            "prompt": "the film",
            "prompt_ids": [1, 2],
            "text": text,
            "tokens": [ord(char) for char in text],
            "completion_ids": [ord(char) for char in text],
            "ended": text.isupper(),
        }
        for text in texts
    ]


def test_deterministic_labels_prefer_the_truer_sample_of_every_untied_pair():
    """Truths .1, .9, .5, .5: six pairs less one tie; equal texts are no pair either."""
    rows = pairs_lib.label(
        [samples("a", "B", "c", "d")], [[0.1, 0.9, 0.5, 0.5]], "deterministic", 0
    )
    got = {(chr(r["chosen_ids"][0]), chr(r["rejected_ids"][0])) for r in rows}
    assert got == {("B", "a"), ("c", "a"), ("d", "a"), ("B", "c"), ("B", "d")}
    assert len(rows) == 5 and all(r["prompt_ids"] == [1, 2] for r in rows)
    assert all(r["chosen_ended"] == (r["chosen_ids"] == [ord("B")]) for r in rows)
    same = pairs_lib.label([samples("a", "a")], [[0.1, 0.2]], "deterministic", 0)
    assert not same


def test_drawn_labels_follow_the_odds_of_the_truths():
    """Odds 4 and 1/4: the better wins with 4/(4 + 1/4) = 16/17; as seen 4,000 times."""
    groups = [samples("a", "b")] * 4_000
    rows = pairs_lib.label(groups, [[0.8, 0.2]] * 4_000, "bradley_terry", 0)
    share = np.mean([r["chosen_ids"] == [ord("a")] for r in rows])
    assert abs(share - 16 / 17) < 4 * math.sqrt(16 / 17 / 17 / 4_000)
    assert rows == pairs_lib.label(groups, [[0.8, 0.2]] * 4_000, "bradley_terry", 0)


def test_one_pair_each_is_the_best_and_the_worst_as_text():
    groups = [samples("a", "B", "c"), samples("x", "y")]
    (row,) = pairs_lib.one_each(groups, [[0.1, 0.9, 0.5], [0.4, 0.4]])
    assert (row["chosen"], row["rejected"], row["prompt"]) == ("B", "a", "the film")
    assert row["chosen_ended"] and not row["rejected_ended"]


def test_files_appear_whole(tmp_path):
    def broken():
        yield {"a": 1}
        raise OSError

    with pytest.raises(OSError):
        pairs_lib.write(tmp_path / "rows.jsonl", broken())
    assert not (tmp_path / "rows.jsonl").exists()
    pairs_lib.write(tmp_path / "rows.jsonl", samples("a", "b"))
    assert [len(group) for group in pairs_lib.read(tmp_path / "rows.jsonl")] == [2]


def test_prompts_of_each_tier_are_all_different_from_those_that_are_judged():
    real = data.prompts(TIERS["real"])
    assert len(set(real)) == len(real) == TIERS["real"].train + TIERS["real"].held_out
    assert real[:3] == openings_lib.openings(3)
    assert real[0].startswith("Film review. ") and real[0].endswith(" and")
    little = data.prompts(QUICK)
    judged = sentiment.prompts(0, 50, split="eval")
    assert len(little) == QUICK.train + QUICK.held_out and little[:50] != judged


@pytest.mark.parametrize("tier", TIERS)
def test_trials_are_methods_and_wait_for_what_they_start_from(tier):
    trials = sweep.get_sweep(f"tier={tier},data=DATA")
    names = [trial.name for trial in trials]
    assert len(set(names)) == len(names)
    helpers = {"sft", "reward_model", "best_of"}
    methods = {points_lib.method_of(name) for name in names} - helpers
    assert {"dpo", "unlikelihood", "preferred_ft", "ppo_gt"} <= methods
    assert methods <= set(points_lib.METHODS)
    by_name = {trial.name: trial.overrides for trial in trials}
    for beta in TIERS[tier].betas:
        assert by_name[f"dpo.beta={beta:g}"]["loss.beta"] == beta
    for target in TIERS[tier].targets:
        given = by_name[f"ppo.kl={target:g}"]
        assert given["reward.path"] == "{reward_model}"
        assert given["ppo.kl_target"] == target
    for name, given in by_name.items():
        if name.startswith("ppo_gt"):
            assert given["reward.name"] == TIERS[tier].truth
            assert "reward.path" not in given


@pytest.mark.parametrize("tier", TIERS)
def test_trials_are_configurations_without_fault(tier, tmp_path):
    """As each run checks its own; a truth of another package is stood in for."""
    trials = sweep.get_sweep(f"tier={tier},data=DATA")
    planned = trial_lib.plan(trials, str(tmp_path), cli_sweep.load)
    assert len(planned) == len(trials)
    truth = {TIERS[tier].truth: lambda completions: [0.0 for _ in completions]}
    for each in planned:
        checks.check(each.config, LOSSES, {**REWARDS, **truth})
    by_name = {each.name: each for each in planned}
    starts = {"sft"} & set(by_name)
    assert set(by_name["dpo.beta=0.1"].needs) == starts
    if TIERS[tier].targets:
        for name in ("best_of", f"ppo.kl={TIERS[tier].targets[0]:g}"):
            assert set(by_name[name].needs) == {"reward_model", *starts}


def test_the_start_is_the_reference_alone():
    assert [t.name for t in sweep.get_sweep("tier=quick,part=start")] == ["sft"]
    assert sweep.get_sweep("tier=real,part=start") == []
    own = sweep.get_sweep("tier=quick,data=D,reference=FOLDER")
    assert {t.overrides["model.path"] for t in own} == {"FOLDER"}
    for wrong, told in {"tier=quik": "quick", "part=x": "start", "": "run.py"}.items():
        with pytest.raises(ConfigError, match=told):
            sweep.get_sweep(wrong)


PLACES = {  # trial -> (step, KL, reward) of its evaluations
    "dpo.beta=0.1": [(0, 0.0, 0.5), (10, 1.0, 0.7), (20, 6.0, 0.95)],
    "dpo.beta=1": [(0, 0.0, 0.5), (10, 0.5, 0.6), (20, 2.0, 0.8)],
    "unlikelihood.alpha=1": [(0, 0.0, 0.5), (10, 2.0, 0.6), (20, 30.0, 0.6)],
    "preferred_ft.seed=0": [(0, 0.0, 0.5), (10, 0.4, 0.56), (20, 0.6, 0.57)],
    "ppo.kl=2": [(0, 0.0, 0.5), (8, 1.0, 0.74), (16, 2.0, 0.85)],
    "ppo_gt.kl=2": [(0, 0.0, 0.5), (8, 1.0, 0.75), (16, 2.0, 0.87)],
}
CURVE = [(0.0, 0.5), (0.3, 0.66), (1.0, 0.8), (2.0, 0.9), (4.0, 0.99), (9.0, 1.0)]


@pytest.fixture
def folder(tmp_path):
    """Run folders as trials leave them: 4 updates a turn of 32 samples, .5 s a step."""
    for trial, places in PLACES.items():
        lines = []
        on_policy = trial.startswith("ppo")
        for step in range(
            4 if on_policy else 1, places[-1][0] + 1, 4 if on_policy else 1
        ):
            seconds = 30.0 if len(lines) == 0 else 0.5  # the first compiles
            lines.append({"step": step, "split": "train", "step_seconds": seconds})
            lines[-1]["loss"] = math.log(2.0)
        for step, kl, reward in places:
            excess = {"frontier/excess": -0.02, "frontier/excess_se": 0.01}
            lines.append(
                {
                    "step": step,
                    "split": "eval",
                    "rollouts/kl": kl,
                    "rollouts/kl_se": 0.01 * bool(step),
                    "rollouts/reward": reward,
                    "rollouts/reward_se": 0.01,
                    **excess,
                    "frontier/reward": reward + 0.02,
                    "frontier/flagged": 0.0,
                    "frontier/trusted": float(kl < 5),
                }
            )
        write_run(tmp_path / trial, lines)
    begun = {"step": 0, "split": "eval", "rollouts/kl": 0.0, "rollouts/kl_se": 0.0}
    begun |= {"rollouts/reward": 0.5, "rollouts/reward_se": 0.01}
    write_run(tmp_path / "dpo.beta=5", [begun])
    write_run(tmp_path / "dpo.beta=0.05", [])
    best = {"name": "best of 4 of the reference", "values": {}}
    best["values"] = {"true reward": [0.72, 0.01], points_lib.BEST_KL: 0.64}
    write_run(
        tmp_path / "best_of", [{"step": 1, "split": "train", "step_seconds": 1.0}]
    )
    write_json(tmp_path / "best_of" / "results.json", {"rows": [best]})
    places = [
        {"kl": kl, "reward": r, "reward_se": 0.01, "trusted": kl < 5} for kl, r in CURVE
    ]
    bests = [{"m": 2, "kl_bound": 0.19, "reward": 0.59, "reward_se": 0.01}]
    places = [{**dict.fromkeys(("beta", "kl_se", "samples"), 1.0), **p} for p in places]
    bounds = {"measure": "true reward", "frontier": places[::-1], "best_of": bests}
    write_json(tmp_path / "dpo.beta=1" / "frontier.json", bounds)
    write_json(tmp_path / "data" / "data.json", {"samples": 1_000})
    return tmp_path


def write_run(folder, lines):
    folder.mkdir()
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    config = {"rollout": {"prompts": 16, "samples": 2}}
    write_json(folder / "config.json", config)


def write_json(path, value):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def test_points_know_what_they_cost(folder):
    found = points_lib.read(folder)
    assert {p.trial for p in found.points} == set(PLACES)
    last = {p.trial: p for p in found.points}
    assert (
        last["dpo.beta=1"].seconds == 20 * 0.5 and last["dpo.beta=1"].samples == 1_000
    )
    assert last["ppo_gt.kl=2"].seconds == 4 * 0.5  # turns
    assert last["ppo_gt.kl=2"].samples == 4 * 32
    assert last["ppo.kl=2"].samples == 1_000 + 4 * 32  # its reward was learned
    assert [place.kl for place in found.bounds.curve] == sorted(kl for kl, _ in CURVE)
    assert found.bounds.best_of == [(2, 0.19, 0.59, 0.01)]
    assert found.bounds.best_of_learned == [(4, 0.64, 0.72, 0.01)]


def test_tables_tell_the_best_within_a_kl(folder):
    text = table.write(folder)
    rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines()}
    cells = [cell.strip() for cell in rows["DPO"].strip("|").split("|")]
    within = dict(zip(table.BUDGETS, cells[1:], strict=False))
    assert within[0.5] == "0.600 ± 0.010" and within[1.0] == "0.700 ± 0.010"
    assert within[5.0] == "0.800 ± 0.010" and within[10.0] == "0.950 ± 0.010"
    assert cells[-1] == "0.950 ± 0.010, 6.0"
    assert (
        "| 0.900 |" in rows["frontier"] and "N=4" in rows["best-of-N, learned reward"]
    )
    assert "6.000 ± 0.010 | 0.950 ± 0.010 | 0.020 ± 0.010 (tangent)" in text
    names = {"points.csv", "table.csv", "table.md", "figure.png"}
    assert names <= {path.name for path in folder.iterdir()}
    assert (folder / "points.csv").read_text().count("\n") == 1 + 3 * len(PLACES)


def test_figure_shows_every_evaluation_and_every_point_of_the_paper(folder):
    paper = points_lib.read_paper(EXPECTED)
    canvas = figure.draw(points_lib.read(folder), paper)
    ours, theirs = canvas.axes[:2]
    drawn = sum(np.size(bar[0].get_xdata()) for bar in ours.containers)
    assert drawn == 3 * len(PLACES)
    assert sum(np.size(line.get_xdata()) for line in theirs.lines) == 177
    labels = ours.get_legend_handles_labels()[1]
    assert {"frontier", "PPO-GT", "DPO"} <= set(labels) and len(labels) == len(
        set(labels)
    )


def test_claims_hold_of_a_run_without_fault_and_fail_by_name(folder):
    found = points_lib.read(folder)
    held = claims.check(found)
    assert len(held) >= 8 and all(claim.holds for claim in held), held
    dpo = [p for p in found.points if p.trial == "dpo.beta=0.1"]
    spoilt = {
        "above the frontier": dpo[1]._replace(flagged=True),
        "falls with β": dpo[2]._replace(kl=1.5),
        "at KL 0": dpo[0]._replace(kl=0.1),
    }
    for text, point in spoilt.items():
        step = point.step
        others = [p for p in found.points if (p.trial, p.step) != (point.trial, step)]
        places = sorted([*others, point], key=lambda p: (p.trial, p.step))
        failed = [c for c in claims.check(found._replace(points=places)) if not c.holds]
        assert any(text in claim.text for claim in failed), text
    off = found._replace(first_losses={"dpo.beta=1": 0.7})
    assert [c.text for c in claims.check(off) if not c.holds] == [
        "the loss of DPO starts at ln 2"
    ]


def test_a_gap_is_averaged_over_the_same_kls_for_all(folder):
    """Staircase of preferred-FT from KL .6 on: .57; the frontier between .3 and 3."""
    found = points_lib.read(folder)
    of = [p for p in found.points if p.method == "preferred_ft"]
    kls, rewards = zip(*CURVE, strict=True)
    best = np.where(
        claims.AREA_KLS >= 0.6, 0.57, np.where(claims.AREA_KLS >= 0.4, 0.56, 0.5)
    )
    want = np.mean(np.interp(claims.AREA_KLS, kls, rewards) - best)
    np.testing.assert_allclose(claims.gap(of, found).mean, want)


def test_the_papers_points_are_those_of_its_table():
    """Decoded from its vectors: 177 points; DPO's best within 1, 2, 5 and 20 nats."""
    paper = points_lib.read_paper(EXPECTED)
    assert [*map(len, paper.values())] == [33, 31, 27, 29, 35, 22]
    assert set(paper) == set(figure.PAPER)
    for kl, reward in {1: 0.643, 2: 0.906, 5: 0.990, 20: 0.999}.items():
        assert max(r for at, r in paper["DPO (Ours)"] if at <= kl) == reward


def test_budget_adds_up():
    """QUICK by hand: 4 trials of 60 × 64 pairs, one of PPO with 20 turns of 256."""
    rates = budget.Rates(10.0, 0.001, 0.002, 0.003, 0.004, 0.005)
    parts = {part.name: part for part in budget.parts(QUICK, rates)}
    assert parts["samples of the reference"].drawn == 4 * (2_000 + 256)
    judged = 512 * (5 + 2)
    assert parts["on pairs"].seconds == pytest.approx(
        4 * (10.0 + 0.002 * 60 * 64 + 0.005 * judged)
    )
    assert (parts["PPO"].trials, parts["PPO"].drawn) == (1, 20 * 256)
    assert "reward model" not in parts
    assert "minutes" in budget.told(QUICK, rates)
    assert all(part.seconds is None for part in budget.parts(QUICK))


def test_prefixes_of_reviews_have_two_to_eight_words(tmp_path):
    """Breaks are blanks; reviews that are no longer than their prefix give none."""
    texts = [f"a{i}<br /><br />b c d e f g h i" for i in range(40)] + ["one", "two"]
    rows = [json.dumps({"text": text, "label": 0}) for text in texts]
    (tmp_path / "train.jsonl").write_text("\n".join(rows) + "\n")
    found = data.imdb_prefixes(40, str(tmp_path))
    lengths = {len(prefix.split()) for prefix in found}
    assert len(found) == 40 and lengths == set(range(2, 9))
    assert all("<br" not in prefix for prefix in found)
    assert data.imdb_prefixes(50, str(tmp_path)) == found  # no more are there
