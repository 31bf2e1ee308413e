"""Continuations of a small decoder, scored again by the rows that training uses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layout_cases import rows_of
from sampling_cases import DECODER, PROMPTS, WARM, kept, one_device, params, run

from dpo_jax import heads, logps
from dpo_jax.models.decoder import Decoder, init_params
from dpo_jax.models.spec import preset
from dpo_jax.objectives.on_policy import SampleScorer
from dpo_jax.sampling import batches, pick, rollout
from dpo_jax.sampling.rollout import Decoding, Prompts
from dpo_jax.types import Head, Record, Samples
from dpo_jax.wiring.generation import make_decoding

VOCAB, NEW, N = 32, 6, 3
THREE = [PROMPTS[0], PROMPTS[2], PROMPTS[4]]  # of 3, 1 and 9 tokens
run_three = functools.partial(run, prompts=THREE, new=NEW, ends=())
samples = functools.cache(lambda how, n: run_three(how, n=n))
PLAIN = pick.sampler(temperature=1.0)


def laid_out():
    return batches.lay_out(THREE, batches.Part(16, [0, 1, 2], 3, 0, 1))


def score(batch):
    """Log-probs and logits of what a batch scores: f32[B, C], f32[B, C, V]."""
    apply = jax.jit(lambda params, batch: DECODER.apply({"params": params}, batch))
    with jax.set_mesh(one_device()):
        hidden, head = apply(params(), batch)
        stats = logps.list_stats(hidden, head, batch, chunk=64)
    states = np.take_along_axis(hidden, batch.parents[..., None], axis=1)
    return np.asarray(stats.logps), np.asarray(heads.logits(states, head))


def rescore(found):
    """Scores the first samples as the responses of ordinary training rows."""
    records = [
        Record(i, np.asarray(prompt, np.int32), (np.array(kept(found, i), np.int32),))
        for i, prompt in enumerate(THREE)
    ]
    return score(rows_of("padded", records)[2])


def test_greedy_takes_the_likeliest_token_of_a_fresh_pass():
    found = samples(pick.greedy, n=1)
    assert found.mask.all() and found.tokens.shape == (3, 1, NEW)
    _, logits = rescore(found)
    np.testing.assert_array_equal(logits.argmax(-1), found.tokens[:, 0])
    assert len({tuple(row) for row in found.tokens[:, 0].tolist()}) == 3
    assert not found.ended.any()


HOW = {
    "greedy": (pick.greedy, 1.0),
    "plain": (PLAIN, 1.0),
    "cold": (pick.sampler(temperature=0.5), 0.5),
    "hot": (WARM, 1.5),
}


@pytest.mark.parametrize("name", HOW)
def test_log_probs_are_those_of_training_rows_as_drawn(name):
    """Of log-softmax(logits / T), by NumPy, from a pass over whole rows."""
    how, temperature = HOW[name]
    found = samples(how, n=1)
    wide = rescore(found)[1].astype(np.float64) / temperature
    wide -= np.log(np.exp(wide).sum(-1, keepdims=True))
    wanted = np.take_along_axis(wide, found.tokens[:, 0, :, None], -1)[..., 0]
    np.testing.assert_allclose(found.logps[:, 0], wanted, atol=1e-4)


def test_rows_of_samples_are_a_forest():
    """A prompt and its three samples in one row: scored as when they were drawn."""
    found = samples(PLAIN, n=N)
    short = found._replace(mask=found.mask & (np.arange(NEW) < [[[6], [2], [4]]]))
    batch = rollout.rows_of(laid_out(), short)
    assert batch.tokens.shape == (3, 16 + N * NEW)
    scored, _ = score(batch)
    wanted = np.where(short.mask, found.logps, 0).reshape(3, -1)
    np.testing.assert_allclose(scored, wanted, atol=1e-4)
    lengths = logps.response_lengths(batch.slots, N)
    np.testing.assert_array_equal(lengths, short.mask.sum(-1))
    for row, number in np.ndindex(3, N):
        end = batch.tokens[row, batch.ends[row, number]]
        assert end == kept(short, row, number)[-1]


def test_rows_of_one_sample_have_no_gap():
    """Kernels that are told no mask see no padding before a token."""
    batch = rollout.rows_of(laid_out(), samples(PLAIN, n=1))
    docs = np.asarray(batch.docs)
    assert (np.diff(docs, axis=1) <= 0).all()
    assert docs.sum(1).tolist() == [len(prompt) + NEW for prompt in THREE]


def test_the_end_token_is_kept_and_nothing_follows():
    """The third greedy token of the first prompt is declared to be the end."""
    plain = samples(pick.greedy, n=1)
    eos = int(plain.tokens[0, 0, 2])
    found = run(pick.greedy, n=1, prompts=THREE, new=NEW, ends=(eos,))
    for row in range(3):
        same = np.flatnonzero(plain.tokens[row, 0] == eos)
        stop = same[0] + 1 if len(same) else NEW
        assert kept(found, row) == plain.tokens[row, 0, :stop].tolist()
        assert found.ended[row, 0] == bool(len(same))
        assert not found.tokens[row, 0, stop:].any()
        assert not found.logps[row, 0, stop:].any()
    assert found.mask[0].sum() <= 3 < NEW


def test_an_end_as_the_last_token_is_an_end():
    """The sixth of six tokens stops it: ended, not cut; an end in a prompt is none."""
    plain = samples(pick.greedy, n=1)
    eos = int(plain.tokens[0, 0, -1])
    assert eos not in plain.tokens[0, 0, :-1]
    prompts = [THREE[0], np.append(THREE[2], eos)]
    found = run(pick.greedy, n=1, prompts=prompts, new=NEW, ends=(eos,))
    assert found.ended[0, 0] and found.mask[0].all() and found.mask[1, 0, 0]


@pytest.mark.parametrize("new", [1, 2, 48])
def test_a_full_cache_is_as_good_as_a_roomy_one(new):
    """A prompt that fills its 16 places, so that P + G slots are all there are.

    With 48 new tokens they are all the positions of the model, too.
    """
    full = np.arange(3, 19)
    (alone,) = run(PLAIN, n=1, prompts=[full], new=new, ends=()).tokens
    with_others = run(PLAIN, n=1, prompts=[full, np.arange(3, 20)], new=new, ends=())
    np.testing.assert_array_equal(alone, with_others.tokens[0])
    rows = rows_of("padded", [Record(0, full.astype(np.int32), (alone[0],))])[2]
    said, _ = score(rows)
    found = run(PLAIN, n=1, prompts=[full], new=new, ends=())
    np.testing.assert_allclose(said[0, :new], found.logps[0, 0], atol=1e-4)


def test_all_rows_may_end_at_once_and_what_follows_is_empty():
    """The first token of everybody ends it, also where the second prompt is of one."""
    plain = run(pick.greedy, n=1, prompts=THREE, new=NEW, ends=())
    first = tuple(set(plain.tokens[:, 0, 0].tolist()))
    found = run(pick.greedy, n=2, prompts=THREE, new=NEW, ends=first)
    assert found.ended.all() and (found.mask.sum(-1) == 1).all()
    np.testing.assert_array_equal(
        found.tokens[..., 0], plain.tokens[..., 0].repeat(2, 1)
    )
    assert not found.tokens[..., 1:].any() and not found.logps[..., 1:].any()


def test_more_tokens_only_add_to_fewer():
    whole = samples(PLAIN, n=2)
    for new in (1, 3):
        short = run(PLAIN, n=2, prompts=THREE, new=new, ends=())
        np.testing.assert_array_equal(short.tokens, whole.tokens[..., :new])
        np.testing.assert_allclose(short.logps, whole.logps[..., :new], atol=1e-5)


def test_noise_is_keyed_by_prompt_and_sample():
    """All keys of two turns differ, and cutting prompts or samples changes none."""
    seed = jax.random.key(3)
    turns = [jax.random.fold_in(seed, turn) for turn in (0, 1)]
    ids, numbers = jnp.arange(8), jnp.arange(4)

    def data(key, ids, numbers):
        keys = rollout.sample_keys(key, ids, numbers)
        return np.asarray(jax.random.key_data(keys))

    whole = np.stack([data(turn, ids, numbers) for turn in turns])
    assert len(np.unique(whole.reshape(-1, 2), axis=0)) == 2 * 8 * 4
    for turn, expected in zip(turns, whole, strict=True):
        parts = [data(turn, ids[at : at + 4], numbers) for at in (0, 4)]
        np.testing.assert_array_equal(np.concatenate(parts), expected)
        np.testing.assert_array_equal(data(turn, ids, numbers[2:]), expected[:, 2:])


def stub(table, calls=None):
    """A bigram table that reads texts piece by piece."""

    def after(table, tokens):
        return jax.nn.one_hot(tokens, len(table)), Head(jnp.asarray(table), None), ()

    def prefill(table, batch, lengths, tokens):
        if calls is not None:
            calls.append(batch.tokens.shape)
        at = jnp.arange(len(lengths))
        return after(table, batch.tokens[at, lengths - 1])

    step = lambda table, tokens, positions, cache: after(table, tokens)  # noqa: E731
    return Decoding(jnp.float32, lambda table: table, prefill, step)


def test_a_prompt_is_read_once_for_all_its_samples():
    """Four samples of two prompts of 16 places: one prefill of [2, 16]; one program,
    whoever's parameters they are."""
    calls, tables = [], np.eye(4, dtype=np.float32)[[[0, 1, 2, 3], [1, 0, 3, 2]]]
    sampler = batches.make_sampler(
        stub(tables[0], calls), pick=WARM, stops=(), max_new_tokens=2, mesh=one_device()
    )
    prompts = [np.array([1, 2]), np.array([3])]
    with jax.set_mesh(sampler.mesh):
        for table in tables:
            ((_, _, found),) = batches.rollouts(
                table, prompts, jax.random.key(0), sampler=sampler, n=4, batch=8
            )
            assert found.tokens.shape == (2, 4, 2)
    assert calls == [(2, 16)]


def test_samples_follow_the_distribution():
    """20,000 draws from a table of three; 4 standard errors are 0.014 at most."""
    chances = np.array([0.2, 0.5, 0.3])
    table = jnp.log(jnp.asarray(np.tile(chances, (3, 1)), jnp.float32))
    state = rollout.start(
        table,
        Prompts(jnp.zeros((1, 1), int), jnp.ones(1, int), jnp.zeros(1, int)),
        jax.random.key(0),
        jnp.int32(0),
        20_000,
        model=stub(table),
        max_new_tokens=1,
        pick=PLAIN,
        stops=np.zeros(0, np.int32),
    )
    found = state.samples
    shares = np.bincount(found.tokens[:, 0], minlength=3) / 20_000
    errors = np.sqrt(chances * (1 - chances) / 20_000)
    assert (np.abs(shares - chances) < 4 * errors).all()
    picked = np.log(chances)[found.tokens[:, 0]]
    np.testing.assert_allclose(found.logps[:, 0], picked, atol=1e-6)


def test_cutting_ends_a_row_and_masks_the_rest():
    ones = np.ones((3, 4), np.int32)
    whole = Samples(ones, ones > 0, ones * 1.0, np.array([False, False, True]))
    found = rollout.cut(whole, np.array([2, 0, 4]))
    assert found.mask.sum(-1).tolist() == [2, 4, 4]
    assert found.tokens.sum(-1).tolist() == found.logps.sum(-1).tolist() == [2, 4, 4]
    assert found.ended.tolist() == [True, False, True]


def test_temperature_sharpens():
    """Logits 0, 1 at temperature 1/50 are 50 apart: always the larger."""
    keys = jax.random.split(jax.random.key(0), 500)
    logits = jnp.array([0.0, 1.0])
    draw = lambda value: jax.vmap(  # noqa: E731
        lambda key: pick.sampler(temperature=value)(logits, key)[0]
    )(keys)
    assert draw(0.02).all()
    assert abs(draw(1.0).mean() - 1 / (1 + np.exp(-1))) < 0.08
    assert abs(draw(100.0).mean() - 0.5) < 0.09


def bytes_of(vocab):
    """Temporary bytes of prefill, decoding and re-scoring of 8 · 4 samples of 32."""
    spec = preset("tiny", vocab=vocab, max_positions=96)
    decoder = Decoder(spec)
    params = jax.eval_shape(lambda key: init_params(spec, key), jax.random.key(0))
    like, model = jax.ShapeDtypeStruct, make_decoding(decoder)
    prompts = Prompts(like((8, 64), int), like((8,), int), like((8,), int))
    how = {"model": model, "pick": PLAIN, "stops": np.array([2])}
    start = functools.partial(rollout.start, n=4, max_new_tokens=32, **how)
    given = params, prompts, jax.random.key(0), jnp.int32(0)
    state, weights = jax.eval_shape(start, *given), jax.eval_shape(model.ready, params)
    kept = like((32,), np.int32)
    advance = functools.partial(rollout.advance, **how)
    scorer = SampleScorer(
        lambda params, rows: (*decoder.apply({"params": params}, rows), {}), chunk=16
    )

    def score(params, prompts, samples):
        rows = rollout.rows_of(prompts, samples)
        return scorer.tokens(params, rows)[0]["logps"]

    samples = jax.tree.map(
        lambda leaf: like((8, 4, *leaf.shape[1:]), leaf.dtype), state.samples
    )
    programs = {
        "start": (start, given),
        "advance": (advance, (weights, state, jnp.int32(32), kept)),
        "score": (score, (params, prompts, samples)),
    }
    return {
        name: jax.jit(run).lower(*args).compile().memory_analysis().temp_size_in_bytes
        for name, (run, args) in programs.items()
    }


def test_no_program_holds_a_vocabulary_for_every_token():
    """At 4,096 ids more, not half of the logits of all samples, or of all prompts.

    Decoding holds those of one token a row, re-scoring those of a chunk, the prefill
    those of the last token of each prompt.
    """
    few, many = bytes_of(1024), bytes_of(5120)
    whole = 4096 * 4 * np.array([8 * 64, 8 * 4 * 32, 8 * 4 * 32])
    grown = np.array([many[name] - few[name] for name in few])
    assert (grown < whole / 2).all(), (grown, whole)
