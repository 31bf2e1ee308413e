"""Every fault of a row is named with its place, column, type and reason."""

import json

import pytest
from row_cases import validate

from dpo_jax.data.kinds import RawRow
from dpo_jax.data.records import Faults, RowCounts
from dpo_jax.data.sources.files import BadRow
from dpo_jax.data.sources.hh import split_transcripts
from dpo_jax.errors import DataError

GOOD = {"prompt": "p", "chosen": " a", "rejected": " b"}


def user(text):
    return {"role": "user", "content": text}


def bot(text):
    return {"role": "assistant", "content": text}


def check(*rows, kind="pairs", format="", on_bad_row="error"):
    located = [(f"f:{i + 1}", fields) for i, fields in enumerate(rows)]
    return validate(located, kind=kind, format=format, on_bad_row=on_bad_row)


def refusal(fields, **options):
    """Returns the reason under which a row among good ones is dropped, and the text."""
    with pytest.raises(DataError) as error:
        check(GOOD, fields, **options)
    _, counts = check(GOOD, fields, on_bad_row="drop", **options)
    (reason,) = counts.dropped
    assert "f:2: " in str(error.value)
    return reason, str(error.value)


def test_good_pairs_are_kept_as_they_are():
    rows, counts = check(GOOD, GOOD | {"score": 0.5})
    assert rows[1] == RawRow("p", (" a", " b"), where="f:2", index=1)
    assert counts == RowCounts(2, 2, {})
    assert counts.render() == "dropped 0"


@pytest.mark.parametrize(
    "change, reason, said",
    [
        ({"chosen": None}, "null", "column 'chosen' is null"),
        ({"chosen": 3}, "wrong type", "column 'chosen' is int"),
        ({"rejected": [user("x")]}, "wrong type", "'rejected' is list"),
        ({"rejected": {"role": "x"}}, "wrong type", "'rejected' is dict"),
        ({"margin": float("nan")}, "not finite", "column 'margin' is nan"),
        ({"margin": float("inf")}, "not finite", "column 'margin' is inf"),
        ({"chosen": ""}, "empty", "column 'chosen' is empty"),
        ({"rejected": " \n"}, "empty", "column 'rejected' is empty"),
        ({"prompt": " "}, "empty", "column 'prompt' is empty"),
        ({"rejected": " a"}, "identical", "are identical"),
        ({"chosen": "\ud800"}, "invalid UTF-8", "'chosen' holds half a character"),
    ],
)
def test_a_faulty_column_is_refused(change, reason, said):
    found, message = refusal(GOOD | change)
    assert found == reason
    assert said in message


def test_a_renamed_column_is_named_with_the_nearest_one():
    renamed = {"prompt": "p", "chosenn": " a", "rejected": " b"}
    reason, message = refusal(renamed)
    assert reason == "missing column"
    assert "'chosen' is missing; did you mean 'chosenn'?" in message
    assert "found: prompt, chosenn, rejected" in message


def test_transcripts_without_the_format_are_pointed_to_it():
    text = "\n\nHuman: x\n\nAssistant: y"
    _, message = refusal({"chosen": text, "rejected": text + "z"})
    assert "set data.format='hh'" in message


def test_drop_counts_by_reason():
    """C3: three faults of each kind among good rows."""
    shared = "\n\nHuman: x\n\nAssistant:"
    good = {"chosen": shared + " a", "rejected": shared + " b"}
    empty = {"chosen": shared, "rejected": shared + " b"}
    same = {"chosen": shared + " a", "rejected": shared + " a"}
    other = {"chosen": shared + " a", "rejected": "\n\nHuman: y\n\nAssistant: b"}
    rows, counts = check(
        *[good, empty, same, other] * 3, good, format="hh", on_bad_row="drop"
    )
    assert counts.render() == "dropped 9 (3 empty, 3 identical, 3 mismatched)"
    assert [row.index for row in rows] == [0, 4, 8, 12]
    assert counts._asdict() == {
        "read": 13,
        "kept": 4,
        "dropped": {"empty": 3, "identical": 3, "mismatched": 3},
    }


def test_error_names_the_first_rows_and_counts_the_others():
    bad = GOOD | {"chosen": 1}
    with pytest.raises(DataError) as error:
        check(GOOD, *[bad] * 5)
    message = str(error.value)
    assert message.startswith("bad rows: 5 of 6 (5 wrong type): f:2: ")
    assert "f:4: " in message and "f:5: " not in message
    assert "and 2 more" in message
    assert "data.on_bad_row='drop'" in message


def test_structural_faults_of_the_reader_are_counted_too():
    reason, message = refusal(BadRow("malformed", "malformed JSON"))
    assert reason == "malformed"
    assert "f:2: malformed JSON" in message


def test_no_row_left_is_an_error_even_when_dropping():
    with pytest.raises(DataError, match=r"no row can .*: bad rows: 1 of 1 .*f:1: "):
        check(GOOD | {"chosen": ""}, on_bad_row="drop")
    with pytest.raises(DataError, match="has no rows"):
        check()
    with pytest.raises(DataError, match="has no rows"):
        Faults().settle(read=0, on_bad_row="drop")


def test_completions_are_taken_from_both_kinds_of_rows():
    plain = {"prompt": "p", "completion": " c"}
    rows, _ = check(plain, GOOD, plain | {"prompt": ""}, kind="completions")
    assert [row.responses for row in rows] == [(" c",), (" a",), (" c",)]
    assert rows[2].prompt == ""


@pytest.mark.parametrize(
    "row, reason, said",
    [
        ({"prompt": "p", "completion": ""}, "empty", "'completion' is empty"),
        ({"prompt": "p", "text": "t"}, "missing column", "'completion' is missing"),
        (GOOD | {"rejected": " a"}, "identical", "are identical"),
        ({"prompt": [], "completion": [bot("x")]}, "empty", "'prompt' is empty"),
    ],
)
def test_faulty_completions_are_refused(row, reason, said):
    found, message = refusal(row, kind="completions")
    assert found == reason
    assert said in message


def test_chats_are_kept_without_null_keys():
    question = user("q") | {"name": None}
    rows, _ = check(
        {"prompt": [question], "chosen": [bot("a")], "rejected": [bot("b")]}
    )
    assert rows[0].prompt == [user("q")]
    assert rows[0].responses == ([bot("a")], [bot("b")])


CHAT = {"prompt": [user("q")], "chosen": [bot("a")], "rejected": [bot("b")]}
WEATHER = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize("kind", ["pairs", "completions", "singles", "rankings"])
def test_system_and_tools_are_told_to_a_chat(kind):
    told = CHAT | {"system": "s", "tools": [WEATHER | {"strict": None}]}
    rows, _ = check(
        told,
        told | {"tools": json.dumps([WEATHER])},
        told | {"prompt": [{"role": "system", "content": "s"}, user("q")]},
        CHAT | {"system": " ", "tools": None},
        kind=kind,
    )
    start = [{"role": "system", "content": "s"}, user("q")]
    assert [row.prompt for row in rows] == [start] * 3 + [[user("q")]]
    assert [row.tools for row in rows] == [(WEATHER,)] * 3 + [()]


@pytest.mark.parametrize(
    "row, reason, said",
    [
        (GOOD | {"system": "s"}, "system beside a string", "write it into the prompt"),
        (GOOD | {"tools": [WEATHER]}, "tools beside a string", "column 'tools'"),
        (CHAT | {"system": 1}, "wrong type", "column 'system' is int"),
        (CHAT | {"tools": "{"}, "malformed", "'tools' is a string, but no JSON"),
        (CHAT | {"tools": ["weather"]}, "wrong type", "'tools' is list"),
        (
            CHAT | {"system": "s", "prompt": [user("q") | {"role": "system"}]},
            "two system prompts",
            "differ",
        ),
    ],
)
def test_a_system_or_tools_without_a_place_are_refused(row, reason, said):
    found, message = refusal(row)
    assert found == reason and said in message


def test_a_message_that_calls_tools_may_say_nothing():
    call = {"role": "assistant", "content": None, "tool_calls": [WEATHER | {"id": 1}]}
    rows, _ = check(CHAT | {"chosen": [call]})
    assert rows[0].responses[0] == [call | {"content": ""}]


def test_a_shared_beginning_is_the_prompt():
    start = [user("q"), bot("r"), user("s")]
    row = {"chosen": [*start, bot("a")], "rejected": [*start, bot("b")]}
    rows, _ = check(row)
    assert rows[0].prompt == start
    assert rows[0].responses == ([bot("a")], [bot("b")])
    rows, _ = check(row, kind="completions")
    assert rows[0].responses == ([bot("a")],)


@pytest.mark.parametrize(
    "chosen, rejected, reason, said",
    [
        ([user("q"), bot("a")], [user("x"), bot("b")], "mismatched", "differ before"),
        ([user("q")], [user("q"), bot("b")], "wrong role", "does not end with"),
        ([bot("a")], [bot("b")], "empty", "'prompt' is empty"),
        ([], [bot("b")], "empty", "'chosen' is empty"),
        ([user("q"), bot("")], [user("q"), bot("b")], "empty", "'chosen' is empty"),
        ([user("q"), "x"], [user("q"), bot("b")], "wrong type", "chosen[1] is str"),
        ([{"role": "user"}], [bot("b")], "missing column", "'content' of chosen[0]"),
        ([user(None)], [bot("b")], "null", "key 'content' of chosen[0] is null"),
        ([user(1)], [bot("b")], "wrong type", "'content' of chosen[0] is int"),
    ],
)
def test_faulty_chats_are_refused(chosen, rejected, reason, said):
    found, message = refusal({"chosen": chosen, "rejected": rejected})
    assert found == reason
    assert said in message


def test_a_response_must_be_the_assistants():
    row = {"prompt": [user("q")], "chosen": [user("a")], "rejected": [bot("b")]}
    reason, message = refusal(row)
    assert reason == "wrong role"
    assert "starts with role 'user'" in message


def test_transcripts_are_split_at_the_last_assistant_of_chosen():
    start = "\n\nHuman: x\n\nAssistant: y\n\nHuman: z\n\nAssistant:"
    longer = " b\n\nHuman: w\n\nAssistant: v"
    row = {"chosen": start + " a", "rejected": start + longer}
    expected = {"prompt": start, "chosen": " a", "rejected": longer}
    assert split_transcripts(row) == expected


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"chosen": "a", "rejected": "a b"}, "mismatched"),
        ({"chosen": [bot("a")], "rejected": [bot("b")]}, "wrong format"),
        (
            {"prompt": "p", "chosen": "p\n\nAssistant: a", "rejected": "p"},
            "wrong format",
        ),
    ],
)
def test_what_is_no_transcript_is_refused(row, reason):
    with pytest.raises(BadRow) as bad:
        split_transcripts(row)
    assert bad.value.reason == reason


def test_transcripts_with_a_missing_column_name_it():
    with pytest.raises(DataError, match="'rejected' is missing; .*found: chosen"):
        check({"chosen": "\n\nHuman: x\n\nAssistant: y"}, format="hh")
