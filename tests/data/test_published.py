"""Every published set on a look-alike of its rows: schema, types and quirks.

The tokenizer has a token for each character, whose id is its code, so that ids are
written by hand as text; the chat template writes `role: content` and a line break. What
`show` prints of the quirkiest row is held, and what is dropped for which reason.
`pytest -s` prints the table.
"""

import gzip
import importlib
import json
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from row_cases import located

from dpo_jax import inspection
from dpo_jax.data.sources import published
from dpo_jax.data.sources.mapping import DROPS, faults_of
from dpo_jax.data.sources.published import PUBLISHED, REFUSED
from dpo_jax.errors import ConfigError, DataError
from dpo_jax.wiring import data as data_wiring
from dpo_jax.wiring import reading

EOS = "\x03"
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
OBJECTIVE = {  # kind of rows -> the objective and loss that read them
    "completions": ("sft", "sft"),
    "singles": ("unpaired", "kto"),
    "rankings": ("ranking", "plackett_luce"),
}


class Case(NamedTuple):
    """A look-alike, and what must come of it.

    Attributes:
      rows: of its training split, or of the only one.
      index: the quirkiest row, counted in what the mapping makes.
      prompt: its prompt, as text of the tokens.
      responses: likewise, best first, ends included.
      dropped: of all rows, by reason.
      kept: how many records.
      kind: of rows that the objective wants.
      ratings: of the responses, where a loss reads them.
    """

    rows: list[dict[str, Any]]
    index: int
    prompt: str
    responses: tuple[str, ...]
    dropped: dict[str, int]
    kept: int
    kind: str = "pairs"
    ratings: tuple[float, ...] = ()


def chat(*texts, system=""):
    roles = ("user", "assistant") * len(texts)
    turns = [{"content": t, "role": r} for t, r in zip(texts, roles, strict=False)]
    return [{"content": system, "role": "system"}] * bool(system) + turns


def feedback(*texts, chosen="yes", rejected="no", **more):
    """A row with the user's turns inside `chosen` and `rejected`."""
    return {
        "prompt": texts[-1],
        "chosen": chat(*texts, chosen),
        "rejected": chat(*texts, rejected),
    } | more


def scored(chosen, rejected):
    return {"score_chosen": chosen, "score_rejected": rejected}


def shp(history, a, b, labels, score_a, score_b):
    return {
        "post_id": "x",
        "domain": "askbaking_train",
        "history": history,
        "human_ref_A": a,
        "human_ref_B": b,
        "labels": labels,
        "score_A": score_a,
        "score_B": score_b,
        "score_ratio": max(score_a, score_b) / min(score_a, score_b),
    }


def summaries(batch, choice, *texts, **info):
    names = ("id", "post", "title", "subreddit", "site", "article")
    return {
        "info": {name: info.get(name) for name in names},
        "summaries": [{"text": t, "policy": "p", "note": None} for t in texts],
        "choice": choice,
        "worker": "w",
        "batch": batch,
        "split": "train",
        "extra": {"confidence": None},
    }


REDDIT = {"id": "t3", "post": "a\n\nb", "title": "t", "subreddit": "tifu"}
NEWS = {"id": "n", "title": "t", "site": "cnn", "article": "c\n\nd"}


def steer(preference, one="r1", two="r2", context=None):
    return {
        "domain": "general",
        "language": "english",
        "context": context or chat("q"),
        "response1": one,
        "response2": two,
        "overall_preference": preference,
        "individual_preference": [
            {"score": preference, "reasoning": "r", "feedback1": "f", "feedback2": "g"}
        ],
    }


def safe(better, safer, one="r0", two="r1"):
    return {
        "prompt": "q",
        "response_0": one,
        "response_1": two,
        "is_response_0_safe": True,
        "is_response_1_safe": False,
        "better_response_id": better,
        "safer_response_id": safer,
    }


def nectar(*ranks, text=""):
    answers = [
        {"answer": text or f"a{i}", "model": "m", "rank": r}
        for i, r in enumerate(ranks)
    ]
    return {
        "prompt": "\n\nHuman: q \n\nAssistant: ",
        "answers": answers,
        "turns": 1,
        "num_responses": len(ranks),
        "source": ["sharegpt"],
        "good_natured": True,
    }


def orca(system, question, chosen, rejected):
    return {"system": system, "question": question} | {
        "chosen": chosen,
        "rejected": rejected,
    }


def distilled(status, chosen_score, in_gsm8k_train, rejected="no"):
    return {
        "system": "",
        "input": "q",
        "chosen": "yes",
        "rejected": rejected,
        "generations": ["yes", "no"],
        "rating": [9.0, 5.0],
        "status": status,
        "chosen_score": chosen_score,
        "in_gsm8k_train": in_gsm8k_train,
    }


def sentiment(best, *samples):
    ids = {f"sample{i}": list(map(ord, text)) for i, text in enumerate(samples)}
    return {"query": list(map(ord, "q ")), **ids, "best": best}


def bench(subset, chosen, rejected):
    return {
        "id": "1",
        "prompt": "q",
        "chosen": chosen,
        "rejected": rejected,
        "num_correct": len(chosen),
        "num_incorrect": len(rejected),
        "total_completions": len(chosen) + len(rejected),
        "models": ["m"],
        "subset": subset,
    }


DIALOGUE = "\n\nHuman: q\n\nAssistant:"
USER = "user: q\nassistant: "
PAIR = (USER, ("yes\n", "no\n"))
TWO_TURNS = "user: a\nassistant: b\nuser: c\nassistant: "
SAME = feedback("q", chosen="no")
NULL = feedback("q") | {"rejected": chat("q", None)}
TURNS = feedback("a", "b", "c")
CASES = {
    "hh": Case(
        [
            {
                "chosen": f"{DIALOGUE} a{DIALOGUE} b",
                "rejected": f"{DIALOGUE} a{DIALOGUE}",
            },
            {"chosen": f"{DIALOGUE} b", "rejected": f"{DIALOGUE} c"},
            {"chosen": f"{DIALOGUE} b", "rejected": "\n\nHuman: z\n\nAssistant: c"},
            {"chosen": f"{DIALOGUE} b", "rejected": f"{DIALOGUE} b"},
        ],
        1,
        DIALOGUE,
        (f" b{EOS}", f" c{EOS}"),
        {"empty": 1, "identical": 1, "mismatched": 1},
        1,
    ),
    "shp": Case(
        [
            shp("q", "a", "b", 1, 4, 2),
            shp("q", "a", "b", 0, 2, 5),
            shp("q", "a", "b", 1, 3, 2),
            *[shp("q", "a", f"b{n}", 1, 9, 2) for n in range(4)],
        ],
        1,
        DIALOGUE,
        (f" b{EOS}", f" a{EOS}"),
        {
            "beyond 5 pairs of a prompt": 1,
            "filtered by score_chosen>=2*score_rejected": 1,
        },
        5,
        ratings=(5.0, 2.0),
    ),
    "tldr": Case(
        [
            summaries("batch3", 1, " s0", " s1", **REDDIT),
            summaries("cnndm0", 0, "s0", "s1", **NEWS),
            summaries("batch3", 0, " s", " s", **REDDIT),
            summaries("batch3", 0, " s", None, **REDDIT),
        ],
        1,
        "TITLE: t\n\nc\nd\n\nTL;DR:",
        (f" s0{EOS}", f" s1{EOS}"),
        {"identical": 1, "null": 1},
        2,
    ),
    "cnn_dailymail": Case(
        [
            {"article": "a\n\nb", "highlights": "c .\nd .", "id": "1"},
            {"article": "a", "highlights": "", "id": "2"},
        ],
        0,
        "a\nb\n\nTL;DR:",
        (f" c .\nd .{EOS}",),
        {"empty": 1},
        1,
        kind="completions",
    ),
    "imdb": Case(
        [
            {"text": "good<br />film", "label": 1},
            {"text": "bad", "label": 0},
            {"text": "", "label": 0},
        ],
        0,
        "g",  # nothing predicts the first token of a text
        (f"ood film{EOS}",),
        {"empty": 1},
        2,
        kind="completions",
    ),
    "ultrafeedback": Case(
        [
            feedback("q", messages=chat("q", "yes"), prompt_id="1", **scored(8.0, 5.0)),
            SAME | {"messages": chat("q", "no"), "prompt_id": "2"} | scored(7.0, 5.0),
            feedback("q", messages=chat("q", "yes"), prompt_id="3", **scored(5.0, 5.0)),
            NULL | {"messages": chat("q", "yes"), "prompt_id": "4"} | scored(7.0, 5.0),
            TURNS | {"messages": chat("a"), "prompt_id": "5"} | scored(3.0, 2.5),
        ],
        4,
        TWO_TURNS,
        ("yes\n", "no\n"),
        {"identical": 1, "null": 1, "tie": 1},
        2,
        ratings=(3.0, 2.5),
    ),
    "ultrafeedback_trl": Case(
        [
            {k: v for k, v in row.items() if k != "prompt"} | scored(8.0, s)
            for row, s in ((feedback("q"), 5.0), (TURNS, 1.0), (SAME, 2.0))
        ],
        1,
        TWO_TURNS,
        ("yes\n", "no\n"),
        {"identical": 1},
        2,
    ),
    "ultrafeedback_llamafactory": Case(
        [
            {"instruction": "q", "chosen": "yes", "rejected": "no"},
            {"instruction": "q", "chosen": "no", "rejected": "no"},
            {"instruction": "q", "chosen": "yes", "rejected": None},
        ],
        0,
        *PAIR,
        {"identical": 1, "null": 1},
        1,
    ),
    "ultrafeedback_armorm": Case(
        [
            feedback(
                "q", all_generated_responses=["yes", "no"], all_rm_scores=[0.1, 0.3]
            )
            | {"prompt": "q"},
            feedback("q", all_generated_responses=["a"], all_rm_scores=[0.2, 0.2]),
            SAME | {"all_generated_responses": ["no"], "all_rm_scores": [0.1, 0.3]},
        ],
        0,
        *PAIR,
        {"identical": 1, "tie": 1},
        1,
        ratings=(0.3, 0.1),
    ),
    "tulu3_8b": Case(
        [
            TURNS | {"id": "1", "source": "s"},
            SAME | {"id": "2", "source": "s"},
            NULL | {"id": "3", "source": "s"},
        ],
        0,
        TWO_TURNS,
        ("yes\n", "no\n"),
        {"identical": 1, "null": 1},
        1,
    ),
    "tulu3_405b": Case(
        [
            {"chosen_rating": high, "rejected_rating": low, "chosen_model": "m", **row}
            for high, low, row in (
                (5.0, 4.0, TURNS),
                (4.0, 4.0, TURNS),
                (5.0, 1.0, SAME),
            )
        ],
        0,
        TWO_TURNS,
        ("yes\n", "no\n"),
        {"identical": 1, "tie": 1},
        1,
        ratings=(5.0, 4.0),
    ),
    "tulu3_personas_if": Case(
        [
            row | {"id": "1", "constraints": ["c"], "chonsen_model": "m"}
            for row in (feedback("q"), SAME, TURNS)
        ],
        0,
        *PAIR,
        {"identical": 1},
        2,
    ),
    "helpsteer3": Case(
        [
            steer(-2),
            steer(0),
            steer(3, context=chat("a", "b", "c")),
            steer(1, "r", "r"),
        ],
        2,
        TWO_TURNS,
        ("r2\n", "r1\n"),
        {"identical": 1, "tie": 1},
        2,
        ratings=(3.0, 0.0),
    ),
    "skywork": Case(
        [
            {"chosen": row["chosen"], "rejected": row["rejected"], "source": "magpie"}
            for row in (feedback("q"), TURNS, SAME)
        ],
        1,
        TWO_TURNS,
        ("yes\n", "no\n"),
        {"identical": 1},
        2,
    ),
    "safe_rlhf": Case(
        [safe(1, 0), safe(0, 0), safe(0, 0, "r", "r")],
        0,
        USER,
        ("r1\n", "r0\n"),
        {"identical": 1},
        2,
    ),
    "safe_rlhf_safer": Case(
        [safe(1, 0), safe(0, 1), safe(0, 0, "r", "r")],
        0,
        USER,
        ("r0\n", "r1\n"),
        {"identical": 1},
        2,
    ),
    "nectar": Case(
        [nectar(2.0, 1.0, 3.0), nectar(1.0, 1.0, 2.0), nectar(1.0, 2.0, text="a")],
        0,
        "\n\nHuman: q \n\nAssistant:",
        (f" a1{EOS}", f" a0{EOS}", f" a2{EOS}"),
        {"identical": 1, "tie": 1},
        1,
        kind="rankings",
    ),
    "orca": Case(
        [
            orca("", "q", "yes", "no"),
            orca("s", "q", "yes", "no"),
            orca("", "q", "no", "no"),
            orca("", "q", "yes", ""),
        ],
        1,
        "system: s\nuser: q\nassistant: ",
        ("yes\n", "no\n"),
        {"empty": 1, "identical": 1},
        2,
    ),
    "orca_distilabel": Case(
        [
            distilled("tie", 9.0, False),
            distilled("unchanged", 9.0, False),
            distilled("swapped", 7.0, False),
            distilled("unchanged", 9.0, True),
            distilled("unchanged", 9.0, False, "yes"),
        ],
        1,
        *PAIR,
        {
            "filtered by chosen_score>=8": 1,
            "filtered by in_gsm8k_train=false": 1,
            "filtered by status!=tie": 1,
            "identical": 1,
        },
        1,
    ),
    "dpo_mix": Case(
        [
            {"chosen": row["chosen"], "rejected": row["rejected"], "dataset": "d"}
            | {"chosen_rating": high, "rejected_rating": 3.0}
            for row, high in ((feedback("q"), 5.0), (TURNS, 4.0), (TURNS, 3.0))
        ],
        1,
        TWO_TURNS,
        ("yes\n", "no\n"),
        {"tie": 1},
        2,
        ratings=(4.0, 3.0),
    ),
    "kto_mix": Case(
        [
            {"prompt": "q", "completion": chat("q", "yes"), "label": True},
            {"prompt": "c", "completion": chat("a", "b", "c", "d"), "label": False},
            {"prompt": "q", "completion": chat("q", ""), "label": False},
        ],
        1,
        TWO_TURNS,
        ("d\n",),
        {"empty": 1},
        2,
        kind="singles",
    ),
    "lm_human_sentiment": Case(
        [sentiment(2, "a", "b", "c", "c"), sentiment(0, "d", "e", "f", "g")],
        3,
        "q ",
        (f"d{EOS}", f"e{EOS}"),
        {"identical": 1},
        5,
    ),
    "reward_bench_2": Case(
        [
            bench("Focus", ["yes"], ["no", "never", "nay"]),
            bench("Ties", ["yes", "yes!"], ["no"]),
            bench("Math", ["yes"], ["yes", "no"]),
        ],
        1,
        USER,
        ("yes\n", "never\n"),
        {"filtered by subset!=Ties": 2, "identical": 1},
        4,
    ),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Saves a tokenizer of characters; id 262 is GPT-2's, whose ids it claims."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {chr(i): i for i in range(128)}
    vocabulary |= {f"<{i}>": i for i in range(128, 262)} | {"Ġthe": 262}
    bare = Tokenizer(models.WordLevel(vocabulary, unk_token="\x00"))
    split = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    bare.pre_tokenizer = split  # pyright: ignore
    bare.decoder = decoders.Fuse()  # pyright: ignore
    made = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token=EOS)
    made.chat_template = TEMPLATE
    folder = tmp_path_factory.mktemp("characters")
    made.save_pretrained(folder)
    return str(folder)


def save(folder, name, case):
    """Writes a look-alike as the hub has it: split names, shards, subfolders."""
    row = PUBLISHED[name]
    split = row.splits["train"] or row.splits["eval"]
    if row.file:
        path = folder / "offline_5k.json"
        path.write_text(json.dumps(case.rows))
        return str(path)
    folder = folder / (row.config or "data")
    folder.mkdir()
    if name in ("hh", "helpsteer3"):
        lines = "".join(json.dumps(r) + "\n" for r in case.rows).encode()
        (folder / f"{split}.jsonl.gz").write_bytes(gzip.compress(lines))
        return str(folder.parent)
    half = len(case.rows) // 2
    schema = pyarrow.Table.from_pylist(case.rows).schema
    for shard, rows in enumerate((case.rows[:half], case.rows[half:])):
        table = pyarrow.Table.from_pylist(rows, schema)
        pyarrow.parquet.write_table(
            table, folder / f"{split}-0000{shard}-of-00002.parquet"
        )
    other = pyarrow.table({"of": ["another split"]})
    pyarrow.parquet.write_table(other, folder / "validation_gen-00000-of-00001.parquet")
    return str(folder.parent)


def config_of(name, case, path, tokenizer):
    config = importlib.import_module("dpo_jax.configs.quickstart").get_config()
    only_eval = not PUBLISHED[name].splits["train"]
    config.data.train = f"{name}:test" if only_eval else name
    config.data.path, config.tokenizer.path = path, tokenizer
    config.data.eval, config.data.limit, config.eval.rollouts = "", 0, 0
    config.data.max_tokens, config.data.max_prompt_tokens = 400, 300
    config.objective, config.loss.name = OBJECTIVE.get(
        case.kind, ("preference", "mmpo" if case.ratings else "dpo")
    )
    if case.ratings:
        config.loss.mmpo_gamma = 1.0
    if case.kind == "completions":
        config.ref.mode, config.loss.beta = "none", 0.1
    return config


def ids(text):
    return list(map(ord, text))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_quirkiest_row_of_each_set(name, tokenizer, tmp_path):
    case = CASES[name]
    config = config_of(name, case, save(tmp_path, name, case), tokenizer)
    shown = inspection.tokenized(config, case.index)
    found, text = shown.record, inspection.as_text(shown)
    assert [int(i) for i in found.prompt] == ids(case.prompt)
    assert [list(map(int, r)) for r in found.responses] == [*map(ids, case.responses)]
    for response in case.responses:
        mask = "0" * len(case.prompt) + "1" * len(response)
        assert f"mask  {mask}  (boundary at {len(case.prompt)})" in text
    data = read(config)
    report = data.report["train"]
    assert report["dropped"] == case.dropped
    assert report["kept"] == len(data.train) == case.kept
    if case.ratings:
        np.testing.assert_allclose(found.response["ratings"], case.ratings, rtol=1e-6)
    texts = " > ".join(map(repr, case.responses))
    sizes = ", ".join(f"1×{len(response)}" for response in case.responses)
    print(f"\n{name}: row {case.index}, {case.prompt!r}, {texts}")
    print(
        f"  ids as written, mask 0×{len(case.prompt)} and {sizes}; {report['summary']}"
    )


def test_the_table_is_whole():
    assert CASES.keys() == PUBLISHED.keys()
    assert set(published.ALIKE.values()) <= PUBLISHED.keys()
    for name, row in PUBLISHED.items():
        assert faults_of(row.columns, name) == []
        assert row.about and (row.hub or row.file) and any(row.splits.values())
        assert set(row.columns.drop.split(",")) <= set(DROPS)
        assert published.name_of(name) == name
        assert not row.hub or PUBLISHED[published.name_of(row.hub)].hub == row.hub


def test_a_contaminated_set_is_refused_by_name():
    for source in REFUSED:
        with pytest.raises(ConfigError, match=f"'{source}' is contaminated.*take Sky"):
            located(source)


@pytest.mark.parametrize(
    "name, split, said",
    [
        (
            "tulu3_8b",
            "eval",
            r"no split of its own for eval; .* tulu3_8b:train\[:200\]",
        ),
        (
            "reward_bench_2",
            "train",
            r"for train; name rows of .* reward_bench_2:test\[",
        ),
    ],
)
def test_a_set_without_the_split_says_what_to_write(name, split, said):
    with pytest.raises(ConfigError, match=said):
        located(name, split=split)


def test_rows_for_another_objective_name_it(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "label": 1}\n')
    with pytest.raises(ConfigError, match="'imdb' holds .*set objective='sft'"):
        located("imdb", path=str(path), kind="pairs")
    with pytest.raises(
        ConfigError, match="'argilla.kto-mix-15k' holds .*objective='unpaired'"
    ):
        located("argilla/kto-mix-15k", path=str(path), kind="pairs")


def test_a_hub_id_has_the_mapping_of_its_name(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(TURNS) + "\n")
    for source in ("allenai/llama-3.1-tulu-3-70b-preference-mixture", "tulu3_8b"):
        ((_, row),) = located(source, path=str(path))
        assert set(row) == {"chosen", "rejected"}


def test_the_hub_is_asked_for_configuration_and_split(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(name, config, split):
        asked.append((name, config, split))
        return datasets.Dataset.from_list([steer(1)])

    monkeypatch.setattr(datasets, "load_dataset", load)
    for name in ("helpsteer3", "nvidia/HelpSteer3", "ultrafeedback"):
        located(name, split="eval")
    assert list(located("helpsteer3:train"))[0][0] == "nvidia/HelpSteer3:train[0]"
    helpsteer = ("nvidia/HelpSteer3", "preference")
    assert asked == [
        (*helpsteer, "validation"),
        (*helpsteer, "validation"),
        ("HuggingFaceH4/ultrafeedback_binarized", None, "test_prefs"),
        (*helpsteer, "train"),
    ]


def test_one_folder_holds_copies_of_several_sets(tmp_path):
    for name in ("skywork", "Anthropic/hh-rlhf"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "train.jsonl").write_text(json.dumps(TURNS) + "\n")
    for name, folder in (("skywork", "skywork"), ("hh", "Anthropic/hh-rlhf")):
        ((where, _),) = located(name, path=str(tmp_path))
        assert where == f"{tmp_path}/{folder}/train.jsonl:1"


def test_saved_sets_are_read_by_their_own_split_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    both = {
        "train_prefs": datasets.Dataset.from_list([TURNS | scored(2.0, 1.0)]),
        "test_prefs": datasets.Dataset.from_list([feedback("q") | scored(2.0, 1.0)]),
        "train_sft": datasets.Dataset.from_list([SAME | scored(2.0, 1.0)]),
    }
    datasets.DatasetDict(both).save_to_disk(tmp_path / "uf")
    for split, texts in (("train", 4), ("eval", 2)):
        ((_, row),) = located("ultrafeedback", split=split, path=str(tmp_path / "uf"))
        assert len(row["chosen"]) == texts and row["chosen"][-1]["content"] == "yes"


def test_faults_that_a_row_does_not_name_are_errors(tmp_path):
    """A user's turn at the end is `wrong role`, dropped; a number as text is not."""
    path = tmp_path / "train.jsonl"
    rows = [TURNS, TURNS | {"chosen": chat("a")}, TURNS | {"chosen": 3}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    from dpo_jax.data.records import Reading

    drops = PUBLISHED["skywork"].columns.drops()
    options = {"kind": "pairs", "format": "", "on_bad_row": "error", "drops": drops}
    two = list(located("skywork", path=str(path)))[:2]
    reading = Reading(iter(two), **options)
    assert len(list(reading)) == 1 and reading.counts.dropped == {"wrong role": 1}
    said = r"2 of 3 \(1 wrong role, 1 wrong type\): \S+:3: column 'chosen' is int"
    with pytest.raises(DataError, match=said):
        list(Reading(located("skywork", path=str(path)), **options))


def read(config):
    tokenizer = data_wiring.load_tokenizer(
        config.tokenizer.path, config.model, config.data.train
    )
    return data_wiring.load_data(reading.request_of(config), tokenizer)


def loaded(config):
    return read(config).report["train"]


def test_a_published_set_starts_where_a_file_of_the_same_rows_does_not(
    tokenizer, tmp_path
):
    """Behind a prompt of 40 tokens 2 are left, which `yes` and `yet` share."""
    rows = [TURNS, feedback("a", "b", "c", chosen="yes", rejected="yet"), SAME]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    case = CASES["skywork"]
    config = config_of("skywork", case, str(path), tokenizer)
    config.data.max_tokens, config.data.max_prompt_tokens = 42, 41
    assert config.data.on_bad_row == "error"
    cut = "identical after cutting (data.max_tokens)"
    assert loaded(config)["dropped"] == {"identical": 1, cut: 1}
    config.data.train, config.data.path = str(path), ""
    config.data.columns.prompt = "implicit"
    with pytest.raises(DataError, match=r"bad rows: 1 of 3 \(1 identical\)"):
        loaded(config)
    config.data.columns.drop = "identical"
    assert loaded(config)["dropped"] == {"identical": 1, cut: 1}


def test_show_passes_over_rows_that_the_set_drops(tokenizer, tmp_path):
    """Row 1 of the helpful steps is a tie; row 2 is shown, and says that it is."""
    case = CASES["helpsteer3"]
    path = save(tmp_path, "helpsteer3", case)
    config = config_of("helpsteer3", case, path, tokenizer)
    shown = inspection.tokenized(config, 1)
    assert shown.record.index == 2 and list(shown.record.prompt) == ids(TWO_TURNS)
    with pytest.raises(DataError, match="has no such row"):
        inspection.tokenized(config, 3)


def test_what_the_user_says_counts_before_what_the_row_says(tokenizer, tmp_path):
    case = CASES["safe_rlhf"]
    path = save(tmp_path, "safe_rlhf", case)
    config = config_of("safe_rlhf", case, path, tokenizer)
    config.data.columns.pair = "index:safer_response_id"
    shown = inspection.tokenized(config, 0)
    assert list(map(int, shown.record.responses[0])) == ids("r0\n")


def test_tokens_are_kept_by_file_slice_and_mapping(tokenizer, tmp_path):
    case = CASES["skywork"]
    config = config_of("skywork", case, save(tmp_path, "skywork", case), tokenizer)
    config.data.cache_dir = str(tmp_path / "cache")
    found = []
    for source, drop in (("skywork", ""), ("skywork[:1]", ""), ("skywork[1:]", "tie")):
        config.data.train, config.data.columns.drop = source, drop
        try:
            found.append(loaded(config)["read"])
        except DataError:
            found.append(0)
    assert found == [3, 1, 0]
    config.data.train, config.data.columns.drop = "skywork", ""
    rows = [TURNS, TURNS]
    shard = next((tmp_path / "data").glob("train-00001*"))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), shard)
    assert loaded(config)["read"] == 3 and loaded(config)["dropped"] == {}
