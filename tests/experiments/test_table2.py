"""Table 2: annotations of the published schema, who is asked, and agreement by hand."""

import json
import math

import pytest

from dpo_jax.cli import main as dpo_jax
from dpo_jax.errors import DataError
from experiments.table2_human import annotations, people, run, table
from experiments.table2_human.sweep import Column


def rated(number, preference, annotator="ann", swapped=False):
    """A row as AlpacaEval publishes it: the baseline's output, and the model's."""
    both = [f"base {number}", f"model {number}"]
    named = ["text_davinci_003", "model"]
    if swapped:
        both.reverse()
        named.reverse()
    return {
        "instruction": f"question {number}",
        "output_1": both[0],
        "output_2": both[1],
        "generator_1": named[0],
        "generator_2": named[1],
        "dataset": "helpful_base",
        "annotator": annotator,
        "preference": preference,
    }


# Ten comparisons. Ann: the model wins 6, loses 3, ties 1. Bob agrees on 5 wins and 2
# losses, and gives no verdict on the tie; one of his is shown in the other order.
ANN = (
    [rated(i, 2) for i in range(6)] + [rated(i, 1.0) for i in (6, 7, 8)] + [rated(9, 0)]
)
BOB = [
    *[rated(i, 1.9, "bob") for i in range(4)],
    rated(4, 1, "bob", swapped=True),
    rated(5, 1, "bob"),
    rated(6, 1.2, "bob"),
    rated(7, 1, "bob"),
    rated(8, 2, "bob"),
    rated(9, None, "bob"),
]


def winrate(flags, out):
    assert dpo_jax(["dpo_jax", "winrate", *flags, f"--out={out}"]) == 0
    return json.loads((out / "winrate.json").read_text())


def test_published_annotations_by_hand(tmp_path):
    """Ann: 6.5 of 10; Bob: 6 of 9. They agree on 7: κ = (7/9 − 45/81)/(36/81) = .5.

    By chance 6/9·6/9 + 3/9·3/9 = 45/81.
    """
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps([*ANN, *BOB]))
    rows = annotations.read(file)
    policy = annotations.policy_of(rows, "")
    assert policy == "model"
    labels = annotations.by_annotator(rows)
    told = winrate(annotations.write(rows, policy, labels, tmp_path), tmp_path / "w")
    ann, bob = told["rows"]
    assert (ann["win_rate"], ann["judged"], ann["ties"]) == (0.65, 10, 1)
    assert bob["win_rate"] == pytest.approx(6 / 9)
    assert (bob["judged"], bob["absent"]) == (9, 1)
    (pair,) = told["agreement"]
    assert pair["raw"] == pytest.approx(7 / 9) and pair["count"] == 9
    assert pair["kappa"] == pytest.approx(0.5)


def test_people_are_counted_by_rating(tmp_path):
    """All 19 ratings; the second of a comparison is Bob's, whoever was first."""
    rows = [*BOB, *ANN]
    labels = annotations.by_rating(rows)
    assert [len(labels[name]) for name in labels] == [19, 10, 9]
    told = winrate(annotations.write(rows, "model", labels, tmp_path), tmp_path / "w")
    found = table.numbers({**told, "rows": [*told["rows"], judge_row()]}, "GPT-4 (S)")
    assert found["people with people"].kappa == pytest.approx(0.5)
    assert found["people with people"].mean == pytest.approx(7 / 9)
    # 5 of both, 2 of neither, ½ of the two that they split and of the tie
    assert found["people"].mean == pytest.approx((5 + 1 + 0.5) / 10)


def judge_row():
    return {"judge": "model", "win_rate": 0.5, "se": None, "judged": 10}


def test_agreement_is_that_of_ratings():
    """8 of 10 and 3 of 5: 11 of 15; κ weighs likewise, and none where none is known."""
    rows = [
        {
            "judge": "model",
            "other": "people_1.jsonl",
            "raw": 0.8,
            "kappa": 0.6,
            "count": 10,
        },
        {
            "judge": "model",
            "other": "people_2.jsonl",
            "raw": 0.6,
            "kappa": None,
            "count": 5,
        },
    ]
    found = table.agreement(rows)
    assert found.mean == pytest.approx(11 / 15) and found.count == 15
    assert found.kappa == 0.6
    assert found.se == pytest.approx(math.sqrt(11 / 15 * 4 / 15 / 15))
    assert math.isnan(table.agreement(rows[1:]).kappa)


@pytest.mark.parametrize(
    "content, said",
    [
        ("{", "cannot be read"),
        ("[]", "no list"),
        ("[3]", "row 1 is no object"),
        ('[{"instruction": "q", "output_1": "a", "preference": 1}]', "are due"),
        (json.dumps([rated(0, 3)]), "row 1: preference=3"),
        (json.dumps([rated(0, True)]), "preference=True"),
        (json.dumps([rated(0, "1")]), "preference='1'"),
    ],
)
def test_what_is_no_annotation_is_refused(content, said, tmp_path):
    file = tmp_path / "annotations.json"
    file.write_text(content)
    with pytest.raises(DataError, match=said):
        annotations.read(file)
    with pytest.raises(DataError, match="--policy='other'"):
        annotations.policy_of(ANN, "other")


SAID = {
    ("dpo", 0.25): {f"p{i}": f"good {i % 3}" for i in range(30)},
    ("ppo", 0.0): {f"p{i}": f"good {i % 2}" for i in range(30)},
}


def test_questions_are_drawn_once_in_either_order():
    """20 of 30 differ (i % 3 ≠ i % 2 in 4 of 6); 12 are asked, both orders occur."""
    columns = {"DPO": Column("dpo", 0.25, 12, 2)}
    asked = people.questions(SAID, columns)
    assert len({row["instruction"] for row in asked}) == len(asked) == 12
    assert asked == people.questions(SAID, columns)
    assert {row["generator_1"] for row in asked} == {"DPO", "PPO-0"}
    for row in asked:
        assert row["output_1"] != row["output_2"] and row["raters"] == 2
        ours = row["output_1" if row["generator_1"] == "DPO" else "output_2"]
        assert ours == SAID["dpo", 0.25][row["instruction"]]
    whole = people.questions(SAID, {"DPO": Column("dpo", 0.25, 99, 1)})
    assert len(whole) == 20


def test_simulated_raters_follow_the_law():
    """`superb` against `awful`: σ(4) = .982; two raters agree in .982² + .018²."""
    texts = {"instruction": "the film was", "output_1": "awful", "output_2": "superb"}
    answered = people.simulated([{**texts, "raters": 2}] * 2000)
    picks = [row["preference"] == 2 for row in answered]
    chance = 1 / (1 + math.exp(-4))
    assert sum(picks) / 4000 == pytest.approx(chance, abs=0.006)
    same = sum(a == b for a, b in zip(picks[::2], picks[1::2], strict=True)) / 2000
    assert same == pytest.approx(chance**2 + (1 - chance) ** 2, abs=0.012)


def test_the_full_tier_waits_for_its_people(tmp_path, capsys):
    rows = [
        {
            "policy": f"OUT/{trial}/export",
            "temperature": heat,
            "prompt": p,
            "text": text,
        }
        for (trial, heat), said in {**SAID, ("sft", 0.25): SAID["ppo", 0.0]}.items()
        for p, text in said.items()
    ]
    rows += [{**row, "temperature": 1.0} for row in rows if "ppo" in row["policy"]]
    file = tmp_path / "samples.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    parser = run.judged.parser(run.FIGURE)
    given = parser.parse_args(
        ["--tier=full", f"--out={tmp_path}", "--judge=m@http://h"]
    )
    given.annotations = None
    assert run.answers(given, [file]) is None
    assert "--annotations=FILE" in capsys.readouterr().out
    asked = json.loads((tmp_path / "questions.json").read_text())
    assert len(asked) == 20  # sft and ppo say what ppo says
    given.annotations = tmp_path / "people.json"
    answered = [{**row, "annotator": "a", "preference": 1} for row in asked]
    given.annotations.write_text(json.dumps(answered))
    found = run.answers(given, [file])
    assert found is not None and found == answered
    short, long = run.verdicts(given, found)
    assert "--prompt=summary" in short and "--prompt=concise_summary" in long
    judge = next(flag for flag in short if flag.startswith("--judge="))
    assert judge.endswith("people_1.jsonl,m@http://h")
    given.annotations.write_text(json.dumps([{**answered[0], "dataset": "else"}]))
    with pytest.raises(DataError, match="questions have DPO"):
        run.answers(given, [file])
