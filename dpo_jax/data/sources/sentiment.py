"""Little film reviews with a known reward: the embedded data.

A review is a walk through a small grammar. A hidden mood (+1 or −1) tilts its words;
the reward of a completion is the sum of its words' weights, so every label, and the
optimal policy, can be computed. Because the grammar is a chain of states, a prefix can
be continued exactly as the grammar would: the mood is drawn from its posterior.
Source: the controlled-sentiment task of arXiv:2305.18290 §6, in miniature.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from dpo_jax.data.sources.files import Request, Rows
from dpo_jax.errors import ConfigError, unknown

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
NOUNS = (
    "movie film plot acting script cast ending music "
    "story director hero scene dialogue pace humor camera"
).split()
GOOD = {
    "good": 1.0,
    "great": 1.5,
    "fun": 0.8,
    "superb": 2.0,
    "moving": 1.0,
    "clever": 1.0,
    "fresh": 0.6,
    "brilliant": 2.0,
}
BAD = {
    "bad": -1.0,
    "awful": -2.0,
    "dull": -1.0,
    "weak": -0.8,
    "boring": -1.2,
    "silly": -0.6,
    "lazy": -1.0,
    "terrible": -2.0,
}
NEUTRAL = "long short loud quiet old new dark slow".split()
LIKED = {"loved": 1.5, "liked": 1.0, "enjoyed": 1.2}
HATED = {"hated": -1.5, "disliked": -1.0, "regretted": -1.2}
WATCHED = "watched saw rented".split()
VOCABULARY = [PAD, BOS, EOS, *"the this was and but i very not .".split()] + [
    *NOUNS,
    *GOOD,
    *BAD,
    *NEUTRAL,
    *LIKED,
    *HATED,
    *WATCHED,
]
WEIGHTS = GOOD | BAD | LIKED | HATED
MODIFIERS = {"not": -0.7, "very": 1.5}

PROMPT_WORDS = (2, 8)  # shortest and longest prompt
MAX_COMPLETION_WORDS = 16
CLAUSES = (2, 5)  # fewest and most clauses of a review
DEFAULT_ROWS = {"train": 20_000, "eval": 512}
LABELS = ("deterministic", "bradley_terry")
_PURPOSES = ("pairs", "completions", "prompts")

State = tuple[str, int]  # (what comes next, clauses finished)


class _Branch(NamedTuple):
    """What may follow a state: words, their cumulative probabilities, next states."""

    words: list[str]
    cumulative: list[float]
    states: list[State]


def reviews(rng: np.random.Generator) -> Iterator[list[str]]:
    """Yields whole reviews without end, each of two to five clauses."""
    while True:
        mood = 1 if rng.random() < 0.5 else -1
        yield _walk(("clause", 0), mood, rng)


def reward(prompt_words: Sequence[str], completion_words: Sequence[str]) -> float:
    """Sums the weights of the completion's words: the log-odds of its being liked.

    Args:
      prompt_words: scored themselves never, but a `not` or `very` at their end acts
        on the first word of the completion.
      completion_words: words of the completion; those without a weight count 0.

    Returns:
      The reward; a weight counts ×1.5 right after `very`, ×(−0.7) after `not`.
    """
    total, last = 0.0, prompt_words[-1] if prompt_words else ""
    for word in completion_words:
        total += WEIGHTS.get(word, 0.0) * MODIFIERS.get(last, 1.0)
        last = word
    return total


def probability(prompt_words: Sequence[str], completion_words: Sequence[str]) -> float:
    """Returns the sigmoid of `reward`: the probability that a reader is pleased."""
    return _sigmoid(reward(prompt_words, completion_words))


def continuation(prefix: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Continues a prefix to the end of the review.

    Args:
      prefix: the first words of a review, not all of it.
      rng: drawn from.

    Returns:
      At most `MAX_COMPLETION_WORDS` words, drawn exactly from what the grammar gives
      after the prefix under that bound (longer ones are drawn anew, mood and all).
    """
    state, positive = _follow(prefix)
    while True:
        mood = 1 if rng.random() < positive else -1
        words = _walk(state, mood, rng)
        if len(words) <= MAX_COMPLETION_WORDS:
            return words


def prompts(seed: int, n: int, *, split: str) -> list[str]:
    """Makes prompts alone, for sampling."""
    return [" ".join(p) for p in _prefixes(n, _rng(seed, split, "prompts"))]


MOST_ROWS = 1_000_000


def read(request: Request) -> Rows:
    """Generates rows of the kind and number asked for; streams of splits are disjoint.

    Completions are whole reviews, for SFT. Of a pair, labels `deterministic` prefer the
    completion of higher reward, `bradley_terry` one with the sigmoid of the difference
    of rewards; completions of equal reward are redrawn.

    Raises:
      ConfigError: if `labels` is not known, or not used; of too many rows.
    """
    if request.rows > MOST_ROWS:
        raise ConfigError(
            f"{request.rows} rows of 'sentiment' are too many to make; ask for at most "
            f"{MOST_ROWS} (data.limit, eval.limit)"
        )
    n, split = request.rows or DEFAULT_ROWS[request.split], request.split
    if request.kind == "completions":
        if request.labels:
            raise ConfigError(
                f"data.labels={request.labels!r} is not used by completions"
            )
        rows = _completions(n, _rng(request.seed, split, "completions"))
    else:
        labels = request.labels or LABELS[0]
        rows = _pairs(n, labels, _rng(request.seed, split, "pairs"))
    return ((f"sentiment[{index}]", row) for index, row in enumerate(rows))


def tokenizer() -> Any:
    """Builds the word-level tokenizer of the reviews.

    Returns:
      A `PreTrainedTokenizerFast` over the 61 words, split at spaces: <pad> = 0,
      <bos> = 1 (put in front of every string), <eos> = 2.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: index for index, word in enumerate(VOCABULARY)}
    words = Tokenizer(models.WordLevel(ids))  # pyright: ignore
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore
    words.post_processor = processors.TemplateProcessing(  # pyright: ignore
        single=f"{BOS} $A",
        pair=f"{BOS} $A $B",
        special_tokens=[(BOS, ids[BOS])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    )


def _completions(n: int, rng: np.random.Generator) -> Iterator[dict[str, str]]:
    for prefix in _prefixes(n, rng):
        text = _text(continuation(prefix, rng))
        yield {"prompt": " ".join(prefix), "completion": text}


def _pairs(n: int, labels: str, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    if labels not in LABELS:
        raise ConfigError(unknown("data.labels", labels, LABELS))
    return (_pair(prefix, labels, rng) for prefix in _prefixes(n, rng))


def _pair(prefix: list[str], labels: str, rng: np.random.Generator) -> dict[str, Any]:
    while True:
        both = [continuation(prefix, rng) for _ in range(2)]
        rewards = [reward(prefix, words) for words in both]
        margin = rewards[0] - rewards[1]
        if abs(margin) > 1e-9:
            break
    if labels == "bradley_terry":
        first = rng.random() < _sigmoid(margin)
    else:
        first = margin > 0
    better, worse = (0, 1) if first else (1, 0)
    return {
        "prompt": " ".join(prefix),
        "chosen": _text(both[better]),
        "rejected": _text(both[worse]),
        "score_chosen": rewards[better],
        "score_rejected": rewards[worse],
    }


def _prefixes(n: int, rng: np.random.Generator) -> Iterator[list[str]]:
    shortest, longest = PROMPT_WORDS
    source = reviews(rng)
    for _ in range(n):
        length = shortest + int(rng.random() * (longest - shortest + 1))
        yield next(source)[:length]


def _rng(seed: int, split: str, purpose: str) -> np.random.Generator:
    stream = (tuple(DEFAULT_ROWS).index(split), _PURPOSES.index(purpose))
    return np.random.default_rng((seed, *stream))


def _text(words: Sequence[str]) -> str:
    return " " + " ".join(words)


def _sigmoid(x: float) -> float:
    return 0.5 * (1.0 + math.tanh(0.5 * x))


def _walk(state: State, mood: int, rng: np.random.Generator) -> list[str]:
    """Draws words from a state until the review ends."""
    words: list[str] = []
    while True:
        branch = _branch(state, mood)
        choice = bisect_right(branch.cumulative, rng.random() * branch.cumulative[-1])
        choice = min(choice, len(branch.words) - 1)
        if not branch.words[choice]:
            return words
        words.append(branch.words[choice])
        state = branch.states[choice]


def _follow(prefix: Sequence[str]) -> tuple[State, float]:
    """Returns the state after a prefix and the posterior of a positive mood."""
    state: State = ("clause", 0)
    likelihoods = {1: 1.0, -1: 1.0}
    for word in prefix:
        after = {}
        for mood in likelihoods:
            branch = _branch(state, mood)
            choice = branch.words.index(word)
            below = branch.cumulative[choice - 1] if choice else 0.0
            likelihoods[mood] *= branch.cumulative[choice] - below
            after[mood] = branch.states[choice]
        assert after[1] == after[-1]
        state = after[1]
    return state, likelihoods[1] / (likelihoods[1] + likelihoods[-1])


@cache
def _branch(state: State, mood: int) -> _Branch:
    """Returns what follows a state under a mood, zero-probability words left out."""
    what, finished = state
    options = [
        (word, chance, (after, finished + (word == ".")))
        for word, chance, after in _options(what, finished, mood)
        if chance > 0
    ]
    words, chances, states = (list(column) for column in zip(*options, strict=True))
    return _Branch(words, list(accumulate(chances)), states)


def _options(what: str, finished: int, mood: int) -> list[tuple[str, float, str]]:
    """The grammar: (word, probability, what comes next); the word '' ends a review."""
    if what == "clause":
        fewest, most = CLAUSES
        stop = 0.0 if finished < fewest else 1.0 / (most - finished + 1)
        go = 1.0 - stop
        subject = [("the", 0.42 * go, "subject"), ("this", 0.28 * go, "subject")]
        return [("", stop, "end"), ("i", 0.3 * go, "verb"), *subject]
    if what in ("first", "second"):
        return _description(what, mood)
    if what in ("not first", "not second"):
        return _adjectives(1.0, -mood, what.removeprefix("not "))
    if what in ("very first", "very second"):
        return _adjectives(1.0, mood, what.removeprefix("very "))
    if what == "verb":
        liked = 0.8 if mood > 0 else 0.2
        neutral = _spread(WATCHED, 0.3, "article")
        loved = _spread(LIKED, 0.7 * liked, "article")
        return neutral + loved + _spread(HATED, 0.7 * (1 - liked), "article")
    return {
        "subject": _spread(NOUNS, 1.0, "was"),
        "was": [("was", 1.0, "first")],
        "after first": [
            (".", 0.65, "clause"),
            ("and", 0.21, "second"),
            ("but", 0.14, "second"),
        ],
        "after second": [(".", 1.0, "clause")],
        "article": [("the", 0.6, "object"), ("this", 0.4, "object")],
        "object": _spread(NOUNS, 1.0, "after second"),
    }[what]


def _description(place: str, mood: int) -> list[tuple[str, float, str]]:
    """A fifth neutral; else `not` (12 %), `very` (a quarter of the rest) or plain."""
    neutral, negated = 0.2, 0.8 * 0.12
    very, plain = 0.8 * 0.88 * 0.25, 0.8 * 0.88 * 0.75
    return [
        *_spread(NEUTRAL, neutral, f"after {place}"),
        ("not", negated, f"not {place}"),
        ("very", very, f"very {place}"),
        *_adjectives(plain, mood, place),
    ]


def _adjectives(chance: float, mood: int, place: str) -> list[tuple[str, float, str]]:
    """Three quarters of the adjectives agree with the mood."""
    good = 0.75 if mood > 0 else 0.25
    after = f"after {place}"
    praise = _spread(GOOD, chance * good, after)
    return praise + _spread(BAD, chance * (1 - good), after)


def _spread(
    words: Sequence[str] | dict[str, float], chance: float, after: str
) -> list[tuple[str, float, str]]:
    return [(word, chance / len(words), after) for word in words]
