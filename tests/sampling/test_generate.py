"""Continuations of a small decoder, scored again by the rows that training uses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import heads, logps
from dpo_jax.data import layouts
from dpo_jax.models.decoder import Decoder, init_params
from dpo_jax.models.spec import preset
from dpo_jax.sampling import pick
from dpo_jax.sampling.generate import Decoding, generate, rows
from dpo_jax.types import Head, Record
from dpo_jax.wiring.generation import make_decoding

VOCAB, NEW, NEVER = 32, 6, -1
SPEC = preset("tiny", vocab=VOCAB, max_positions=32)
PROMPTS = [[5, 9, 2], [7], [3, 3, 8, 30, 11]]
LENGTHS = np.array([len(p) for p in PROMPTS], np.int32)
WARM = pick.temperature(1.0)


DECODING = make_decoding(
    SPEC, dtype="float32", attention="xla", length=0, constrain=lambda x: x
)


def apply(params, batch):
    return Decoder(SPEC).apply({"params": params}, batch)


@functools.cache
def params():
    """Larger weights than those of a fresh model, so that its choices are clear."""
    drawn = jax.jit(init_params, static_argnums=0)(SPEC, jax.random.key(1))
    return jax.tree.map(lambda leaf: 4 * leaf, drawn)


def padded_prompts(width=5):
    out = np.zeros((len(PROMPTS), width), np.int32)
    for row, prompt in zip(out, PROMPTS, strict=True):
        row[: len(prompt)] = prompt
    return out


@functools.partial(jax.jit, static_argnames=("new", "how"))
def run(params, prompts, lengths, key, eos, *, how, new):
    return generate(
        params,
        prompts,
        lengths,
        key,
        model=DECODING,
        max_new_tokens=new,
        pick=how,
        stops=jnp.array([eos]),
    )


@functools.cache
def samples(how=pick.greedy, seed=0, eos=NEVER, new=NEW):
    key = jax.random.key(seed)
    found = run(params(), padded_prompts(), LENGTHS, key, eos, how=how, new=new)
    return jax.device_get(found)


def kept(found, row):
    return found.tokens[row][found.mask[row]]


def rescore(found):
    """Scores what was generated as the responses of ordinary training rows."""
    records = [
        Record(i, np.array(prompt, np.int32), (kept(found, i),))
        for i, prompt in enumerate(PROMPTS)
    ]
    lengths = [layouts.lengths_of(record) for record in records]
    row_tokens = layouts.longest_document("padded", lengths)
    plan = layouts.padded(lengths, row_tokens)
    shape = layouts.measure(plan, lengths, row_tokens)
    batch = layouts.fill(plan, records, shape)
    hidden, head = jax.jit(apply)(params(), batch)
    stats = logps.token_logps(hidden, head, batch.parents, batch.targets, chunk=64)
    states = np.take_along_axis(hidden, batch.parents[..., None], axis=1)
    return np.asarray(stats.logps), np.asarray(heads.logits(states, head))


def test_greedy_takes_the_likeliest_token_of_a_fresh_pass():
    found = samples()
    assert found.mask.all() and found.tokens.shape == (3, NEW)
    _, logits = rescore(found)
    np.testing.assert_array_equal(logits.argmax(-1), found.tokens)
    assert len({tuple(row) for row in found.tokens.tolist()}) == 3


@pytest.mark.parametrize("how", [pick.greedy, WARM], ids=["greedy", "sampled"])
def test_log_probs_are_those_of_training_rows(how):
    found = samples(how)
    again, _ = rescore(found)
    np.testing.assert_allclose(found.logps, again, atol=1e-4)


def test_the_end_token_is_kept_and_nothing_follows():
    """The third greedy token of row 0 is declared to be the end."""
    plain = samples()
    eos = int(plain.tokens[0, 2])
    found = samples(eos=eos)
    for row in range(len(PROMPTS)):
        same = np.flatnonzero(plain.tokens[row] == eos)
        stop = same[0] + 1 if len(same) else NEW
        np.testing.assert_array_equal(kept(found, row), plain.tokens[row, :stop])
        assert found.mask[row].sum() == stop
        assert not found.tokens[row, stop:].any() and not found.logps[row, stop:].any()
    assert found.mask[0].sum() <= 3 < NEW


def test_the_same_key_gives_the_same_samples():
    first, again = samples(WARM, seed=3), samples.__wrapped__(WARM, seed=3)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (samples(WARM, seed=4).tokens != first.tokens).any()
    assert (first.tokens != samples().tokens).any()


def test_more_tokens_only_add_to_fewer():
    short = samples(WARM, new=3)
    np.testing.assert_array_equal(short.tokens, samples(WARM).tokens[:, :3])


def test_a_prompt_does_not_feel_its_neighbours():
    """Alone and without padding, or in a batch behind a longer row: the same."""
    for row, prompt in enumerate(PROMPTS):
        alone = run(
            params(),
            np.array([prompt], np.int32),
            LENGTHS[row : row + 1],
            jax.random.key(0),
            NEVER,
            how=pick.greedy,
            new=NEW,
        )
        np.testing.assert_array_equal(alone.tokens[0], samples().tokens[row])
        np.testing.assert_allclose(alone.logps[0], samples().logps[row], atol=1e-5)


def test_rows_hold_one_document_each():
    batch = rows(jnp.array([[4, 5, 6], [7, 0, 0]]), jnp.array([3, 1]))
    assert batch.docs.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2]] * 2
    assert not batch.branches.any() and batch.parents.shape == (2, 0)


def test_samples_follow_the_distribution():
    """20,000 draws from a table of three; 4 standard errors are 0.014 at most."""
    chances = np.array([0.2, 0.5, 0.3])
    table = jnp.log(jnp.asarray(np.tile(chances, (3, 1)), jnp.float32))
    found = generate(
        table,
        jnp.zeros((20_000, 1), jnp.int32),
        jnp.ones(20_000, jnp.int32),
        jax.random.key(0),
        model=Decoding(
            ready=lambda t: t,
            prefill=lambda t, batch, lengths, tokens: (
                jax.nn.one_hot(batch.tokens[:, 0], 3),
                Head(t, None),
                (),
            ),
            step=lambda t, tokens, positions, cache: (
                jax.nn.one_hot(tokens, 3),
                Head(t, None),
                (),
            ),
        ),
        max_new_tokens=1,
        pick=WARM,
        stops=np.zeros(0, np.int32),
    )
    shares = np.bincount(found.tokens[:, 0], minlength=3) / 20_000
    errors = np.sqrt(chances * (1 - chances) / 20_000)
    assert (np.abs(shares - chances) < 4 * errors).all()
    picked = np.log(chances)[found.tokens[:, 0]]
    np.testing.assert_allclose(found.logps[:, 0], picked, atol=1e-6)


def test_temperature_sharpens():
    """Logits 0, 1 at temperature 1/50 are 50 apart: always the larger."""
    keys = jax.random.split(jax.random.key(0), 500)
    logits = jnp.array([0.0, 1.0])
    draw = lambda value: jax.vmap(  # noqa: E731
        lambda key: pick.temperature(value)(logits, key)
    )(keys)
    assert draw(0.02).all()
    assert abs(draw(1.0).mean() - 1 / (1 + np.exp(-1))) < 0.08
    assert abs(draw(100.0).mean() - 0.5) < 0.09
