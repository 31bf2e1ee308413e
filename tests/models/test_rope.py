"""Angles by hand, and the turning itself."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest
from family_cases import CONFIGS

from dpo_jax.models import hf, rope
from dpo_jax.models.spec import RopeScaling

LLAMA3 = RopeScaling("llama3", 8.0, 1.0, 4.0, 64)


def test_plain_frequencies_by_hand():
    """theta = 10⁴, four features: 10⁴^0 and 10⁴^−½."""
    pairs = rope.frequencies(1e4, 4, None, length=1)
    np.testing.assert_allclose(pairs, [1.0, 0.01], rtol=1e-6)
    assert pairs.dtype == np.float32


def test_llama3_by_hand():
    """Theta = 100: frequencies 1 and 0.1, wavelengths 2π ≈ 6.3 and 20π ≈ 62.8.

    original = 64, low 1, high 4: wavelengths below 64/4 = 16 stay; 62.8 lies between 16
    and 64, with (64/62.8 − 1)/(4 − 1) = 0.00620 of it kept and the rest divided by 8.
    With original = 32 the second is longer than 32/1 and divided in full.
    """
    pairs = rope.frequencies(100.0, 4, LLAMA3, length=1)
    kept = (64 / (20 * math.pi) - 1) / 3
    np.testing.assert_allclose(pairs, [1.0, 0.1 * (kept + (1 - kept) / 8)], rtol=1e-5)
    short = dataclasses.replace(LLAMA3, original_max_positions=32)
    pairs = rope.frequencies(100.0, 4, short, length=1)
    np.testing.assert_allclose(pairs, [1.0, 0.0125], rtol=1e-5)


def test_dynamic_by_hand():
    """Four features, factor 2, original 16.

    48 tokens: theta·(2·48/16 − 1)^(4/2) = 100·25, so the second pair is 1/√2500. Up to
    16 tokens nothing changes.
    """
    scaling = RopeScaling("dynamic", 2.0, original_max_positions=16)
    for length, second in ((48, 0.02), (16, 0.1), (3, 0.1)):
        pairs = rope.frequencies(100.0, 4, scaling, length=length)
        np.testing.assert_allclose(pairs, [1.0, second], rtol=1e-5)


def test_yarn_by_hand():
    """theta = e², 8 features: a pair i turns 64·e^(−i/2)/2π times in 64 tokens.

    beta_fast = 64/2π (pair 0) and beta_slow = 64/2π·e^(−1) (pair 2) are the ends of the
    ramp: pair 0 stays, pair 1 is half kept, pairs 2 and 3 are divided by 4. Ends at 0.5
    and 1.75 round outwards to the same; unrounded, pair 1 lies at 0.5/1.25 of the ramp.
    """
    theta, turns = math.e**2, 64 / (2 * math.pi)
    plain = np.exp(-np.arange(4) / 2)
    expected = plain * [1.0, (1 + 1 / 4) / 2, 1 / 4, 1 / 4]

    def pairs(first, last, truncate):
        scaling = RopeScaling(
            "yarn",
            4.0,
            original_max_positions=64,
            beta_fast=turns * math.exp(-first / 2) * (1 + 1e-9),
            beta_slow=turns * math.exp(-last / 2) * (1 + 1e-9),
            truncate=truncate,
        )
        return rope.frequencies(theta, 8, scaling, length=1)

    np.testing.assert_allclose(pairs(0, 2, False), expected, rtol=1e-5)
    np.testing.assert_allclose(pairs(0.5, 1.75, True), expected, rtol=1e-5)
    expected[1] = plain[1] * (0.4 / 4 + 0.6)
    np.testing.assert_allclose(pairs(0.5, 1.75, False), expected, rtol=1e-5)


def test_longrope_picks_its_factors_by_the_length_of_the_run():
    scaling = RopeScaling(
        "longrope",
        original_max_positions=16,
        short_factors=(1.0, 2.0),
        long_factors=(4.0, 5.0),
    )
    for length, expected in ((16, [1.0, 0.05]), (17, [0.25, 0.02])):
        pairs = rope.frequencies(100.0, 4, scaling, length=length)
        np.testing.assert_allclose(pairs, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"factor": 4.0}, 0.1 * math.log(4) + 1),
        ({}, 0.1 * math.log(64 / 16) + 1),
        ({"factor": 0.5}, 1.0),
        ({"factor": 4.0, "attention_factor": 0.3}, 0.3),
        (
            {"factor": 4.0, "mscale": 2.0, "mscale_all_dim": 0.5},
            (0.2 * math.log(4) + 1) / (0.05 * math.log(4) + 1),
        ),
    ],
)
def test_the_attention_factor_of_yarn(settings, expected):
    """Where the factor is left out, it is max / original positions = 64 / 16."""
    yarn = {"rope_type": "yarn", "original_max_position_embeddings": 16, **settings}
    spec = hf.spec_of(CONFIGS["llama"] | {"rope_scaling": yarn})
    assert spec.rope_scaling.attention_factor == pytest.approx(expected)
    _, magnitude = rope.per_layer(spec, 64)
    np.testing.assert_allclose(magnitude, expected, rtol=1e-6)


def test_the_attention_factor_of_longrope():
    """64 positions grown from 16: √(1 + ln 4 / ln 16) = √1.5."""
    longrope = {"type": "su", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    spec = hf.spec_of(
        CONFIGS["phi3"]
        | {"rope_scaling": longrope, "original_max_position_embeddings": 16}
    )
    assert spec.rope_scaling.attention_factor == pytest.approx(math.sqrt(1.5))


def test_layers_turn_by_what_they_are():
    """Windowed layers by the local theta, unscaled; layers without positions not."""
    scaling = {"rope_type": "linear", "factor": 8.0}
    spec = hf.spec_of(CONFIGS["gemma3_text"] | {"rope_scaling": scaling})
    pairs, _ = rope.per_layer(spec, 64)
    near = rope.frequencies(1e4, 16, None, length=64)
    far = rope.frequencies(1e6, 16, None, length=64) / 8
    for layer in range(7):
        np.testing.assert_allclose(pairs[layer], far if layer == 5 else near)
    spec = hf.spec_of(CONFIGS["olmo3"])  # yarn on the full layer only
    pairs, magnitude = rope.per_layer(spec, 64)
    plain = rope.frequencies(5e5, 8, None, length=64)
    np.testing.assert_array_equal(magnitude, np.float32([1, 1, 1, 0.7]))
    np.testing.assert_allclose(pairs[:3], np.stack([plain] * 3))
    np.testing.assert_allclose(pairs[3][-1], plain[-1] / 4)
    yarn = {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.5}
    spec = hf.spec_of(CONFIGS["smollm3"] | {"rope_scaling": yarn})
    pairs, magnitude = rope.per_layer(spec, 64)
    np.testing.assert_array_equal(magnitude, [0.5, 0.5, 0.5, 1.0])
    assert (pairs[3] == 0).all() and (pairs[:3] > 0).all()


def test_queries_grow_by_position_one_step_an_original_context():
    """Of 8: 1 at 0…7, 1 + ½·ln 2 at 8…15, 1 + ½·ln 3 from 16; None without a β."""
    spec = hf.spec_of(CONFIGS["ministral3"])
    scale = rope.query_scale(spec, jnp.array([[0, 7, 8, 15, 16]]))
    steps = [0, 0, 1, 1, 2]
    expected = [1 + 0.5 * math.log(1 + step) for step in steps]
    np.testing.assert_allclose(scale[0, :, 0, 0], expected, rtol=1e-6)
    assert rope.query_scale(hf.spec_of(CONFIGS["mistral"]), jnp.zeros((1, 1))) is None


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_by_hand(interleaved):
    """A quarter turn takes a pair (a, b) to (−b, a); the fifth feature passes."""
    x = jnp.array([1.0, 2.0, 3.0, 4.0, 5.0]).reshape(1, 1, 1, 5)
    cos, sin = jnp.zeros((1, 1, 1, 2)), jnp.ones((1, 1, 1, 2))
    turned = rope.rotate(x, cos, sin, interleaved=interleaved)
    expected = [-2, 1, -4, 3, 5] if interleaved else [-3, -4, 1, 2, 5]
    np.testing.assert_array_equal(turned[0, 0, 0], expected)


def test_tables_hold_the_angle_of_the_position():
    """Position 3 at 0.5 radians per position is 1.5; both are doubled."""
    cos, sin = rope.table(jnp.array([[0, 3]]), jnp.array([0.5]), 2.0)
    assert cos.shape == (1, 2, 1, 1)
    np.testing.assert_allclose(cos[0, :, 0, 0], [2.0, 2 * math.cos(1.5)], rtol=1e-6)
    np.testing.assert_allclose(sin[0, :, 0, 0], [0.0, 2 * math.sin(1.5)], rtol=1e-6)
