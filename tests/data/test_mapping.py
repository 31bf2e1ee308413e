"""What a mapping of columns makes of a row, and what it says of one it cannot use."""

import json

import pytest

from dpo_jax import config as config_lib
from dpo_jax.data.sources.files import BadRow, Cell
from dpo_jax.data.sources.mapping import ColumnMap, faults_of, mapped
from dpo_jax.data.sources.values import no_ids
from dpo_jax.schema import base

ROW = {"question": "q", "good": "g", "bad": "b", "n": 2, "deep": {"texts": ["s", "t"]}}
RANKED = {
    "prompt": "p",
    "answers": [{"t": "a", "r": 3}, {"t": "b", "r": 1}, {"t": "c", "r": 2}],
}
BY_RANK = {"responses": "answers[].t", "pair": "rank:answers[].r"}


def made(row, kind="pairs", **columns):
    rows = iter([("f:1", row)])
    found = mapped(rows, ColumnMap(**columns), "data.columns", kind=kind, decode=no_ids)
    return list(found)


def one(row, **columns):
    ((_, found),) = made(row, **columns)
    return found


def test_columns_are_renamed_and_the_rest_is_kept():
    assert one(ROW, prompt="question", chosen="good", rejected="bad") == {
        "prompt": "q",
        "chosen": "g",
        "rejected": "b",
        "n": 2,
        "deep": {"texts": ["s", "t"]},
    }


@pytest.mark.parametrize(
    "spec, value",
    [
        ("question", "q"),
        ("deep.texts[1]", "t"),
        ("Q: {question}\\n\\nA:", "Q: q\n\nA:"),
        ("{question} and {deep.texts[0]} and {n}", "q and s and 2"),
        ("question:spaced", " q"),
        ("{question:spaced}!", " q!"),
        ("nowhere||question", "q"),
        ("{nowhere}||N {n}", "N 2"),
    ],
)
def test_a_prompt_is_a_column_a_path_or_a_template(spec, value):
    assert one(ROW, prompt=spec)["prompt"] == value


def test_of_two_templates_the_one_whose_columns_hold_something_is_taken():
    """Else the first; what is null is never taken."""
    both = "T {title} P {post}||A {article}"
    rows = {
        "A a": {"title": "t", "post": "", "article": "a"},
        "T t P p": {"title": "t", "post": "p", "article": "a"},
        "T  P p": {"title": "", "post": "p", "article": None},
    }
    for prompt, row in rows.items():
        assert one(row, prompt=both)["prompt"] == prompt
    assert one({"title": "t", "post": None}, prompt=both).reason == "missing column"


def test_a_column_whose_name_has_dots_is_that_column():
    assert one({"a.b": "x", "a": {"b": "y"}}, prompt="a.b")["prompt"] == "x"


@pytest.mark.parametrize(
    "spec, reason, said",
    [
        ("qestion", "missing column", "'qestion' is missing; did you mean 'question'"),
        ("{qestion}", "missing column", "did you mean 'question'? found: question, "),
        ("zzz", "missing column", "'zzz' is missing; found: question, good, bad, n, "),
        ("deep.zzz", "missing column", "column 'zzz' is missing"),
        ("deep.texts[7]", "missing column", "'deep.texts[7]' is beyond a list of 2"),
        (f"deep.texts[{'9' * 5000}]", "missing column", "is beyond a list of 2"),
        ("n[]", "wrong type", "'n[]' is int; a list is due"),
        ("{deep}", "wrong type", "dict has no place in a text"),
        ("n:spaced", "wrong type", "'n' is int; a string is due"),
    ],
)
def test_what_a_row_lacks_is_named_with_the_field(spec, reason, said):
    bad = one(ROW, prompt=spec)
    assert isinstance(bad, BadRow) and bad.reason == reason
    assert bad.detail.startswith(f"data.columns.prompt={spec!r}") and said in bad.detail


def test_a_null_is_a_null():
    assert one(ROW | {"question": None}, prompt="question").reason == "null"
    assert one(ROW | {"question": None}, prompt="{question}").reason == "null"
    both = one(ROW | {"question": None}, prompt="question||good")
    assert both["prompt"] == "g"


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 10**400])
def test_a_number_without_bounds_prefers_nothing(number):
    row = {"a": "x", "b": "y", "p": number}
    assert one(row, responses="a,b", pair="sign:p").reason == "not finite"
    assert one(row, keep="a=x,p>=2*p").reason == "not finite"


@pytest.mark.parametrize("preference, winner", [(-3, "x"), (-1, "x"), (2, "y")])
def test_the_sign_of_a_number_prefers(preference, winner):
    row = {"a": "x", "b": "y", "p": preference}
    found = one(row, responses="a,b", pair="sign:p")
    loser = {"x": "y", "y": "x"}[winner]
    assert found == {"chosen": winner, "rejected": loser, "margin": abs(preference)}


def test_sign_0_is_a_tie_and_so_are_equal_scores_where_ties_are_dropped():
    row = {"a": "x", "b": "y", "p": 0}
    assert one(row, responses="a,b", pair="sign:p").reason == "tie"
    rated = {"chosen": "x", "rejected": "y", "s": 1.0}
    same = {"score_chosen": "s", "score_rejected": "s"}
    assert one(rated, **same, drop="tie").reason == "tie"
    assert one(rated, **same)["score_chosen"] == 1.0


def test_an_index_names_the_best_against_each_other():
    row = {"texts": ["x", "y", "z"], "best": 1, "s": [1, 5, 3]}
    found = made(row, responses="texts", scores="s", pair="index:best")
    assert [where for where, _ in found] == ["f:1(1>0)", "f:1(1>2)"]
    kept = ("chosen", "rejected", "score_chosen", "score_rejected")
    assert [[each[name] for name in kept] for _, each in found] == [
        ["y", "x", 5, 1],
        ["y", "z", 5, 3],
    ]
    assert len(made(row, "completions", responses="texts", pair="index:best")) == 1
    assert one(row | {"best": 3}, responses="texts", pair="index:best").detail == (
        "data.columns.pair='index:best' is 3; 0…2 is due"
    )


def test_ranks_are_a_ranking_or_all_its_pairs():
    ((_, ranking),) = made(RANKED, "rankings", **BY_RANK)
    assert ranking["responses"] == ["a", "b", "c"] and ranking["ranking"] == [1, 2, 0]
    pairs = [(row["chosen"], row["rejected"]) for _, row in made(RANKED, **BY_RANK)]
    assert pairs == [("b", "c"), ("b", "a"), ("c", "a")]
    seven = {"answers": [{"t": f"t{i}", "r": i} for i in range(7)]}
    assert len(made(seven, **BY_RANK)) == 21
    tied = {"answers": [{"t": "a", "r": 1}, {"t": "b", "r": 1}, {"t": "c", "r": 2}]}
    reasons = [getattr(row, "reason", "") for _, row in made(tied, **BY_RANK)]
    assert reasons == ["tie", "", ""]
    ((_, whole),) = made(tied, "rankings", **BY_RANK)
    assert whole.reason == "tie"


def test_each_pairs_two_lists():
    row = {"chosen": ["a", "b"], "rejected": ["x", "y"]}
    found = [(each["chosen"], each["rejected"]) for _, each in made(row, pair="each")]
    assert found == [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")]


def test_strings_beside_chats_become_messages_and_all_do_if_asked():
    context = [{"role": "user", "content": "u"}]
    row = {"prompt": context, "a": "x", "b": "y", "p": -1}
    found = one(row, responses="a,b", pair="sign:p")
    assert found["chosen"] == [{"role": "assistant", "content": "x"}]
    wrapped = one({"prompt": "u", "chosen": "x", "rejected": "y"}, chat="wrap")
    assert wrapped["prompt"] == context and wrapped["chosen"] == found["chosen"]


def test_an_implicit_prompt_is_all_but_the_last_message():
    turns = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "x"}]
    assert "prompt" not in one({"prompt": "u", "chosen": turns}, prompt="implicit")
    single = one({"prompt": "v", "completion": turns}, prompt="implicit")
    assert single == {"prompt": turns[:1], "completion": turns[1:]}
    answer = {"prompt": turns[:1], "completion": turns[1:]}
    assert one(answer, prompt="implicit") == answer


@pytest.mark.parametrize(
    "keep, kept",
    [
        ("n>=2", True),
        ("n>2", False),
        ("n<=2, good=g", True),
        ("good!=g", False),
        ("n=2", True),
        ("flag=false", True),
        ("none!=x", True),
        ("none=x", False),
        ("n>=2*one", True),
        ("n>=3*one", False),
        ("cell>=8", True),
    ],
)
def test_conditions_keep_rows(keep, kept):
    row = ROW | {"flag": False, "none": None, "one": 1, "cell": Cell("8.5")}
    found = one(row, keep=keep)
    assert isinstance(found, BadRow) != kept
    assert kept or found.reason == f"filtered by {keep}"


def test_a_condition_on_a_missing_column_is_an_error_and_not_a_filter():
    assert one(ROW, keep="zzz>1").reason == "missing column"


def test_a_number_of_two_points_is_none():
    assert one(ROW, keep="n>=1.2.3*n").reason == "wrong type"


def test_so_many_pairs_of_each_prompt():
    rows = [(f"f:{i}", {"prompt": "pq"[i % 2], "chosen": str(i)}) for i in range(6)]
    columns = ColumnMap(pairs_per_prompt=2)
    found = list(mapped(iter(rows), columns, "x", kind="pairs", decode=no_ids))
    reasons = [getattr(row, "reason", "") for _, row in found]
    assert reasons == ["", "", "", ""] + ["beyond 2 pairs of a prompt"] * 2
    assert columns.drops() == ("filtered", "beyond")


@pytest.mark.parametrize(
    "columns, said",
    [
        ({"pair": "sing:x"}, "data.columns.pair='sing:x' is not known"),
        ({"pair": "sign"}, "data.columns.pair='sign' is not known. Known: each, index"),
        ({"prompt": "{x"}, "data.columns.prompt='{x'"),
        ({"prompt": "x:upper"}, "function 'upper' is not known; known: spaced, "),
        ({"keep": "status"}, "data.columns.keep='status' is no condition such as"),
        (
            {"drop": "ties"},
            "data.columns.drop='ties' is not known; did you mean 'tie'?",
        ),
        ({"chat": "wrapped"}, "data.columns.chat='wrapped' is not known"),
    ],
)
def test_words_that_mean_nothing_are_refused_before_any_file(columns, said):
    (fault,) = faults_of(ColumnMap(**columns), "data.columns")
    assert said in fault


def test_every_field_is_a_key_and_a_misspelt_one_is_named():
    config = base()
    assert set(config.data.columns) == set(ColumnMap._fields)
    (fault,) = config_lib.unknown_keys(config, ["data.columns.promt"])
    assert "did you mean 'config.data.columns.prompt'?" in fault
    assert json.loads(config_lib.to_json(config))["data"]["columns"]["prompt"] == ""
