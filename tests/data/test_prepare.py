"""From files of each kind to a batch, with an account of every row."""

import functools
import json
import math

import numpy as np
import pytest
from row_cases import located

from dpo_jax.data import tokenize
from dpo_jax.data.loader import Loader, Settings
from dpo_jax.data.mismatch import mismatch
from dpo_jax.data.prepare import Source, prepare
from dpo_jax.data.records import Reading
from dpo_jax.data.tokens import fingerprint
from dpo_jax.errors import DataError

transformers = pytest.importorskip("transformers")

WORDS = ("<pad>", "<eos>", "[u]", "[a]", *"abcdefgh")
EOS, USER, BOT = 1, 2, 3
TEMPLATE = (
    "{% for m in messages %}{{ '[u]' if m.role == 'user' else '[a]' }}{{ m.content }}"
    "{% if m.role == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[a]{% endif %}"
)
TOKENIZING = {
    "join": "separate",
    "chat_template": None,
    "max_tokens": 8,
    "max_prompt_tokens": 4,
    "truncate_prompt": "keep_end",
    "truncate_response": "rest",
}


def user(text):
    return {"role": "user", "content": text}


def bot(text):
    return {"role": "assistant", "content": text}


def columns(records):
    """Names the columns of responses that all records have."""
    (names,) = {tuple(record.response) for record in records}
    return names


@pytest.fixture(scope="module")
def tokenizer():
    """One token a letter."""
    from tokenizers import Tokenizer, models

    bare = Tokenizer(models.BPE({word: i for i, word in enumerate(WORDS)}, []))
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bare,
        pad_token="<pad>",
        eos_token="<eos>",
        additional_special_tokens=["[u]", "[a]"],
    )
    made.chat_template = TEMPLATE
    return made


@pytest.fixture
def read(tmp_path, tokenizer):
    """Writes rows to a file (.jsonl, or Parquet) and prepares them."""

    def go(kind, *rows, ending=".jsonl", on_bad_row="error", reads_ratings=True):
        path = tmp_path / f"rows{ending}"
        if ending == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        bad = {"on_bad_row": on_bad_row}
        source = Source(
            functools.partial(located, str(path)),
            functools.partial(
                Reading, kind=kind, format="", reads_ratings=reads_ratings, **bad
            ),
            functools.partial(
                tokenize.tokenize, tokenizer=tokenizer, **TOKENIZING, **bad
            ),
            apart=kind == "singles",
        )
        found = prepare(source)
        assert found.fingerprint == fingerprint(list(found.records))
        return found[:2]

    return go


def ids(text):
    return [WORDS.index(letter) for letter in text]


def plain(record):
    """Returns a record's text as lists of ids."""
    return record.prompt.tolist(), [r.tolist() for r in record.responses]


KTO_MIX = [
    {"prompt": [user("ab")], "completion": [bot("cd")], "label": True},
    {"prompt": [user("a")], "completion": [bot("e")], "label": False},
]
ULTRAFEEDBACK = [
    {
        "chosen": [user("ab"), bot("cd")],
        "rejected": [user("ab"), bot("e")],
        "score_chosen": 8.5,
        "score_rejected": 6.0,
    },
    {
        "chosen": [user("b"), bot("c")],
        "rejected": [user("b"), bot("h")],
        "score_chosen": 7.0,
        "score_rejected": 7.0,
    },
]


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_rows_like_those_of_the_kto_mix(read, ending):
    """A chat renders as [u]ab[a]cd<eos>, and its prompt as [u]ab[a]."""
    found, report = read("singles", *KTO_MIX, ending=ending)
    assert [plain(r) for r in found] == [
        ([USER, *ids("ab"), BOT], [[*ids("cd"), EOS]]),
        ([USER, *ids("a"), BOT], [[*ids("e"), EOS]]),
    ]
    assert [(r.index, r.response["labels"]) for r in found] == [(0, (1,)), (1, (-1,))]
    assert all(r.comparisons == () and not r.ranked for r in found)
    assert report["labels"] == {"desirable": 1, "undesirable": 1}
    assert columns(found) == ("labels",)


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_rows_like_those_of_ultrafeedback(read, ending):
    found, report = read("pairs", *ULTRAFEEDBACK, ending=ending)
    prompt = [USER, *ids("ab"), BOT]
    assert plain(found[0]) == (prompt, [[*ids("cd"), EOS], [*ids("e"), EOS]])
    assert [r.response["ratings"] for r in found] == [(8.5, 6.0), (7.0, 7.0)]
    assert [r.comparisons for r in found] == [((0, 1),)] * 2
    assert columns(found) == ("ratings",) and "labels" not in report


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_rankings_are_kept_best_first(read, ending):
    strings = {"prompt": "ab", "responses": ["c", "d", "e"], "ranking": [1, 2, 0]}
    (first,), _ = read("rankings", strings, ending=ending)
    assert plain(first) == (ids("ab"), [[*ids(text), EOS] for text in "dec"])
    assert first.ranked and first.comparisons == ((0, 1), (0, 2), (1, 2))
    chats = {
        "prompt": [user("a")],
        "responses": [[bot("c")], [bot("d")]],
        "ranking": [1, 0],
    }
    (second,), _ = read("rankings", chats, ending=ending)
    assert plain(second) == ([USER, *ids("a"), BOT], [[*ids(x), EOS] for x in "dc"])
    assert second.ranked and second.comparisons == ((0, 1),)


def test_pairs_are_cut_as_pairs_then_taken_apart(read):
    """6 + 5 tokens with the longer response, of 8: the prompt keeps its last 4."""
    rows = [
        {"prompt": "abcdef", "chosen": "g", "rejected": "hhhh", "margin": 2},
        {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1},
    ]
    found, report = read("singles", *rows)
    assert [plain(r) for r in found[:2]] == [
        (ids("cdef"), [[*ids("g"), EOS]]),
        (ids("cdef"), [ids("hhhh")]),
    ]
    assert [r.index for r in found] == [0, 0, 1, 1]
    assert [r.response["labels"] for r in found] == [(1,), (-1,)] * 2
    assert [r.response["ratings"] for r in found] == [(2.0,), (0.0,), (1.0,), (0.0,)]
    assert report["read"] == report["kept"] == 2
    assert report["labels"] == {"desirable": 2, "undesirable": 2}
    pairs, _ = read("pairs", *rows)
    assert [plain(r)[1] for r in pairs] == [
        [plain(found[at])[1][0], plain(found[at + 1])[1][0]] for at in (0, 2)
    ]


def test_bad_rows_are_counted_and_named_with_their_line(read):
    good = {"prompt": "a", "completion": "b", "label": True}
    bad = [good | {"label": None}, good | {"label": 3}, good | {"completion": ""}]
    found, report = read("singles", good, *bad, on_bad_row="drop")
    assert len(found) == 1
    assert report["dropped"] == {"empty": 1, "null": 1, "wrong label": 1}
    assert report["summary"].startswith("dropped 3 (1 empty, 1 null, 1 wrong label);")
    with pytest.raises(DataError, match=r"rows\.jsonl:2: column 'label' is null"):
        read("singles", good, *bad)
    score = {"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 1}
    both = score | {"score_rejected": 2}
    with pytest.raises(DataError, match=r"jsonl:2: column 'score_rejected' is missing"):
        read("pairs", both, score)
    ranked = {"prompt": "a", "responses": ["b", "c"], "ranking": [0, 2]}
    with pytest.raises(DataError, match=r"jsonl:1: column 'ranking' is \[0, 2\]"):
        read("rankings", ranked)


def test_a_nan_rating_in_a_file_is_refused(read):
    """C2: Python writes NaN into JSON, and Parquet holds it."""
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1.0}
    bad = row | {"margin": float("nan")}
    with pytest.raises(DataError, match=r"rows\.jsonl:2: column 'margin' is nan"):
        read("pairs", row, bad)
    with pytest.raises(DataError, match=r"parquet\[1\]: column 'margin' is nan"):
        read("pairs", row, bad, ending=".parquet")
    with pytest.raises(DataError, match=r"parquet\[1\]: column 'margin' is null"):
        read("pairs", row, row | {"margin": None}, ending=".parquet")


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_ratings_that_no_loss_reads_may_lack(read, ending):
    """Sets with and without scores in one file (trl#5539); a NaN in another column."""
    rated = {"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 2.0}
    rated |= {"score_rejected": 1.0, "other": 0.5}
    bare = rated | dict.fromkeys(("score_chosen", "score_rejected"))
    bare |= {"other": float("nan")}
    unread = ["other", "score_chosen", "score_rejected"]
    with pytest.raises(DataError, match="'score_chosen' is null"):
        read("pairs", rated, bare, ending=ending)
    records, report = read("pairs", rated, bare, ending=ending, reads_ratings=False)
    np.testing.assert_array_equal(
        records.response["ratings"], [2, 1, math.nan, math.nan]
    )
    assert report["unread_columns"] == unread and report["kept"] == 2
    assert report["summary"].endswith("; columns not read: " + ", ".join(unread))
    records, _ = read("pairs", bare, bare, ending=ending, reads_ratings=False)
    assert records.response == {}
    kept, _ = read("pairs", rated, rated, ending=ending, reads_ratings=False)
    again, report = read("pairs", rated, rated, ending=ending)
    assert fingerprint(kept) == fingerprint(again)
    assert report["unread_columns"] == ["other"]


def test_singles_with_mismatched_responses_in_a_batch(read):
    """[u]ab[a] cd<eos>, then e<eos>; [u]a[a] e<eos>, then cd<eos>, in rows of 12."""
    found, _ = read("singles", *KTO_MIX)
    join = functools.partial(mismatch, max_tokens=TOKENIZING["max_tokens"])
    settings = Settings(2, 1, "prefix_shared", 12, 1)
    batch = Loader(found, [[0, 1]], settings, join).batch_at(0)
    np.testing.assert_array_equal(
        batch.tokens[0],
        [
            [USER, *ids("ab"), BOT, *ids("cd"), EOS, *ids("e"), EOS, 0, 0, 0],
            [USER, *ids("a"), BOT, *ids("e"), EOS, *ids("cd"), EOS, 0, 0, 0, 0],
        ],
    )
    np.testing.assert_array_equal(batch.response["labels"], [[[1, 0], [-1, 0]]])
    np.testing.assert_array_equal(batch.ids, [[[0, 0], [1, 1]]])
    np.testing.assert_array_equal(batch.ends, [[[6, 8], [4, 7]]])
    assert (batch.pairs == -1).all() and batch.groups is None


def test_pairs_with_ratings_in_a_batch(read):
    found, _ = read("pairs", *ULTRAFEEDBACK)
    batch = Loader(found, [[0, 1]], Settings(2, 1, "padded", 0, 1)).batch_at(0)
    np.testing.assert_array_equal(
        batch.response["ratings"], [[[8.5], [6.0], [7.0], [7.0]]]
    )
    assert "labels" not in batch.response and batch.groups is None


def test_the_fingerprint_covers_judgements_but_not_those_of_plain_pairs(read):
    """Its value for a plain pair is that of earlier versions."""
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    (one,), _ = read("pairs", *rows)
    assert one.comparisons == ((0, 1),)
    plain = fingerprint([one])
    assert plain == fingerprint([one._replace(comparisons=())]) == "b4754e3b766276c4"
    others = [
        one._replace(response={"ratings": (1.0, 0.0)}),
        one._replace(response={"ratings": (2.0, 0.0)}),
        one._replace(comparisons=((1, 0),)),
        one._replace(comparisons=(), response={"labels": (1, -1)}),
        one._replace(comparisons=(), response={"labels": (1, 1)}),
        one._replace(ranked=True),
    ]
    assert len({plain, *(fingerprint([r]) for r in others)}) == 1 + len(others)
