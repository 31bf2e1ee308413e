"""What a judge is asked in words, what counts as its verdict, and labels of people."""

import numpy as np
import pytest

from dpo_jax.errors import ConfigError, DataError
from dpo_jax.evals import judges
from dpo_jax.evals.judges import Answer, Comparison

HELPFUL = judges.read_template("helpful")
CHAT = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("name", [path.stem for path in judges.PROMPTS.glob("*.toml")])
def test_shipped_templates_hold_what_the_paper_asks(name):
    """One sentence of comparison, then on a line of its own A or B."""
    template = judges.read_template(name)
    text = judges.fill(template, "the query", "one answer", "other answer")
    assert text.index("the query") < text.index("one answer") < text.index("other")
    assert 'only "A" or "B"' in text and f"\n{template.verdict}" in text
    assert "{" not in text and template.name == name
    concise = "unimportant or irrelevant" in text and "precise and concise" in text
    assert concise == name.startswith("concise")


def test_slots_are_filled_in_one_pass():
    """What stands in an answer is text, whatever it looks like."""
    text = judges.fill(HELPFUL, "{answer_b}", "{answer_b} {prompt}", "\\1 {answer_a}")
    assert "Query: {answer_b}\n" in text
    assert "Response A:\n{answer_b} {prompt}\n" in text
    assert "Response B:\n\\1 {answer_a}\n" in text


def test_a_chat_is_written_out():
    chat = [*CHAT, {"role": "assistant", "content": "yes?"}]
    assert "Query: user: hi\n\nassistant: yes?\n" in judges.fill(HELPFUL, chat, "", "")


VERDICTS = {
    "Comparison: x.\nMore helpful: A": "first",
    "Comparison: x.\n\n**More helpful:** B\n": "second",
    'More helpful: "B"': "second",
    "  More helpful:  A.": "first",
    "More helpful: A\nMore helpful: A": "first",
    "More helpful: A\nMore helpful: B": None,  # two verdicts
    "More helpful: A or B": None,
    "More helpful: Response A": None,
    "More helpful: C": None,
    "More helpful:": None,
    "I prefer A. More helpful: A": None,  # not on a line of its own
    "Preferred: A": None,
    "A": None,
    "": None,
    "More helpful: A\nMore helpful: neither": None,
    "I cannot judge this.": None,
}


@pytest.mark.parametrize("reply", VERDICTS)
def test_only_a_clear_verdict_is_one(reply):
    assert judges.verdict_of(reply, HELPFUL) == VERDICTS[reply]


def test_a_template_of_ones_own_may_allow_ties(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        'verdict = "Best:"\ntie = "C"\nprompt = "{prompt} {answer_a} {answer_b}"\n'
    )
    template = judges.read_template(str(file))
    assert judges.verdict_of("Best: C", template) == "tie"
    assert judges.verdict_of("Best: B", template) == "second"
    file.write_text(file.read_text() + "# one byte more\n")
    assert judges.read_template(str(file)).digest != template.digest


@pytest.mark.parametrize(
    "text, said",
    [
        ('prompt = "{prompt} {answer_a}"\nverdict = "V:"', "each of {prompt}"),
        ('prompt = "{prompt} {answer_a} {answer_b} {answer_b}"\nverdict = "V"', "once"),
        ('prompt = "{prompt} {answer_a} {answer_b}"', "`verdict` are due"),
        ('prompt = 3\nverdict = "V"', "are due"),
        ('prompt = "x"\nverdict = "V"\nties = "C"', "'ties'"),
        ("prompt", "cannot be read"),
    ],
)
def test_a_wrong_template_is_refused(text, said, tmp_path):
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        judges.read_template(str(file))


def test_an_unknown_template_names_those_there_are():
    with pytest.raises(ConfigError, match="did you mean 'helpful'.*summary.*FILE.toml"):
        judges.read_template("helpfull")


def test_scores_prefer_the_higher():
    votes = judges.by_scores(np.array([2, 1, 1, np.nan]), np.array([1, 2, 1, 0.0]))
    np.testing.assert_array_equal(votes, [[1, 1], [0, 0], [0.5, 0.5], [np.nan] * 2])


def label(first, second, verdict, prompt="p"):
    return {"prompt": prompt, "first": first, "second": second, "verdict": verdict}


def test_labels_are_found_in_either_order_and_by_most():
    """x beats y by two of three, shown both ways; x and z: one each; w: none."""
    rows = [
        label("x", "y", "first"),
        label("y", "x", "second"),
        label("y", "x", "first"),
        label("x", "z", "first"),
        label("x", "z", "second"),
        label("x", "y", "second", prompt=CHAT),
        {**label("x", "w", ""), "absent": "too late"},
    ]
    judge = judges.by_labels(rows, "people")

    def of(a, b, prompt="p"):
        return Comparison(Answer(prompt, a), Answer(prompt, b))

    asked = [of("x", "y"), of("y", "x"), of("x", "z"), of("x", "w"), of("x", "y", CHAT)]
    said = judge.ask(asked)
    np.testing.assert_array_equal(said.votes[:, 0], [1, 0, 0.5, np.nan, 0])
    np.testing.assert_array_equal(said.votes[:, 1], said.votes[:, 0])
    assert said.absent == {"no label": 2}


@pytest.mark.parametrize(
    "row", [{"prompt": "p", "first": "x"}, label("x", "y", "A"), {"verdict": "first"}]
)
def test_labels_that_say_nothing_clear_are_refused(row):
    with pytest.raises(DataError, match="labels 'people', row 1.*first, second or tie"):
        judges.by_labels([row], "people")
