"""The judged figures: trials that run, the paper's numbers, and z by hand."""

import json
import math

import pytest

from dpo_jax.cli import sweep as cli_sweep
from dpo_jax.data.sources import sentiment
from dpo_jax.errors import ConfigError
from dpo_jax.launch import trial as trial_lib
from dpo_jax.losses import LOSSES
from dpo_jax.rewards import REWARDS
from dpo_jax.wiring import checks
from experiments import judged, judged_figure, judged_tiers
from experiments.fig2_tldr_winrate import sweep as fig2
from experiments.fig3_hh_winrate import halves
from experiments.fig3_hh_winrate import sweep as fig3
from experiments.fig4_best_of_n import sweep as fig4
from experiments.table1_ood import openings
from experiments.table1_ood import sweep as table1
from experiments.table2_human import sweep as table2

SWEEPS = {
    "fig2": fig2,
    "fig3": fig3,
    "fig4": fig4,
    "table1": table1,
    "table2": table2,
}
NEEDS = {"sft": set(), "ppo": {"sft", "reward_model"}}


def paper_of(figure):
    return judged.read_paper(judged.Path(figure.folder) / "expected.csv")


@pytest.mark.parametrize(
    "name, tier",
    [(name, tier) for name in SWEEPS for tier in SWEEPS[name].FIGURE.tiers],
)
def test_every_trial_is_one_that_runs(name, tier, tmp_path):
    """As each run checks its own; policies start from the reference."""
    trials = SWEEPS[name].get_sweep(f"tier={tier},data={tmp_path}")
    planned = trial_lib.plan(trials, str(tmp_path), cli_sweep.load)
    for each in planned:
        checks.check(each.config, LOSSES, REWARDS)
        needs = NEEDS.get(each.name, {"sft"})
        alone = tier == "real" and each.name == "reward_model"
        assert set(each.needs) == (set() if alone else needs)
    assert {"sft", "dpo", "reward_model"} <= {each.name for each in planned}


def test_an_unknown_tier_is_named():
    with pytest.raises(ConfigError, match="did you mean 'quick'"):
        fig3.get_sweep("tier=quik")


def test_the_papers_numbers():
    """158 of 256 at T = 0; 63.0 % of some 250; best of 64 and 128 alike at T = .7."""
    tldr, hh, best = (paper_of(each.FIGURE) for each in (fig2, fig3, fig4))
    assert len(tldr) == 30 and len(hh) == 12 and len(best) == 15
    dpo = tldr["DPO", 0.0]
    assert dpo.rate * dpo.n == pytest.approx(158, abs=0.01)
    assert dpo.se == pytest.approx(0.0304, abs=1e-4)
    gap = dpo.rate - tldr["PPO", 0.0].rate
    z = gap / math.hypot(dpo.se, tldr["PPO", 0.0].se)
    assert z == pytest.approx(1.08, abs=0.02)  # the order is not shown by 256
    assert hh["DPO", 1.0].rate == 0.63 and best["Best of 128", 0.7].rate == 0.594
    assert hh["Preferred-FT", 0.25] == best["Best of 1", 0.25]
    news = paper_of(table1.FIGURE)
    assert news["DPO", 0.0].rate == 0.36 and news["PPO", 0.25].rate == 0.23
    assert math.isnan(news["DPO", 0.0].se)  # the paper does not say how many articles


def test_commands_sample_once_where_it_is_greedy(tmp_path):
    found = judged.commands(fig2.FIGURE, "full", tmp_path, "gpt@http://host/v1")
    *samples, verdict = (each.arguments for each in found)
    assert [next(a for a in each if a.startswith("--n=")) for each in samples] == [
        "--n=1",
        *["--n=128"] * 4,
    ]
    assert "--judge=model,gpt@http://host/v1" in verdict
    assert not any(a.startswith(("--stop", "--prompts")) for a in samples[0])
    assert "--prompt=concise_summary" in verdict and "--against=chosen" in verdict
    hh = judged.commands(fig3.FIGURE, "full", tmp_path, "")[0].arguments
    assert (
        "--stop=\n\nHuman:" in hh and f"--prompts={tmp_path}/data/prompts.jsonl" in hh
    )


def test_prompts_of_one_turn(tmp_path):
    one = "\n\nHuman: a?\n\nAssistant: b"
    rows = [one, one + " c", one + "\n\nHuman: d\n\nAssistant: e", one[:-2]]
    file, out = tmp_path / "hh.jsonl", tmp_path / "prompts.jsonl"
    file.write_text(
        "".join(json.dumps({"chosen": r, "rejected": r}) + "\n" for r in rows)
    )
    judged_tiers.write_single_turns(str(file), tmp_path)
    found = [json.loads(line) for line in out.open()]
    prompt = "\n\nHuman: a?\n\nAssistant:"
    assert found == [
        {"prompt": prompt, "chosen": said, "rejected": said} for said in (" b", " b c")
    ]


def test_halves_share_no_prompt():
    """Ten prompts of one turn twice, ten of two turns: four are sampled, 8 and 8."""
    once = [f"\n\nHuman: {i}\n\nAssistant:" for i in range(10)]
    twice = [f"{text} x{once[0]}" for text in once]
    rows = [{"prompt": p, "chosen": c} for p in [*once, *twice] for c in "ab"]
    parts = halves.split(rows, held_out=4)
    owners = {name: {row["prompt"] for row in of} for name, of in parts.items()}
    assert {name: len(of) for name, of in owners.items()} == {
        "prompts": 4,
        "policy": 8,
        "judge": 8,
    }
    assert set.union(*owners.values()) == {*once, *twice}
    assert owners["prompts"] <= set(once)
    assert sum(map(len, parts.values())) == 40  # every pair is somewhere
    assert parts == halves.split(rows, held_out=4)


def test_the_real_tier_trains_on_its_halves(tmp_path):
    trials = {t.name: t.overrides for t in fig3.get_sweep("tier=real,data=D")}
    files = {name: keys["data.train"] for name, keys in trials.items()}
    assert files == {
        "sft": "D/policy.jsonl",
        "dpo": "D/policy.jsonl",
        "reward_model": "D/judge.jsonl",
    }
    assert trials["reward_model"]["data.eval"] == "D/prompts.jsonl"
    judge = judged.commands(fig3.FIGURE, "real", tmp_path, "")[-1].arguments
    assert f"--against={tmp_path}/data/prompts.jsonl" in judge


def test_openings_that_no_policy_trained_on(tmp_path):
    """Nine to eleven words of the grammar, each once, with a continuation of it."""
    rows = openings.rows(40)
    assert rows == openings.rows(128)[:40]
    assert len({row["prompt"] for row in rows}) == 40
    assert {len(row["prompt"].split()) for row in rows} == {9, 10, 11}
    assert max(sentiment.PROMPT_WORDS) < 9
    for row in rows:
        words = (row["prompt"] + row["chosen"]).split()
        state, _ = sentiment._follow(words)  # a word that may not follow raises
        assert state[0] == "clause" and row["chosen"].startswith(" ")
    first = judged.commands(table1.FIGURE, "quick", tmp_path, "")[0]
    assert first.made == tmp_path / "ood_samples_0.jsonl"
    assert f"--prompts={tmp_path}/ood_data/prompts.jsonl" in first.arguments


def row(trial, rate, se, best_of=1, judge="model", heat=0.7):
    own = {"policy": f"OUT/{trial}/export", "temperature": heat, "best_of": best_of}
    return {**own, "judge": judge, "win_rate": rate, "se": se}


def test_z_is_by_both_errors_and_stands_where_it_may(tmp_path):
    """(.65 − .602) / √(.03² + .602·.398/250) = 1.11; none against another set-up."""
    rows = [row("dpo", 0.65, 0.03), row("sft", 0.5, None, 128), row("sft", 0.4, 0.02)]
    (tmp_path / "winrate").mkdir()
    (tmp_path / "winrate/winrate.json").write_text(json.dumps({"rows": rows}))
    text = judged.table(fig3.FIGURE, "full", tmp_path)
    lines = {tuple(line.split(" | ")[1:3]): line for line in text.splitlines()}
    assert "| 0.650 ± 0.030 | 0.602 ± 0.031 | +1.1 |" in lines["DPO", "0.7"]
    assert "| 0.500 ± 0.000 | 0.594 ± 0.031 | -3.0 |" in lines["Best of 128", "0.7"]
    assert "| 0.400 ± 0.020 | 0.426 ± 0.031 | -0.7 |" in lines["Preferred-FT", "0.7"]
    assert "| – | 0.371 ± 0.031 | – |" in lines["DPO", "0.25"]
    assert "gpt-4-0314" in text and (tmp_path / "table.md").read_text() == text
    quick = judged.table(fig3.FIGURE, "quick", tmp_path)
    assert "| 0.650 ± 0.030 | 0.602 ± 0.031 | – |" in quick
    assert "Comparable: no: reviews of a grammar" in quick


def test_the_figure_draws_the_best_of_as_many_as_there_are(tmp_path):
    """Of 128 wanted and 2 sampled, the best of 2; no bar where no error is known."""
    own = [row("sft", 0.4, None), row("sft", 0.6, 0.1, 2), row("dpo", 0.9, 0.1)]
    lines = judged_figure.ours(own, fig2.FIGURE.names)
    assert lines["Best of 2"] == [(0.7, 0.6, 0.1)] and lines["DPO"] == [(0.7, 0.9, 0.1)]
    assert list(lines) == ["DPO", "Best of 2", "SFT"]
    paper = {("DPO", 0.7): (0.6, math.nan), ("DPO", 0.0): (0.5, 0.1)}
    judged_figure.write(tmp_path / "figure.png", own, paper, fig2.FIGURE.names)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_no_z_where_the_paper_says_no_n():
    assert judged.cells_of((0.3, 0.1), judged.Paper(0.36, 0), "in part") == [
        "0.300 ± 0.100",
        "0.360",
        "–",
    ]
