"""The KL of rollouts against enumeration, with a model of three lines."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import exact
from dpo_jax.evals import rollouts
from dpo_jax.models.decoder import Decoder, init_params
from dpo_jax.models.spec import preset
from dpo_jax.sampling.rollout import Prompts, rows_of
from dpo_jax.types import Head, Samples

VOCAB, NEW, EOS = 3, 3, 2
TABLES = np.random.default_rng(0).normal(size=(2, VOCAB, VOCAB)).astype(np.float32)
POLICY, REF = TABLES


def bigram(table, batch):
    return jax.nn.one_hot(batch.tokens, VOCAB), Head(jnp.asarray(table), None), {}


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
    """All of them, as the one sample of as many equal prompts."""
    tokens, mask = np.zeros((len(ALL), NEW), np.int32), np.zeros((len(ALL), NEW), bool)
    for row, words in enumerate(ALL):
        tokens[row, : len(words)], mask[row, : len(words)] = words, True
    one = tokens[:, None], mask[:, None], np.zeros((len(ALL), 1, NEW))
    return Samples(*map(jnp.asarray, one), ended=jnp.ones((len(ALL), 1), bool))


def sequence_kls(policy, ref, start):
    prompts = Prompts(
        jnp.tile(jnp.array([[1, start]]), (len(ALL), 1)),
        jnp.full(len(ALL), 2),
        jnp.arange(len(ALL)),
    )
    found = rollouts.sequence_kl(
        policy,
        ref,
        rows_of(prompts, as_samples()),
        apply=bigram,
        ref_apply=bigram,
        chunk=2,
    )
    return np.asarray(found)[:, 0]


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


def of_decoder(spec):
    return lambda params, batch: (*Decoder(spec).apply({"params": params}, batch), {})


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_it_is_that_of_whole_arrays_of_logits(temperature):
    """Two small decoders and a forest of three samples a prompt, by log-softmax."""
    spec = preset("tiny", vocab=11, max_positions=16)
    keys = jax.random.split(jax.random.key(0))
    policy, ref = (jax.tree.map(lambda x: 4 * x, init_params(spec, k)) for k in keys)
    apply = of_decoder(spec)
    rng = np.random.default_rng(1)
    mask = np.arange(NEW) < np.array([[3, 1, 2], [2, 3, 3]])[..., None]
    tokens = np.where(mask, rng.integers(0, 11, mask.shape), 0)
    prompts = Prompts(rng.integers(0, 11, (2, 4)), np.array([4, 2]), np.arange(2))
    batch = rows_of(prompts, Samples(tokens, mask, np.zeros(mask.shape), mask.any(-1)))
    of = {"apply": apply, "ref_apply": apply, "temperature": temperature}
    found = rollouts.sequence_kl(policy, ref, batch, chunk=2, **of)

    def log_probs(params):
        hidden, head, _ = apply(params, batch)
        states = np.take_along_axis(hidden, batch.parents[..., None], axis=1)
        return jax.nn.log_softmax(states @ head.kernel / temperature)

    ours, theirs = log_probs(policy), log_probs(ref)
    kl = (np.exp(ours) * (ours - theirs)).sum(-1).reshape(mask.shape)
    np.testing.assert_allclose(found, np.where(mask, kl, 0).sum(-1), rtol=1e-4)
    assert (np.asarray(found) > 0.01).all()


def test_the_whole_vocabulary_is_held_for_one_chunk_only():
    """Temporary bytes of 64 tokens of 4,096 ids, against those of their logits."""
    spec = preset("tiny", vocab=4096, max_positions=128)
    params = jax.eval_shape(lambda key: init_params(spec, key), jax.random.key(0))
    apply = of_decoder(spec)

    def kl(policy, ref, prompts, samples):
        batch = rows_of(prompts, samples)
        return rollouts.sequence_kl(
            policy, ref, batch, apply=apply, ref_apply=apply, chunk=4
        )

    like = jax.ShapeDtypeStruct
    prompts = Prompts(like((8, 16), int), like((8,), int), like((8,), int))
    shape = (8, 1, 64)
    samples = Samples(
        like(shape, int), like(shape, bool), like(shape, float), like((8, 1), bool)
    )
    compiled = jax.jit(kl).lower(params, params, prompts, samples).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 8 * 64 * 4096 * 4


def test_rewards_belong_to_prompts_and_texts():
    tokens = np.array([[[0, 1, 2]], [[1, 2, 0]], [[2, 0, 0]]])
    mask = np.arange(3) < np.array([3, 2, 1])[:, None, None]
    samples = Samples(tokens, mask, np.zeros(mask.shape), np.ones((3, 1), bool))
    found = rollouts.judged(
        samples,
        np.array([[0.5], [0.25], [0.0]], np.float32),
        decode=lambda ids: " ".join(map(str, ids)),
        judge=by_index,
    )
    assert found.texts == ["0 1 2", "1 2", "2"]
    assert found.rewards.tolist() == [1.0, 11.0, 20.0]
    assert found.kls.tolist() == [0.5, 0.25, 0.0]
    assert found.lengths.tolist() == [3.0, 2.0, 1.0]
    assert found.best == {} and found.absent == 0


def by_index(texts, ids):
    """10 a prompt, 1 for each token 1; the score is the length, and 3 has none."""
    rewards = [[10.0 * i + of.count("1") for of in row] for i, row in enumerate(texts)]
    scores = [[len(of) if len(of) < 3 else np.nan for of in row] for row in ids]
    rewards, scores = np.array(rewards), np.array(scores, float)
    if rewards.shape[1] == 1:
        scores = rewards
    return rollouts.Judged(rewards, scores, {"short": scores})


def test_several_samples_are_averaged_and_the_best_is_that_of_the_score():
    """Of lengths 1, 2, 3: 3 has no verdict and 2 is the best of the others."""
    tokens = np.array([[[1, 0, 0], [1, 1, 0], [0, 0, 1]]])
    mask = np.arange(3) < np.array([[1, 2, 3]])[..., None]
    samples = Samples(tokens, mask, np.zeros(mask.shape), np.ones((1, 3), bool))
    kls = np.array([[0.5, 0.25, 0.75]], np.float32)
    found = rollouts.judged(
        samples, kls, decode=lambda ids: " ".join(map(str, ids)), judge=by_index
    )
    assert found.texts == ["1"] and found.absent == 1
    assert found.shown.tolist() == [1.0]  # of the text that is shown
    assert found.rewards.tolist() == [4 / 3] and found.kls.tolist() == [0.5]
    assert found.lengths.tolist() == [2.0] and found.by_name["short"].tolist() == [1.5]
    assert found.best[2].tolist() == [2.0] and np.isnan(found.best[3]).all()


def test_mean_and_standard_error_by_hand():
    """1, 2, 3: mean 2, deviation 1, error 1/√3; one value has no error."""
    mean, error = rollouts.mean_se(np.array([1.0, 2.0, 3.0]))
    assert mean == 2.0 and error == pytest.approx(1 / np.sqrt(3))
    assert rollouts.mean_se(np.array([4.0])) == (4.0, None)
    assert rollouts.mean_se(np.array([np.nan, 1.0, 2.0, 3.0])) == (mean, error)
