"""`winrate`: files of samples in, tables out, by judges of every kind."""

import csv
import json

import pytest

from dpo_jax import cli
from dpo_jax.cli import winrate as verb

KEY = "sk-nobody-may-see-this-42"
QUESTIONS = [f"the film {i}" for i in range(6)]
GOOD, BAD = " great great", " awful awful awful"


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def samples(path, good, policy="dpo", temperature=0.7, n=1):
    """`good` of the six prompts are answered well; with n > 1 only by one of n."""
    rows = []
    for i, prompt in enumerate(QUESTIONS):
        for sample in range(n):
            text = GOOD if i < good and sample == i % n else BAD
            row = {"policy": policy, "temperature": temperature, "index": i}
            rows.append(
                {**row, "prompt": prompt, "text": text + f" {sample}", "ended": True}
            )
    return written(path, rows)


@pytest.fixture
def baseline(tmp_path):
    rows = [
        {"prompt": prompt, "chosen": (GOOD if i % 2 else BAD) + " ref", "rejected": "x"}
        for i, prompt in enumerate(QUESTIONS)
    ]
    return written(tmp_path / "chosen.jsonl", rows)


def call(capsys, *flags):
    capsys.readouterr()
    code = cli.main(["dpo_jax", "winrate", *map(str, flags)])
    return code, *capsys.readouterr()


def run(capsys, tmp_path, files, against, judge, *more):
    out = tmp_path / "out"
    flags = [f"--samples={files}", f"--against={against}", f"--judge={judge}"]
    code, printed, err = call(capsys, *flags, f"--out={out}", *more)
    assert code == 0, err
    return json.loads((out / "winrate.json").read_text()), printed, out


def test_temperatures_and_best_of_by_the_embedded_truth(capsys, tmp_path, baseline):
    """Four of six are good, of bad, good, …: 1, ½, 1, ½, ½, 0, in all 3.5 of 6.

    At 1.0 one of two samples of each is good: mean of ¾ and ¼; the best of two is good.
    """
    cold = samples(tmp_path / "cold.jsonl", 4, temperature=0.0)
    hot = samples(tmp_path / "hot.jsonl", 6, temperature=1.0, n=2)
    told, printed, out = run(
        capsys, tmp_path, f"{cold},{hot}", baseline, "sentiment", "--best_by=sentiment"
    )
    rows = [(r["temperature"], r["best_of"], r["win_rate"]) for r in told["rows"]]
    assert rows == [
        (0.0, 1, pytest.approx(3.5 / 6)),
        (1.0, 1, pytest.approx((0.75 * 3 + 0.25 * 3) / 6)),
        (1.0, 2, pytest.approx((1 * 3 + 0.5 * 3) / 6)),
    ]
    first, _, best = told["rows"]
    assert (first["wins"], first["ties"], first["losses"]) == (2, 3, 1)
    assert best["chosen_by"] == best["judge"] == "sentiment"
    assert "2 by sentiment" in printed and "0.58 ± 0.15" in printed
    table = list(csv.DictReader((out / "table.csv").open()))
    assert float(table[0]["win_rate"]) == pytest.approx(3.5 / 6)
    assert (out / "table.md").read_text().startswith(f"**Win rate against {baseline}")
    assert told["by_length"][0]["policy"] == "dpo:0"


def test_against_another_policy_and_two_judges_agree_or_not(capsys, tmp_path):
    own = tmp_path / "own.py"
    own.write_text(
        "def shorter(completions, **columns):\n"
        "    return [-float(len(text)) for text in completions]\n"
    )
    one = samples(tmp_path / "one.jsonl", 6)
    other = samples(tmp_path / "other.jsonl", 0, policy="sft")
    judges = "sentiment,shorter"
    told, printed, _ = run(
        capsys, tmp_path, f"{one},{other}", "sft", judges, f"--rewards={own}"
    )
    assert [row["win_rate"] for row in told["rows"]] == [1.0, 1.0]
    assert told["agreement"] == [
        {"judge": "sentiment", "other": "shorter", "raw": 1, "kappa": None, "count": 6}
    ]
    assert "Agreement of judges" in printed
    back, _, _ = run(capsys, tmp_path, f"{one},{other}", "dpo", "sentiment")
    assert [(r["policy"], r["win_rate"]) for r in back["rows"]] == [("sft", 0.0)]


def test_labels_of_people(capsys, tmp_path, baseline):
    files = samples(tmp_path / "one.jsonl", 4)
    answers = [json.loads(line) for line in open(files)]
    theirs = [json.loads(line) for line in open(baseline)]
    rows = [
        {
            "prompt": a["prompt"],
            "first": b["chosen"],
            "second": a["text"],
            "verdict": "second" if i < 3 else "tie",
        }
        for i, (a, b) in enumerate(zip(answers[:5], theirs, strict=False))
    ]
    labels = written(tmp_path / "labels.jsonl", rows)
    flags = [f"--samples={files}", f"--against={baseline}", f"--judge={labels}"]
    code, _, err = call(capsys, *flags, f"--out={tmp_path}/out")
    assert code == 3 and "no verdict on 1 of 6" in err and "2 no label" in err
    told, _, _ = run(capsys, tmp_path, files, baseline, labels, "--max_absent=0.2")
    row = told["rows"][0]
    assert row["judge"] == "labels.jsonl" and row["absent"] == 1
    assert row["win_rate"] == pytest.approx((3 + 0.5 * 2) / 5)


def test_chosen_responses_of_the_data(capsys, tmp_path, baseline):
    files = samples(tmp_path / "one.jsonl", 4)
    told, _, _ = run(
        capsys, tmp_path, files, "chosen", "sentiment", f"--config.data.eval={baseline}"
    )
    assert told["rows"][0]["win_rate"] == pytest.approx(3.5 / 6)
    assert told["rows"][0]["against"] == "chosen"
    flags = [f"--samples={files}", "--judge=sentiment", f"--out={tmp_path}/out"]
    code, _, err = call(capsys, *flags, "--config.data.eval=")
    assert code == 3 and "--against=chosen: data.eval='' holds none" in err


def test_a_served_judge_its_key_and_a_second_launch(
    capsys, tmp_path, baseline, monkeypatch
):
    """The key is in no file, message or output; what is kept is not asked again."""
    pytest.importorskip("openai")
    from tests.evals.judge_stub import longer, serving

    monkeypatch.setenv(verb.KEY, KEY)
    files = samples(tmp_path / "one.jsonl", 4)
    with serving(longer) as (stub, url):
        given = files, baseline, f"stub@{url}"
        more = ("--revision=abc", "--prompt=helpful")
        told, printed, out = run(capsys, tmp_path, *given, *more)
        assert len(stub.asked) == 12 and KEY in stub.headers[0]["authorization"]
        again, _, _ = run(capsys, tmp_path, *given, *more)
        assert len(stub.asked) == 12 and again == told
        stub.reply = lambda text: 401
        flags = [f"--samples={files}", f"--against={baseline}", f"--judge=stub@{url}"]
        code, said, err = call(capsys, *flags, f"--out={out}", "--debug")
        assert code == 2 and "***" in err and "(401)" in err
        assert KEY not in said + err + printed
    rows = [json.loads(line) for line in (out / "verdicts.jsonl").open()]
    assert len(rows) == 12 and rows[0]["judge"] == "stub"
    assert rows[0]["revision"] == "abc" and rows[0]["served"] == "stub-0613"
    found = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not any(KEY.encode() in file.read_bytes() for file in found)
    offline, _, _ = run(
        capsys, tmp_path, *given, *more, "--retries=0", "--max_absent=0"
    )
    assert offline == told


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--judge=sentiment"], "--samples is missing"),
        (["--samples=a.jsonl"], "--judge is missing"),
        (["--samples=a.jsonl", "--judge=length,length"], "names one twice"),
        (["--samples=a.jsonl", "--judge=a@http://x:y@host/v1"], "holds a password"),
        (["--samples=a.jsonl", "--judge=length", "--max_absent=2"], "is no share"),
        (["--samples=a.jsonl", "--judge=length", "--concurrency=0"], "must be ≥ 1"),
    ],
)
def test_what_makes_no_sense_is_refused(flags, said, capsys):
    code, _, err = call(capsys, *flags, "--out=nowhere")
    assert code == 2 and said in err


def test_a_key_goes_to_one_server(capsys, monkeypatch):
    monkeypatch.setenv(verb.KEY, KEY)
    judges = "--judge=a@http://one/v1,b@http://two/v1"
    code, _, err = call(capsys, "--samples=a.jsonl", judges, "--out=nowhere")
    assert code == 2 and "names 2 servers" in err and KEY not in err


def test_a_server_is_asked_by_one_process(capsys, monkeypatch):
    monkeypatch.setattr(cli.parent, "split", lambda: None)
    monkeypatch.setenv("DPO_JAX_DISTRIBUTED", "localhost:1,2,0")
    flags = ["--samples=a.jsonl", "--judge=a@http://one/v1", "--out=nowhere"]
    code, _, err = call(capsys, *flags)
    assert code == 2 and "ask it from one process" in err


def test_what_does_not_fit_is_named(capsys, tmp_path, baseline):
    files = samples(tmp_path / "one.jsonl", 4)
    flags = [f"--samples={files}", f"--out={tmp_path}/out", "--judge=sentiment"]
    code, _, err = call(capsys, *flags, "--against=sft")
    assert code == 3 and "Known: chosen, dpo:0.7" in err
    short = written(tmp_path / "short.jsonl", [{"prompt": "p", "text": "t"}])
    code, _, err = call(capsys, *flags, f"--against={short}")
    assert code == 3 and "no answer to the prompt 'the film 0' of dpo:0.7" in err
    code, _, err = call(capsys, *flags[:-1], "--judge=lenght", f"--against={baseline}")
    assert code == 2 and "did you mean 'length'" in err
    bad = written(tmp_path / "bad.jsonl", [{"prompt": "p", "words": "t"}])
    code, _, err = call(capsys, f"--samples={bad}", *flags[1:], f"--against={baseline}")
    assert code == 3 and f"{bad}:1: column 'text' is missing" in err
    twin = samples(tmp_path / "twin.jsonl", 4)
    more = [f"--samples={files},{twin}", *flags[1:], f"--against={baseline}"]
    code, _, err = call(capsys, *more)
    assert code == 3 and "'dpo:0.7' stands in" in err
