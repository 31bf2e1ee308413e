"""Rows of each kind: their columns, what they become, and what is refused."""

import pytest
from row_cases import validate

from dpo_jax.data.kinds import KINDS, RawRow
from dpo_jax.errors import DataError

JUDGED = [kind for kind in KINDS if kind != "prompts"]  # that read the responses
PAIR = {"prompt": "p", "chosen": " a", "rejected": " b"}
SINGLE = {"prompt": "p", "completion": " c", "label": True}
RANKING = {"prompt": "p", "responses": [" a", " b", " c"], "ranking": [2, 0, 1]}


def user(text):
    return {"role": "user", "content": text}


def bot(text):
    return {"role": "assistant", "content": text}


def check(kind, *rows, on_bad_row="error"):
    located = [(f"f:{i + 1}", fields) for i, fields in enumerate(rows)]
    return validate(located, kind=kind, format="", on_bad_row=on_bad_row)


def refusal(kind, good, fields):
    """Returns the reason for dropping a row behind a good one, and the message."""
    with pytest.raises(DataError) as error:
        check(kind, good, fields)
    kept, counts = check(kind, good, fields, on_bad_row="drop")
    (reason,) = counts.dropped
    assert [row.index for row in kept] == [0]
    assert "f:2: " in str(error.value)
    return reason, str(error.value)


@pytest.mark.parametrize(
    "columns, ratings",
    [
        ({}, ()),
        ({"score_chosen": 8.5, "score_rejected": 7}, (8.5, 7.0)),
        ({"margin": 1.5}, (1.5, 0.0)),
        ({"margin": -2}, (-2.0, 0.0)),
        ({"score_chosen": 3.0, "score_rejected": 1.0, "margin": 9.0}, (3.0, 1.0)),
    ],
)
def test_ratings_of_a_pair(columns, ratings):
    """Two scores are the ratings; a margin is a score above one of 0."""
    (row,), _ = check("pairs", PAIR | columns)
    assert row == RawRow("p", (" a", " b"), ratings=ratings, where="f:1")


@pytest.mark.parametrize(
    "kind, row, objective",
    [
        ("pairs", SINGLE, "unpaired"),
        ("pairs", {"messages": [user("a"), bot("b")]}, "sft"),
        ("pairs", {"text": "a"}, "sft"),
        ("pairs", {"prompt": "p", "completion": "c"}, "sft"),
        ("pairs", RANKING, "ranking"),
        ("completions", RANKING, "ranking"),
        ("singles", {"prompt": "p", "completion": "c"}, "sft"),
        ("singles", RANKING, "ranking"),
        ("rankings", SINGLE, "unpaired"),
        ("rankings", {"messages": [user("a"), bot("b")]}, "sft"),
        ("pairs", {"prompt": "p", "chosen": "a"}, None),
        ("completions", {"prompt": "p"}, None),
    ],
)
def test_rows_that_fit_another_objective_name_it(kind, row, objective):
    """The columns that tell such rows, then what is missing for this one."""
    reason, said = refusal(kind, PAIR, row)
    assert reason == "missing column" and " is missing;" in said
    assert (f"are for objective={objective!r}; column" in said) == bool(objective)
    assert ("are for objective=" in said) == bool(objective)


RATED = {"score_chosen": 2.0, "score_rejected": 1.0}


@pytest.mark.parametrize(
    "change, reason, said",
    [
        (RATED | {"score_chosen": None}, "null", "column 'score_chosen' is null"),
        (RATED | {"score_rejected": "7"}, "wrong type", "'score_rejected' is str; a n"),
        (RATED | {"score_chosen": True}, "wrong type", "'score_chosen' is bool"),
        (RATED | {"score_chosen": float("nan")}, "not finite", "'score_chosen' is nan"),
        (RATED | {"score_chosen": 1e39}, "not finite", "beyond what float32"),
        (RATED | {"score_chosen": 10**400}, "not finite", "beyond what float32"),
        ({"score_chosen": 1.0}, "missing column", "'score_rejected' is missing;"),
        (
            {"score_chosen": 1.0, "score_rejectd": 1.0},
            "missing column",
            "'score_rejected' is missing; did you mean 'score_rejectd'?",
        ),
        ({"margin": None}, "null", "column 'margin' is null"),
        ({"margin": "big"}, "wrong type", "column 'margin' is str; a number is due"),
        ({}, "missing column", "(or 'margin') are missing, but f:1 has them"),
    ],
)
@pytest.mark.parametrize("kind", JUDGED)
def test_a_faulty_rating_is_refused_whatever_the_kind(kind, change, reason, said):
    """C2: so every objective sees the same rows of a file of pairs."""
    found, message = refusal(kind, PAIR | RATED, PAIR | change)
    assert found == reason
    assert said in message


def test_rows_without_a_rating_are_refused_though_they_come_first():
    rows, counts = check("pairs", PAIR, PAIR | RATED, PAIR, on_bad_row="drop")
    assert [row.index for row in rows] == [1]
    assert counts.render() == "dropped 2 (2 missing column)"
    with pytest.raises(DataError, match=r"2 of 3 .*f:1: .*but f:2 has.*f:3: "):
        check("pairs", PAIR, PAIR | RATED, PAIR)


@pytest.mark.parametrize(
    "label, kept", [(True, 1), (False, -1), (1, 1), (0, -1)], ids=str
)
def test_labels_of_a_single(label, kept):
    (row,), _ = check("singles", SINGLE | {"label": label})
    assert row == RawRow("p", (" c",), labels=(kept,), where="f:1")


@pytest.mark.parametrize(
    "change, reason, said",
    [
        ({"label": None}, "null", "column 'label' is null"),
        ({"label": "true"}, "wrong type", "'label' is str; true or false is due"),
        ({"label": 1.0}, "wrong type", "column 'label' is float"),
        ({"label": -1}, "wrong label", "'label' is -1; true, false, 1 or 0 is due"),
        ({"label": 2}, "wrong label", "column 'label' is 2"),
        ({"label": float("nan")}, "wrong type", "column 'label' is float"),
        ({"completion": " "}, "empty", "column 'completion' is empty"),
        ({"completion": [bot("c")]}, "wrong type", "'completion' is list"),
        ({"prompt": ""}, "empty", "column 'prompt' is empty"),
        ({"completion": None}, "null", "column 'completion' is null"),
    ],
)
def test_a_faulty_single_is_refused(change, reason, said):
    found, message = refusal("singles", SINGLE, SINGLE | change)
    assert found == reason
    assert said in message


@pytest.mark.parametrize(
    "kind, row, said",
    [
        (
            "singles",
            {"prompt": "p", "completion": " c", "labels": True},
            "column 'label' is missing; did you mean 'labels'? found: prompt, comp",
        ),
        (
            "singles",
            {"prompt": "p", "completions": " c", "label": True},
            "column 'completion' is missing; did you mean 'completions'?",
        ),
        (
            "rankings",
            {"prompt": "p", "response": [" a", " b"], "ranking": [0, 1]},
            "column 'responses' is missing; did you mean 'response'?",
        ),
        (
            "rankings",
            {"prompt": "p", "responses": [" a", " b"], "rankings": [0, 1]},
            "column 'ranking' is missing; did you mean 'rankings'?",
        ),
    ],
)
def test_a_renamed_column_is_named_with_the_nearest_one(kind, row, said):
    good = {"singles": SINGLE, "rankings": RANKING}[kind]
    reason, message = refusal(kind, good, row)
    assert reason == "missing column"
    assert said in message


def test_pairs_serve_every_kind():
    """The better response comes first, and ratings stay with their response."""
    row = PAIR | RATED
    both, ratings = (" a", " b"), (2.0, 1.0)
    assert {kind: take(row) for kind, take in KINDS.items()} == {
        "pairs": RawRow("p", both, (), ratings),
        "completions": RawRow("p", (" a",), (), (2.0,)),
        "singles": RawRow("p", both, (1, -1), ratings),
        "rankings": RawRow("p", both, (), ratings, ranked=True),
        "prompts": RawRow("p", ()),
    }


@pytest.mark.parametrize("kind", JUDGED)
def test_identical_pairs_are_refused_as_every_kind(kind):
    reason, _ = refusal(kind, PAIR, PAIR | {"rejected": " a"})
    assert reason == "identical"


def test_responses_are_kept_best_first():
    """`ranking` lists places, best first: 2, 0, 1 of a, b, c is c, a, b."""
    (row,), _ = check("rankings", RANKING)
    assert row == RawRow("p", (" c", " a", " b"), ranked=True, where="f:1")


@pytest.mark.parametrize(
    "change, reason, said",
    [
        ({"ranking": [0, 1]}, "wrong ranking", "column 'ranking' is [0, 1]; a ranking"),
        ({"ranking": [1, 2, 3]}, "wrong ranking", "names each of 0…2 (places in 'res"),
        ({"ranking": [0, 1, 1]}, "wrong ranking", "column 'ranking' is [0, 1, 1]"),
        ({"ranking": [0, -1, 1]}, "wrong ranking", "best first) once"),
        ({"ranking": [0.0, 1, 2]}, "wrong type", "'ranking' holds float, no place"),
        ({"ranking": [True, 0, 2]}, "wrong type", "'ranking' holds bool"),
        ({"ranking": [0, None, 2]}, "wrong type", "'ranking' holds NoneType"),
        ({"ranking": None}, "null", "column 'ranking' is null"),
        ({"ranking": "012"}, "wrong type", "a list of whole numbers is due"),
        ({"responses": " a"}, "wrong type", "a list of strings or of chats is due"),
        ({"responses": None}, "null", "column 'responses' is null"),
        ({"responses": [" a", None, " c"]}, "null", "'responses[1]' is null"),
        ({"responses": [" a", 3, " c"]}, "wrong type", "'responses[1]' is int"),
        ({"responses": [" a", "", " c"]}, "empty", "'responses[1]' is empty"),
        (
            {"responses": [" a", " b", " a"]},
            "identical",
            "'responses[0]' and 'responses[2]' are identical",
        ),
        ({"responses": [" a"], "ranking": [0]}, "too few responses", "holds 1; a rank"),
        ({"responses": [], "ranking": []}, "too few responses", "holds 0"),
        (
            {"responses": [" a", [bot("b")], " c"]},
            "wrong type",
            "'responses[0]' is str, 'responses[1]' is list",
        ),
        ({"prompt": [user("q")]}, "wrong type", "'prompt' is list, 'responses[0]' is"),
        ({"prompt": ""}, "empty", "column 'prompt' is empty"),
    ],
)
def test_a_faulty_ranking_is_refused(change, reason, said):
    found, message = refusal("rankings", RANKING, RANKING | change)
    assert found == reason
    assert said in message


def test_chats_of_each_kind():
    prompt = [user("q")]
    (single,), _ = check(
        "singles", {"prompt": prompt, "completion": [bot("a")], "label": False}
    )
    assert (single.prompt, single.responses) == (prompt, ([bot("a")],))
    chats = [[bot("a")], [bot("b"), user("c"), bot("d")]]
    (ranked,), _ = check(
        "rankings", {"prompt": prompt, "responses": chats, "ranking": [1, 0]}
    )
    assert ranked.responses == (chats[1], chats[0])


@pytest.mark.parametrize(
    "kind, good, row, reason, said",
    [
        (
            "singles",
            SINGLE,
            {"prompt": [user("q")], "completion": [user("a")], "label": True},
            "wrong role",
            "column 'completion' starts with role 'user'",
        ),
        (
            "rankings",
            RANKING,
            {
                "prompt": [user("q")],
                "responses": [[bot("a")], [user("b")]],
                "ranking": [0, 1],
            },
            "wrong role",
            "column 'responses[1]' starts with role 'user'",
        ),
        (
            "rankings",
            RANKING,
            {
                "prompt": [user("q")],
                "responses": [[bot("a")], [bot("a")]],
                "ranking": [0, 1],
            },
            "identical",
            "are identical",
        ),
        (
            "rankings",
            RANKING,
            {"prompt": [user("q")], "responses": [[bot("a")], ["b"]], "ranking": [0]},
            "wrong type",
            "responses[1][0] is str; a message is due",
        ),
    ],
)
def test_faulty_chats_are_refused(kind, good, row, reason, said):
    found, message = refusal(kind, good, row)
    assert found == reason
    assert said in message
