"""IFEval's checks against verdicts by hand, at their bounds, and always the same."""

import random

import pytest

from dpo_jax.errors import DataError
from dpo_jax.evals import ifeval

C, D, L = "change_case:", "detectable_format:", "length_constraints:"
K, S = "keywords:", "startend:"
AT_LEAST, LESS = "at least", "less than"

# name, arguments, what follows, what does not
CASES = [
    (K + "existence", {"keywords": ["sun", "Moon"]}, "The moon, SUNNY", "the sun"),
    (
        K + "frequency",
        {"keyword": "ab", "frequency": 2, "relation": AT_LEAST},
        "ab Abc",
        "ab a b",
    ),
    (
        K + "frequency",
        {"keyword": "ab", "frequency": 2, "relation": LESS},
        "ab",
        "ab AB",  # "less than 2" is not 2
    ),
    (
        K + "forbidden_words",
        {"forbidden_words": ["cat", "dog"]},
        "the category of doge",
        "a Cat.",
    ),
    (
        K + "letter_frequency",
        {"letter": "E", "let_frequency": 3, "let_relation": AT_LEAST},
        "eEe",
        "ee",
    ),
    (
        K + "letter_frequency",
        {"letter": "e", "let_frequency": 3, "let_relation": LESS},
        "ee",
        "eee",
    ),
    (L + "number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a\n***\n***\nb"),
    (L + "number_paragraphs", {"num_paragraphs": 2}, "***\na\n***\nb\n***", "a\n\nb"),
    (L + "number_words", {"num_words": 3, "relation": AT_LEAST}, "a b-c", "a b"),
    (L + "number_words", {"num_words": 3, "relation": LESS}, "don't", "a b c"),
    (
        L + "nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"},
        'First\n\n"then, after',
        "First\n\nThence",
    ),
    (
        L + "nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 1, "first_word": "one"},
        "ONE! a\n\ntwo",
        "one\n\ntwo\n\nthree",
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        "[name] of [street] in [town]",
        "[name",
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        "Bye\np. s. more",
        "Bye\nps more",
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        "Bye P.P.S more",
        "Bye P.S. more",
    ),
    (D + "number_bullet_lists", {"num_bullets": 2}, "* a\n - b", "* a\n- b\n* c"),
    (D + "number_bullet_lists", {"num_bullets": 1}, "**bold**\n* a", "**bold**"),
    (
        D + "constrained_response",
        {},
        "Well. My answer is maybe. So",
        "my answer is no.",
    ),
    (
        D + "number_highlighted_sections",
        {"num_highlights": 2},
        "*one* and **two**",
        "*one* and ** **",
    ),
    (
        D + "multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1\na\nSECTION 2\nb",
        "Section 1\na\nSection 2\nb",
    ),
    (D + "json_format", {}, '```json\n{"a": [1]}\n```', "{'a': 1}"),
    (D + "title", {}, "<<A title>>\ntext", "<< >>\ntext"),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
    ("combination:two_responses", {}, "******one******two", "a******b******c"),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Say it. "},
        "say it. I will",
        "I: say it.",
    ),
    (S + "end_checker", {"end_phrase": "The end."}, 'So. "the END."', "The end. No"),
    (S + "quotation", {}, ' "all of it" ', '"half" of it'),
    (S + "quotation", {}, '""', '"'),
    ("punctuation:no_comma", {}, "a; b", "a, b"),
]
ENGLISH = "the quick brown fox jumps over the lazy dog and runs away from the old house"
GERMAN = "der schnelle braune fuchs springt über den faulen hund und läuft davon"
DETECTED = [
    ("language:response_language", {"language": "de"}, GERMAN, ENGLISH),
    (C + "english_lowercase", {}, ENGLISH, ENGLISH.title()),
    (C + "english_lowercase", {}, ENGLISH + ".", GERMAN),
    (C + "english_capital", {}, ENGLISH.upper(), ENGLISH),
]
CUT = [
    (
        L + "number_sentences",
        {"num_sentences": 2, "relation": AT_LEAST},
        "Dr. Who came. He left.",
        "Dr. Who came",
    ),
    (
        L + "number_sentences",
        {"num_sentences": 2, "relation": LESS},
        "Dr. Who came.",
        "One. Two.",
    ),
    (
        C + "capital_word_frequency",
        {"capital_frequency": 3, "capital_relation": AT_LEAST},
        "I AM well-KNOWN, SO",  # I, AM, SO
        "I AM well-KNOWN",
    ),
]


def holds(name, given, text):
    found = ifeval.followed(text, [name], [given])
    assert found.loose[0] >= found.strict[0]
    return found.strict[0]


@pytest.mark.parametrize("name, given, good, bad", CASES)
def test_verdicts_by_hand(name, given, good, bad):
    assert holds(name, given, good) and not holds(name, given, bad)


@pytest.mark.parametrize("name, given, good, bad", DETECTED)
def test_verdicts_on_languages_by_hand(name, given, good, bad):
    pytest.importorskip("langdetect")
    assert holds(name, given, good) and not holds(name, given, bad)


@pytest.mark.parametrize("name, given, good, bad", CUT)
def test_verdicts_on_sentences_and_words_by_hand(name, given, good, bad):
    pytest.importorskip("punkt")
    pytest.importorskip("nltk")
    assert holds(name, given, good) and not holds(name, given, bad)


def test_every_instruction_has_its_verdicts_by_hand():
    assert {case[0] for case in CASES + DETECTED + CUT} == ifeval.CHECKS.keys()


@pytest.mark.parametrize("name, given, good, bad", CASES)
def test_an_empty_response_follows_nothing(name, given, good, bad):
    assert not holds(name, given, "") and not holds(name, given, " \n ")


@pytest.mark.parametrize("name, given, good, bad", [c for c in CASES if c[1]])
def test_a_missing_argument_is_an_error(name, given, good, bad):
    """As is one that is null, empty, or not the instruction's."""
    for key in given:
        for none in (None, "", []):
            with pytest.raises(DataError, match="never drawn at random"):
                holds(name, {**given, key: none}, good)
    with pytest.raises(DataError, match="never drawn"):
        holds(name, {**given, "num_words_": 3}, good)
    published = dict.fromkeys(["num_words", "letter", "keywords", "language"])
    assert holds(name, {**published, **given}, good)


@pytest.mark.parametrize(
    "name, given",
    [
        ("length:words", {}),
        (K + "frequency", {"keyword": "a", "frequency": 1, "relation": "at most"}),
        (K + "frequency", {"keyword": "a", "frequency": "1", "relation": LESS}),
        (K + "existence", {"keywords": ["("]}),
        (
            K + "letter_frequency",
            {"letter": "ab", "let_frequency": 1, "let_relation": LESS},
        ),
        (
            L + "nth_paragraph_first_word",
            {"num_paragraphs": 1, "nth_paragraph": 2, "first_word": "a"},
        ),
    ],
)
def test_what_cannot_be_checked_is_an_error(name, given):
    with pytest.raises(DataError, match="row 7"):
        ifeval.followed("a", [name], [given], "row 7")


def test_symbols_alone_are_of_any_language():
    """As in the original, where the detector finds none."""
    pytest.importorskip("langdetect")
    assert holds("language:response_language", {"language": "de"}, "123 :: 456")


def test_loose_takes_the_best_of_eight():
    """A first line that introduces, a last that adds, and stars."""
    name = D + "json_format"
    text = 'Here it is:\n*{"a": 1}*\nI hope this helps.'
    assert ifeval.followed(text, [name], [{}]) == ((False,), (True,))
    more = ifeval.followed("a,b\nc\nd,e", ["punctuation:no_comma"], [{}])
    assert more == ((False,), (True,))
    none = ifeval.followed("a,b\nc,c\nd,e", ["punctuation:no_comma"], [{}])
    assert none == ((False,), (False,))


def test_thoughts_are_cut_by_the_models_own_marker():
    assert ifeval.answer_of("<think>a, b</think> c", "</think>") == " c"
    assert ifeval.answer_of("<think>a, b and on", "</think>") == ""
    assert ifeval.answer_of("a</think>b</think>c", "</think>") == "c"
    assert ifeval.answer_of("<think>a, b</think> c", "") == "<think>a, b</think> c"


def test_one_text_has_one_score_in_any_order():
    """Fifty times, shuffled; the detector draws noise of its own where unseeded."""
    pytest.importorskip("langdetect")
    mixed = "das haus is the maison of il gatto und the dog est not là"
    cases = [(n, g, t) for n, g, a, b in CASES + DETECTED for t in (a, b)]
    cases += [("language:response_language", {"language": "en"}, mixed)]
    want = [holds(*case) for case in cases]
    rng = random.Random(0)
    for _ in range(50):
        order = rng.sample(range(len(cases)), len(cases))
        assert [holds(*cases[i]) for i in order] == [want[i] for i in order]
