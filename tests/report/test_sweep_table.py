"""The table of a sweep from run folders made by hand."""

import csv
import json
import math

import numpy as np
import pytest
from sweep_cases import entry, finish, grid

from dpo_jax.errors import DataError
from dpo_jax.report import arms, comparison, sweep_table
from dpo_jax.report.outcomes import Outcome

TWO = {
    "dpo": {0.1: (0.5, 1.0), 1.0: (0.6, 3.0)},
    "ipo": {0.1: (0.9, 30.0), 1.0: (0.7, 4.0)},
}


def rows(out, title):
    """The rows of one table of table.csv, each column -> (value, error)."""
    with (out / "table.csv").open() as file:
        lines = [
            line for line in csv.DictReader(file) if line["table"].startswith(title)
        ]
    found = {}
    for line in lines:
        row = found.setdefault(int(line["row"]), {})
        row[line["column"]] = (line["value"], line["error"])
    return list(found.values())


def value(row, column):
    return float(row[column][0])


def notes(out):
    return [row[""][0] for row in rows(out, "notes")]


def written(out, entries):
    text = sweep_table.write(entries, str(out))
    assert (out / "table.md").read_text() == text
    assert (out / "table.png").read_bytes().startswith(b"\x89PNG")
    return text


def test_methods_are_chosen_on_even_prompts_and_reported_on_odd_ones(tmp_path):
    """Rewards by hand: even prompts prefer β = 1 (.8 > .3), odd ones say .1."""
    made = []
    for beta, reward in ((0.1, [0.3, 0.9] * 2), (1.0, [0.8, 0.1] * 2)):
        for seed in (0, 1):
            keys = {"loss__beta": beta, "seed": seed, "loss__name": "dpo"}
            made.append(entry(tmp_path, f"dpo{beta}{seed}", **keys))
            finish(made[-1].folder, reward, [2.0, 4.0] * 2)
            made.append(
                entry(tmp_path, f"ipo{beta}{seed}", **keys | {"loss__name": "ipo"})
            )
            finish(made[-1].folder, [0.2, 0.5] * 2)
    written(tmp_path, made)
    dpo, ipo = rows(tmp_path, "Methods, each")
    assert dpo["method"][0] == "dpo" and dpo["trials"][0] == "4"
    assert (
        dpo["default setting"][0] == "beta=0.1" and value(dpo, "default: reward") == 0.9
    )
    assert dpo["tuned setting"][0] == "beta=1" and value(dpo, "tuned: reward") == 0.1
    assert value(dpo, "KL (nats)") == 4.0 and value(dpo, "length (tokens)") == 9.0
    assert dpo["− dpo"][0] == ""  # it is the base
    assert value(ipo, "− dpo") == pytest.approx(0.4)
    assert ipo["tuned setting"][0] == "beta=0.1"  # a tie: the first
    settings = rows(tmp_path, "Every setting")
    assert [value(r, "validation: reward") for r in settings] == [0.3, 0.8, 0.2, 0.2]
    assert [value(r, "test: reward") for r in settings] == [0.9, 0.1, 0.5, 0.5]


def test_differences_pair_seeds_and_prompts(tmp_path):
    """Luck of .5 that methods share leaves no trace in their difference's error."""
    written(tmp_path, grid(tmp_path, TWO, width=80, noise=0.5))
    dpo, ipo = rows(tmp_path, "Methods, each")
    assert float(dpo["tuned: reward"][1]) > 0.1
    assert float(ipo["− dpo"][1]) < 0.1
    low, high = value(ipo, "from"), value(ipo, "to")
    assert low < 0.3 < high and low < value(ipo, "− dpo") < high
    assert value(ipo, "p (Holm)") < 0.05 and value(ipo, "smallest effect") > 0.0
    assert any("n = 3 seeds × 40 test prompts" in note for note in notes(tmp_path))
    assert "Every method has the same budget: 6 trials." in notes(tmp_path)
    assert "Runs of one seed see the same pairs at every step." in notes(tmp_path)


def test_at_matched_kl_the_best_within_it_is_taken(tmp_path):
    """IPO's best lies at 30 nats; within 10 its other setting stands."""
    written(tmp_path, grid(tmp_path, TWO))
    by_limit = {}
    for row in rows(tmp_path, "Methods at matched KL"):
        by_limit.setdefault(row["within KL"][0], []).append(row)
    assert list(by_limit) == ["10", "30"]  # within 1 and 3 DPO stands alone
    within = by_limit["10"]
    assert [row["tuned setting"][0] for row in within] == ["beta=1", "beta=1"]
    assert value(within[1], "− dpo") == pytest.approx(0.1, abs=0.03)
    assert [row["tuned setting"][0] for row in by_limit["30"]] == ["beta=1", "beta=0.1"]


def test_a_half_finished_sweep_says_what_is_missing(tmp_path):
    made = grid(tmp_path, TWO)
    half = [
        each._replace(state="new", folder=str(tmp_path / "nowhere"))
        if each.name in ("ipo.0.1.1", "ipo.1.2")
        else each._replace(state="failed: error[3]: no such file", code=3)
        if each.name == "dpo.1.0"
        else each
        for each in made
    ]
    written(tmp_path, half)
    told = notes(tmp_path)
    assert "HALF FINISHED: 9 of 12 trials are done." in told
    assert "Not done: ipo.0.1.1, ipo.1.2." in told
    assert "dpo.1.0: failed: error[3]: no such file" in told
    dpo, ipo = rows(tmp_path, "Methods, each")
    assert dpo["trials"][0] == "5 of 6" and dpo["diverged"][0] == "0"
    assert dpo["tuned setting"][0] == "beta=0.1"  # the one that has all of its seeds
    assert ipo["tuned setting"][0] == "beta=0.1" and ipo["seeds"][0] == "2"


def test_a_method_without_any_finished_trial_has_a_row(tmp_path):
    made = grid(tmp_path, TWO)
    written(tmp_path, [e._replace(state="new") if "ipo" in e.name else e for e in made])
    assert [row["trials"][0] for row in rows(tmp_path, "Methods, each")] == [
        "6",
        "0 of 6",
    ]


def test_a_sweep_without_any_outcome_is_refused(tmp_path):
    made = [entry(tmp_path, "a")._replace(state="new")]
    with pytest.raises(
        DataError, match=r"no finished trial was evaluated .*Not done: a"
    ):
        sweep_table.write(made, str(tmp_path))
    assert not (tmp_path / "table.md").exists()


def test_diverged_runs_are_counted_and_chosen_last(tmp_path):
    """One ended with 6, one with a loss above its first, one with a loss of NaN."""
    made = grid(tmp_path, TWO)
    made = [
        each._replace(state="failed: error[6]: nan", code=6)
        if each.name == "ipo.0.1.2"
        else each
        for each in made
    ]
    for name, losses in {"dpo.0.1.0": (0.7, 0.8), "dpo.0.1.1": (0.7, "nan")}.items():
        path = tmp_path / name / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines[0]["loss"], lines[1]["loss"] = losses
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    written(tmp_path, made)
    dpo, ipo = rows(tmp_path, "Methods, each")
    assert dpo["diverged"][0] == "2" and ipo["diverged"][0] == "1"
    assert ipo["tuned setting"][0] == "beta=1"  # .7: that of .9 lost a seed
    by_name = {(r["method"][0], r["setting"][0]): r for r in rows(tmp_path, "Every")}
    assert by_name["ipo", "beta=0.1"]["diverged"][0] == "1"
    assert by_name["ipo", "beta=1"]["diverged"][0] == "0"


def test_ties_give_no_difference_and_no_nan(tmp_path):
    same = {"dpo": {0.1: (0.5, 1.0)}, "ipo": {0.1: (0.5, 1.0)}}
    text = written(tmp_path, grid(tmp_path, same, noise=0.0))
    ipo = rows(tmp_path, "Methods, each")[1]
    assert ipo["− dpo"] == ("0.0", "0.0") and value(ipo, "p (Holm)") == 1.0
    assert "nan" not in text


def test_one_seed_has_no_p_value_and_a_warning(tmp_path):
    """It would be of other prompts alone, and not of other runs."""
    text = written(tmp_path, grid(tmp_path, TWO, seeds=(0,)))
    ipo = rows(tmp_path, "Methods, each")[1]
    assert float(ipo["− dpo"][1]) > 0.0
    assert not {"from", "to", "p (Holm)", "smallest effect"} & set(ipo)
    assert "WARNING: one seed" in text


def test_methods_of_one_setting_have_one_table_without_empty_columns(tmp_path):
    one = {"dpo": {0.1: (0.5, 1.0)}, "ipo": {0.1: (0.8, 2.0)}}
    text = written(tmp_path, grid(tmp_path, one))
    assert [text.count(t) for t in ("**Methods, each", "**Methods at", "**Every")] == [
        1,
        0,
        0,
    ]
    columns = list(rows(tmp_path, "Methods, each")[0])
    assert "tuned setting" not in columns and "default: reward" not in columns
    assert columns[:5] == ["method", "trials", "diverged", "seeds", "tuned: reward"]


def test_unequal_budgets_and_trainings_are_said(tmp_path):
    made = grid(tmp_path, TWO)[:-3]
    longer = [
        e._replace(config={**e.config, "train.steps": 9}) if "ipo" in e.name else e
        for e in made
    ]
    written(tmp_path, longer)
    told = notes(tmp_path)
    assert "UNEQUAL BUDGETS: trials by method: dpo 6, ipo 3." in told
    assert "UNEQUAL TRAINING: train.steps is 0, 9." in told


def test_runs_on_other_prompts_are_left_out_and_unjudged_prompts_too(tmp_path):
    made = grid(tmp_path, TWO)
    path = tmp_path / "ipo.1.0" / "rollouts.json"
    path.write_text(path.read_text().replace('"prompts": "p"', '"prompts": "q"'))
    path = tmp_path / "dpo.1.0" / "rollouts.json"
    kept = json.loads(path.read_text())
    kept["policy"]["reward"][3] = None
    path.write_text(json.dumps(kept))
    written(tmp_path, made)
    told = notes(tmp_path)
    assert "ipo.1.0 was measured on other prompts or by another reward" in told
    assert "1 prompts have no verdict in some run: left out." in told
    assert any("× 9 test prompts" in note for note in told)


def test_without_values_of_prompts_means_are_compared_with_a_warning(tmp_path):
    """A run of an earlier version: the last evaluation of metrics.jsonl is all."""
    made = grid(tmp_path, TWO)
    (tmp_path / "dpo.1.0" / "rollouts.json").unlink()
    written(tmp_path, made)
    told = notes(tmp_path)
    assert any(
        note.startswith("WARNING: a run keeps no rollouts.json") for note in told
    )
    ipo = rows(tmp_path, "Methods, each")[1]
    assert (
        value(ipo, "− dpo") == pytest.approx(0.3, abs=0.03) and "KL (nats)" not in ipo
    )


@pytest.mark.parametrize("text", ["[]", "{", '{"measure": "r", "prompts": "p"}'])
def test_a_file_that_is_not_as_written_is_refused(tmp_path, text):
    made = grid(tmp_path, TWO)
    (tmp_path / "dpo.1.0" / "rollouts.json").write_text(text)
    with pytest.raises(DataError, match=r"rollouts\.json"):
        sweep_table.write(made, str(tmp_path))


def test_names_are_escaped_in_markdown_and_latex(tmp_path):
    """As many columns in every row, and nothing that LaTeX takes for its own."""
    named = {"exo_pair": {0.1: (0.5, 1.0)}, "a|b & c%": {0.1: (0.6, 1.0)}}
    text = written(tmp_path, grid(tmp_path, named))
    assert r"exo\_pair" in text and r"a\|b & c%" in text
    latex = (tmp_path / "table.tex").read_text()
    assert r"exo\_pair" in latex and r"a|b \& c\%" in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 1
    for part in latex.split(r"\begin{tabular}{")[1:]:
        columns = part.index("}")
        lines = part.split(r"\hline")[1:-1]
        for line in " ".join(lines).split(r"\\")[:-1]:
            cells = line.replace(r"\&", "").count("&") + 1
            assert cells == columns
    assert latex.isascii()


def simulated(random, methods=4, strengths=3, seeds=3, width=40):
    """A sweep in which no method and no setting is better than another."""
    entries, outcomes = [], {}
    prompts = random.normal(0.0, 1.0, width)
    luck = random.normal(0.0, 0.3, seeds)
    for method in range(methods):
        for strength in range(strengths):
            for seed in range(seeds):
                keys = {"loss__name": f"m{method}", "loss__beta": float(strength + 1)}
                name = f"{method}.{strength}.{seed}"
                entries.append(entry("out", name, **keys, seed=seed))
                reward = prompts + luck[seed] + random.normal(0.0, 0.2)
                reward = reward + random.normal(0.0, 1.0, width)
                values = np.stack([reward, np.full(width, 100.0), np.ones(width)])
                outcomes[name] = Outcome("reward", "p", values, False)
    return entries, outcomes


@pytest.mark.nightly
def test_whole_sweeps_without_an_effect_find_one_at_the_nominal_rate():
    """After tuning and correction, any difference is seen in at most 5 % of sweeps.

    Of 200 sweeps of 4 methods, 3 settings and 3 seeds; runs differ by luck of their
    own, which selection favours alike in all methods. 5 % ± 3 standard errors.
    """
    random, hits = np.random.default_rng(0), 0
    entries, _ = simulated(random)
    placed = arms.arms_of(entries)
    for _ in range(200):
        found = comparison.compare(entries, placed, simulated(random)[1])
        ps = [row.difference.p for row in found.tuned]
        assert len(ps) == 4 and math.isnan(ps[0])
        hits += min(ps[1:]) < 0.05
    assert 0.0 < hits / 200 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)
