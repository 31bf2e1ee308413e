"""`bench`: look-alike rows of each benchmark in, scores and other tools' files out."""

import json

import pytest

from dpo_jax import cli


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def call(capsys, *flags):
    capsys.readouterr()
    code = cli.main(["dpo_jax", "bench", *map(str, flags)])
    return code, *capsys.readouterr()


def sample(prompt, text, policy="runs/dpo", temperature=0.0):
    row = {"policy": policy, "temperature": temperature, "prompt": prompt}
    return {**row, "text": text, "ended": True}


NULLS = dict.fromkeys(["keywords", "num_words", "relation", "forbidden_words"])
IFEVAL = [
    {
        "key": 1000,
        "prompt": "Say one thing",
        "instruction_id_list": [
            "punctuation:no_comma",
            "length_constraints:number_words",
        ],
        "kwargs": [NULLS, {**NULLS, "num_words": 3, "relation": "at least"}],
    },
    {
        "key": 1001,
        "prompt": "Say another",
        "instruction_id_list": ["keywords:existence"],
        "kwargs": [{**NULLS, "keywords": ["blue"]}],
    },
]


def test_ifeval_by_hand(capsys, tmp_path):
    """Three responses: all followed; a comma in line 1 of two, so loosely; none.

    By prompt 1 of 3, loosely 2; by instruction 2 + 1 + 0 of 5, loosely 2 + 2 + 0.
    """
    data = written(tmp_path / "input_data.jsonl", IFEVAL)
    chat = [{"role": "user", "content": "Say another"}]
    rows = [
        sample("Say one thing", "so it is"),
        sample("Say one thing", "Well, yes.\none two three"),
        sample(chat, "red"),
        sample("Say one thing", "so</t>a b c", "thinker", 0.7),
        sample("Say another", "it is blue, or so", "thinker", 0.7),
    ]
    files = written(tmp_path / "samples.jsonl", rows)
    flags = ["--name=ifeval", f"--data={data}", f"--samples={files}"]
    code, printed, err = call(capsys, *flags, f"--out={tmp_path}/out")
    assert code == 0, err
    first, other = json.loads((tmp_path / "out/ifeval.json").read_text())
    assert first["prompt_strict"] == pytest.approx(1 / 3)
    assert first["prompt_loose"] == pytest.approx(2 / 3)
    assert first["instruction_strict"] == pytest.approx(3 / 5)
    assert first["instruction_loose"] == pytest.approx(4 / 5)
    assert first["punctuation:no_comma/strict"] == 0.5
    assert first["prompts"] == 2 and first["responses"] == 3
    assert other["prompt_strict"] == 1.0 and "thinker" in printed
    thought = [*flags, "--end_of_thoughts=</t>", f"--out={tmp_path}/out"]
    assert call(capsys, *thought)[0] == 0
    first, other = json.loads((tmp_path / "out/ifeval.json").read_text())
    assert first["instruction_loose"] == 0.0  # thoughts that never end
    assert other["instruction_strict"] == pytest.approx(2 / 3)


def test_what_ifeval_cannot_check_is_named(capsys, tmp_path):
    wrong = {**IFEVAL[1], "kwargs": [NULLS]}
    data = written(tmp_path / "wrong.jsonl", [wrong])
    files = written(tmp_path / "samples.jsonl", [sample("Say another", "blue")])
    flags = ["--name=ifeval", f"--samples={files}", f"--out={tmp_path}/out"]
    code, _, err = call(capsys, *flags, f"--data={data}")
    assert code == 3 and f"{data}:1: keywords:existence takes ['keywords']" in err
    data = written(tmp_path / "more.jsonl", IFEVAL)
    code, _, err = call(capsys, *flags, f"--data={data}")
    assert code == 3 and "no answer to 'Say one thing'" in err
    short = written(tmp_path / "short.jsonl", [{"prompt": "Say another"}])
    code, _, err = call(capsys, *flags, f"--data={short}")
    assert code == 3 and "column 'instruction_id_list' is missing" in err


def test_files_as_alpaca_eval_reads_them(capsys, tmp_path):
    """A list of instruction, output and generator; the first answer to each."""
    rows = [sample("a?", "one"), sample("a?", "two"), sample("b?", "three")]
    files = written(tmp_path / "samples.jsonl", rows)
    code, printed, err = call(
        capsys, "--name=alpaca_eval", f"--samples={files}", f"--out={tmp_path}/out"
    )
    assert code == 0, err
    file = tmp_path / "out/runs__dpo_0/model_outputs.json"
    assert str(file) in printed
    assert json.loads(file.read_text()) == [
        {"instruction": "a?", "output": "one", "generator": "runs/dpo:0"},
        {"instruction": "b?", "output": "three", "generator": "runs/dpo:0"},
    ]


def test_files_as_arena_hard_reads_them(capsys, tmp_path):
    """A row a question, in its order: uid, model, and both messages."""
    questions = [
        {"uid": "u2", "category": "hard_prompt", "subcategory": "x", "prompt": "b?"},
        {"uid": "u1", "category": "hard_prompt", "subcategory": "x", "prompt": "a?"},
    ]
    data = written(tmp_path / "question.jsonl", questions)
    rows = [sample("a?", "one"), sample("b?", "three")]
    files = written(tmp_path / "samples.jsonl", rows)
    flags = ["--name=arena_hard", f"--samples={files}", f"--out={tmp_path}/out"]
    code, _, err = call(capsys, *flags, f"--data={data}")
    assert code == 0, err
    file = tmp_path / "out/model_answer/runs__dpo_0.jsonl"
    found = [json.loads(line) for line in file.open()]
    assert [row["uid"] for row in found] == ["u2", "u1"]
    assert found[0]["messages"] == [
        {"role": "user", "content": "b?"},
        {"role": "assistant", "content": {"answer": "three"}},
    ]
    assert found[0]["model"] == "runs/dpo:0" and found[0]["tstamp"] > 0
    assert found[0]["ans_id"] != found[1]["ans_id"]


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--name=ifevil"], "did you mean 'ifeval'"),
        (["--name=ifeval", "--samples=a.jsonl"], "needs --data"),
        (["--name=rewardbench2", "--data=a", "--samples=b"], "--samples is not used"),
        (["--name=alpaca_eval", "--data=a"], "--data is not used"),
        ([], "--name is missing"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, said, capsys):
    code, _, err = call(capsys, *flags, "--out=nowhere")
    assert code == 2 and said in err
