"""The KL of rollouts against enumeration, with a model of three lines."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import exact
from dpo_jax.evals import rollout
from dpo_jax.sampling import pick
from dpo_jax.sampling.generate import Decoding, generate, rows
from dpo_jax.types import Head, Samples

VOCAB, NEW, EOS = 3, 3, 2
TABLES = np.random.default_rng(0).normal(size=(2, VOCAB, VOCAB)).astype(np.float32)
POLICY, REF = TABLES


def bigram(table, batch):
    return jax.nn.one_hot(batch.tokens, VOCAB), Head(jnp.asarray(table), None)


def after(table, tokens):
    return jax.nn.one_hot(tokens, VOCAB), Head(jnp.asarray(table), None), ()


DECODING = Decoding(
    ready=lambda table: table,
    prefill=lambda table, batch, lengths, tokens: after(
        table, batch.tokens[jnp.arange(len(lengths)), lengths - 1]
    ),
    step=lambda table, tokens, positions, cache: after(table, tokens),
)


def continuations():
    """All continuations of at most 3 tokens; those that end early end with EOS."""
    for length in range(1, NEW + 1):
        for words in itertools.product(range(VOCAB), repeat=length):
            if EOS not in words[:-1] and (words[-1] == EOS or length == NEW):
                yield words


ALL = list(continuations())


def log_probs(table, start):
    """log π of each continuation, by NumPy."""
    logps = table - np.log(np.exp(table).sum(-1, keepdims=True))
    chains = [(start, *words) for words in ALL]
    return np.array(
        [sum(logps[a, b] for a, b in zip(c, c[1:], strict=False)) for c in chains]
    )


def as_samples():
    tokens, mask = np.zeros((len(ALL), NEW), np.int32), np.zeros((len(ALL), NEW), bool)
    for row, words in enumerate(ALL):
        tokens[row, : len(words)], mask[row, : len(words)] = words, True
    return Samples(jnp.asarray(tokens), jnp.asarray(mask), jnp.zeros(mask.shape))


def sequence_kls(policy, ref, start):
    prompts = jnp.tile(jnp.array([[1, start]]), (len(ALL), 1))
    lengths = jnp.full(len(ALL), 2)
    return rollout.sequence_kl(
        policy,
        ref,
        prompts,
        lengths,
        as_samples(),
        apply=bigram,
        ref_apply=bigram,
        rows=rows,
    )


def test_there_are_fifteen_continuations():
    """1 of one token, 2 of two, 2·2·3 of three; their probabilities add up to 1."""
    assert len(ALL) == 15
    np.testing.assert_allclose(np.exp(log_probs(POLICY, 0)).sum(), 1, rtol=1e-6)


def test_kl_against_itself_is_zero():
    assert not np.asarray(sequence_kls(POLICY, POLICY, 0)).any()


def test_its_expectation_is_the_enumerated_kl():
    """Chain rule: Σ π(y)·Σ_t KL_t = KL(π‖ref) over whole continuations."""
    for start in range(VOCAB):
        ours, theirs = log_probs(POLICY, start), log_probs(REF, start)
        got = (np.exp(ours) * np.asarray(sequence_kls(POLICY, REF, start))).sum()
        want = exact.kl(jnp.asarray(ours), jnp.asarray(theirs))
        assert want > 0.05
        np.testing.assert_allclose(got, want, rtol=1e-5)


SAMPLE = functools.partial(
    generate,
    model=DECODING,
    max_new_tokens=NEW,
    pick=pick.temperature(1.0),
    stops=np.array([EOS]),
)
PLAY = rollout.make_play(apply=bigram, ref_apply=bigram, sample=SAMPLE, rows=rows)


def roll(policy, ref, prompts, seed=0, play=PLAY):
    return rollout.rollout(
        policy,
        ref,
        prompts,
        jax.random.key(seed),
        play=play,
        decode=lambda ids: " ".join(map(str, ids)),
        reward=lambda index, text: float(index % 2) + text.count("1"),
    )


def test_the_estimate_covers_the_enumerated_kl():
    """4,000 continuations; the mean lies within 4 standard errors."""
    found = roll(POLICY, REF, [np.array([0, 1], np.int32)] * 4000)
    mean, error = rollout.mean_se(found.kls)
    ours, theirs = log_probs(POLICY, 1), log_probs(REF, 1)
    want = float(exact.kl(jnp.asarray(ours), jnp.asarray(theirs)))
    assert abs(mean - want) < 4 * error < 0.1 * want
    mean, error = rollout.mean_se(found.lengths)
    assert abs(mean - (np.exp(ours) * list(map(len, ALL))).sum()) < 4 * error


def test_rewards_belong_to_prompts_and_texts():
    prompts = [np.array(p, np.int32) for p in ([0], [1, 0], [0, 1, 1], [1])]
    found = roll(POLICY, POLICY, prompts)
    assert not found.kls.any()
    for i, (text, reward) in enumerate(zip(found.texts, found.rewards, strict=True)):
        words = tuple(map(int, text.split()))
        assert words in ALL and found.lengths[i] == len(words)
        assert reward == i % 2 + words.count(1)
    again = roll(POLICY, REF, prompts)
    assert again.texts == found.texts and again.kls.all()  # common random numbers


def test_it_is_traced_once_for_all_evaluations():
    """The sampler is entered at the first of three evaluations, and never again."""
    entered = []

    def sample(*args):
        entered.append(args)
        return SAMPLE(*args)

    play = rollout.make_play(apply=bigram, ref_apply=bigram, sample=sample, rows=rows)
    prompts = [np.array([0, 1], np.int32)] * 4
    found = [roll(table, REF, prompts, play=play) for table in (POLICY, REF, POLICY)]
    assert len(entered) == 1
    assert found[0].texts == found[2].texts and not found[1].kls.any()


def test_prompts_are_left_aligned():
    padded, lengths = rollout.pad_prompts([np.array([4, 5]), np.array([6])])
    assert padded.tolist() == [[4, 5], [6, 0]] and lengths.tolist() == [2, 1]


def test_mean_and_standard_error_by_hand():
    """1, 2, 3: mean 2, deviation 1, error 1/√3."""
    mean, error = rollout.mean_se(np.array([1.0, 2.0, 3.0]))
    assert mean == 2.0
    np.testing.assert_allclose(error, 1 / np.sqrt(3))
