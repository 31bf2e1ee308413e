"""The embedded reviews: grammar, reward, labels, streams, tokenizer."""

import math
import re
import time
from itertools import islice

import numpy as np
import pytest

from dpo_jax.data.sources import sentiment as s
from dpo_jax.data.sources.files import Request
from dpo_jax.errors import ConfigError

ADJECTIVE = (
    f"(?:(?:not |very )?(?:{'|'.join([*s.GOOD, *s.BAD])})|{'|'.join(s.NEUTRAL)})"
)
NOUN, VERB = "|".join(s.NOUNS), "|".join([*s.LIKED, *s.HATED, *s.WATCHED])
CLAUSE = (
    f"(?:(?:the|this) (?:{NOUN}) was {ADJECTIVE}(?: (?:and|but) {ADJECTIVE})? [.]"
    f"|i (?:{VERB}) (?:the|this) (?:{NOUN}) [.])"
)
REVIEW = re.compile(f"{CLAUSE}(?: {CLAUSE}){{1,4}}")


def pairs(seed, n, **asked):
    """Rows of the source, pairs if no other kind is asked for."""
    return [row for _, row in s.read(Request(seed=seed, rows=n, **asked))]


def take(n, seed=0):
    return list(islice(s.reviews(np.random.default_rng(seed)), n))


def test_there_are_61_words():
    assert len(s.VOCABULARY) == len(set(s.VOCABULARY)) == 61
    assert s.VOCABULARY[:3] == ["<pad>", "<bos>", "<eos>"]


def test_reviews_follow_the_grammar():
    assert all(REVIEW.fullmatch(" ".join(words)) for words in take(500))


def test_clauses_are_uniform_from_two_to_five():
    """χ² of 2000 reviews with 3 degrees of freedom; 16.3 has p = 0.001."""
    counts = np.bincount([w.count(".") for w in take(2000)], minlength=6)[2:]
    assert counts.sum() == 2000
    assert ((counts - 500) ** 2 / 500).sum() < 16.3


def test_shares_are_those_of_the_specification():
    """20 % of descriptions neutral, 12 % of the others `not`, 22 % `very`; 5 SE."""
    text = " ".join(" ".join(words) for words in take(3000))
    found = re.findall(f"(?:was|and|but) ({ADJECTIVE})", text)
    first = np.array([f.split()[0] for f in found])
    neutral = np.isin(first, s.NEUTRAL)
    for share, expected in [
        (neutral, 0.2),
        (first[~neutral] == "not", 0.12),
        (first[~neutral] == "very", 0.22),
    ]:
        error = math.sqrt(expected * (1 - expected) / len(share))
        assert abs(share.mean() - expected) < 5 * error


@pytest.mark.parametrize(
    "prompt, completion, expected",
    [
        ("the movie was", "good .", 1.0),
        ("the movie was", "very good . i hated the plot .", 1.5 - 1.5),
        ("the movie was", "not awful but very dull .", 1.4 - 1.5),
        ("the movie was not", "superb .", -1.4),
        ("the movie was very", "weak .", -1.2),
        ("i loved the plot . the movie was", "long .", 0.0),
        ("the movie was", "good <eos>", 1.0),
    ],
)
def test_reward_by_hand(prompt, completion, expected):
    words = prompt.split(), completion.split()
    assert s.reward(*words) == pytest.approx(expected, abs=1e-12)
    probability = 1 / (1 + math.exp(-expected))
    assert s.probability(*words) == pytest.approx(probability, abs=1e-12)


def test_probability_never_overflows():
    assert s.probability([], ["superb"] * 1000) == 1.0
    assert s.probability([], ["awful"] * 1000) == 0.0


def test_continuations_complete_the_review():
    rng = np.random.default_rng(1)
    for words in take(200, seed=2):
        for length in range(2, 9):
            rest = s.continuation(words[:length], rng)
            assert 1 <= len(rest) <= s.MAX_COMPLETION_WORDS
            assert REVIEW.fullmatch(" ".join(words[:length] + rest))


def test_a_continuation_is_what_the_grammar_gives_after_the_prefix():
    """Compares with whole reviews that begin so and whose rest is short enough.

    Verbs of liking in what follows "the X was very": as many in the rests of whole
    reviews as in continuations of the same prefixes, within 5 standard errors.
    """
    whole, drawn, rng = [], [], np.random.default_rng(3)
    for words in take(60_000, seed=4):
        if words[3] == "very" and len(words) - 4 <= s.MAX_COMPLETION_WORDS:
            rest = " ".join(words[4:])
            whole.append(np.mean([rest.count(word) for word in s.LIKED]))
            again = " ".join(s.continuation(words[:4], rng))
            drawn.append(np.mean([again.count(word) for word in s.LIKED]))
    spread = math.sqrt((np.var(whole) + np.var(drawn)) / len(whole))
    assert len(whole) > 1000
    assert abs(np.mean(whole) - np.mean(drawn)) < 5 * spread


def test_the_mood_is_drawn_from_its_posterior():
    """After "the film was good": odds of the mood are 3 to 1, after "i loved" 4 to 1.

    Both together, with a clause end between them (equal under both moods): 12 to 1.
    """
    _, positive = s._follow("the film was good".split())
    assert positive == pytest.approx(3 / 4)
    _, positive = s._follow("i loved the film . the plot was good".split())
    assert positive == pytest.approx(12 / 13)
    _, positive = s._follow("the film was not good".split())
    assert positive == pytest.approx(1 / 4)


def test_pairs_are_labelled_by_the_reward_and_well_formed():
    for row in pairs(0, 300, split="train"):
        prompt = row["prompt"].split()
        assert 2 <= len(prompt) <= 8 and row["prompt"] == " ".join(prompt)
        for name in ("chosen", "rejected"):
            assert row[name].startswith(" ")
            assert REVIEW.fullmatch(row["prompt"] + row[name])
        rewards = [s.reward(prompt, row[n].split()) for n in ("chosen", "rejected")]
        assert rewards[0] > rewards[1]


def test_bradley_terry_labels_agree_with_the_reward_as_often_as_they_should():
    """The mean of 1[chosen is better] − sigmoid(|margin|) is 0 within 5 SE."""
    gaps = []
    for row in pairs(5, 2000, split="train", labels="bradley_terry"):
        words = row["prompt"].split()
        both = (row["chosen"], row["rejected"])
        chosen, rejected = (s.reward(words, text.split()) for text in both)
        assert (row["score_chosen"], row["score_rejected"]) == (chosen, rejected)
        sure = 1 / (1 + math.exp(-abs(chosen - rejected)))
        gaps.append((chosen > rejected) - sure)
    assert abs(np.mean(gaps)) < 5 * np.std(gaps) / math.sqrt(len(gaps))
    with pytest.raises(ConfigError, match="data.labels='noisy'"):
        pairs(0, 1, split="train", labels="noisy")


def test_streams_are_reproducible_and_apart():
    first = pairs(7, 20, split="train")
    assert pairs(7, 40, split="train")[:20] == first
    assert pairs(7, 20, split="eval") != first
    assert pairs(8, 20, split="train") != first
    assert s.prompts(7, 20, split="train") != s.prompts(7, 20, split="eval")
    rows = pairs(7, 20, split="train", kind="completions")
    assert [row["prompt"] for row in rows] != [row["prompt"] for row in first]
    assert all(REVIEW.fullmatch(row["prompt"] + row["completion"]) for row in rows)


def test_twenty_thousand_rows_take_seconds():
    start = time.process_time()
    pairs(0, 2000, split="train")
    assert time.process_time() - start < 2.0


def test_the_tokenizer_survives_saving(tmp_path):
    transformers = pytest.importorskip("transformers")
    text = "the movie was very good ."
    built = s.tokenizer()
    built.save_pretrained(tmp_path)
    for tokenizer in (built, transformers.AutoTokenizer.from_pretrained(tmp_path)):
        ids = tokenizer(text)["input_ids"]
        assert ids == [1, *(s.VOCABULARY.index(word) for word in text.split())]
        bare = tokenizer(" " + text, add_special_tokens=False)["input_ids"]
        assert bare == ids[1:]
        assert tokenizer.decode(bare) == text
        special = tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id
        assert special == (0, 1, 2)
        assert len(tokenizer) == 61


def test_more_rows_than_anyone_waits_for_are_refused():
    with pytest.raises(ConfigError, match="1000001 rows of 'sentiment' are too many"):
        s.read(Request("train", rows=1_000_001))
