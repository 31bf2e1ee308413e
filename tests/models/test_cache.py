"""Slots against lists, and steps over a cache against whole passes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_cases import drawn

from dpo_jax import heads
from dpo_jax.models import attention, cache, decode
from dpo_jax.models.cache import Kept
from dpo_jax.models.decoder import Decoder
from dpo_jax.models.spec import DecoderSpec, preset
from dpo_jax.sampling.rollout import Prompts, prompt_rows

B, T, P = 3, 11, 7
LENGTHS = np.array([2, 7, 5], np.int32)
TOKENS = np.random.default_rng(2).integers(0, 40, (B, T), np.int32)
MIXED = DecoderSpec(
    model_type="llama",
    vocab=40,
    layers=3,
    width=16,
    heads=4,
    kv_heads=2,
    head_dim=4,
    ff=24,
    max_positions=32,
    rope_theta=100.0,
    windows=(3, 0, 64),
    rope_layers=(True, False, True),
    layout="sandwich",
    attn_softcap=2.0,
)
SPECS = {
    "mixed": MIXED,
    "gpt2": preset("tiny_gpt2", vocab=40, max_positions=16),
}


def rows(tokens, lengths):
    return prompt_rows(Prompts(jnp.array(tokens), lengths, np.arange(B)))


def test_a_layer_with_a_window_keeps_no_more_than_it():
    assert cache.slots_of(MIXED, 20) == [3, 20, 20]
    assert cache.slots_of(SPECS["gpt2"], 20) == [20, 20]


def test_slots_hold_the_newest_tokens_of_each_row():
    """Position p lies in slot p mod 4; by a list that is written to."""
    for newest in range(9):
        slots = [-1] * 4
        for position in range(newest + 1):
            slots[position % 4] = position
        found = np.asarray(cache.held(jnp.array([newest]), 4))[0]
        np.testing.assert_array_equal(np.maximum(found, -1), slots)


def test_filling_is_putting_one_by_one():
    fresh = np.random.default_rng(0).normal(size=(2, B, P, 2, 3)).astype(np.float32)
    for slots in (3, 7, 9):
        whole = cache.fill(Kept(*fresh), LENGTHS, slots)
        kept = Kept(*np.zeros((2, B, 2, slots, 3), np.float32))
        for t in range(P):
            one = Kept(*fresh[:, :, t : t + 1])
            written = cache.put(kept, one, jnp.full(B, t))
            still = (t < LENGTHS)[:, None, None, None]
            kept = Kept(*(np.where(still, *p) for p in zip(written, kept, strict=True)))
        seen = np.asarray(cache.held(LENGTHS - 1, slots) >= 0)[:, None, :, None]
        for ours, theirs in zip(whole, kept, strict=True):
            np.testing.assert_array_equal(np.where(seen, ours, 0), theirs)


@pytest.mark.parametrize("softcap", [0.0, 1.5])
def test_attention_to_the_past_is_that_of_whole_rows(softcap):
    """Four query heads on two kv heads of seven slots, of which some are seen."""
    rng = np.random.default_rng(1)
    q, keys, values = (
        jnp.asarray(rng.normal(size=(B, *shape)), jnp.float32)
        for shape in ((1, 4, 5), (2, P, 5), (2, P, 5))
    )
    seen = (np.arange(P) < LENGTHS[:, None])[:, None, None, :]
    given = {"scale": 0.7, "softcap": softcap}
    found = attention.over_past(q, keys, values, seen, **given)
    rows = (x.swapaxes(1, 2) for x in (keys, values))
    wanted = attention.attention(q, *rows, seen, **given, backend=attention.DENSE)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    half = attention.over_past(q, keys.astype("bfloat16"), values, seen, **given)
    assert half.dtype == jnp.float32 and 1e-5 < np.abs(half - wanted).max() < 0.05


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(
    ("dtype", "cached_as"),
    [("float32", None), ("bfloat16", None), ("float32", "bfloat16")],
)
def test_steps_are_the_whole_pass(name, dtype, cached_as):
    """Prompts of 2, 7 and 5 tokens, then four more: the logits of one pass of each."""
    module = Decoder(SPECS[name], dtype=jnp.dtype(dtype))
    params = jax.tree.map(lambda leaf: 0.3 * leaf, drawn(SPECS[name]))
    step = jax.jit(functools.partial(decode.step, module))
    weights = decode.ready(module, params)
    hidden, head, cached = decode.prefill(
        module, params, rows(TOKENS[:, :P], LENGTHS), LENGTHS, tokens=T, dtype=cached_as
    )
    found, row = [heads.logits(hidden, head)], np.arange(B)
    for t in range(4):
        at = LENGTHS + t
        hidden, head, cached = step(weights, TOKENS[row, at], at, cached)
        found.append(heads.logits(hidden, head))
    whole, head = module.apply({"params": params}, rows(TOKENS, LENGTHS + 4))
    assert cached[0].keys.dtype == (cached_as or dtype)
    for t, values in enumerate(found):
        wanted = heads.logits(whole[row, LENGTHS + t - 1], head)
        error = 1e-5 if cached[0].keys.dtype == "float32" else 3e-2
        np.testing.assert_allclose(values, wanted, atol=error)
        assert np.ptp(wanted) > 0.5
