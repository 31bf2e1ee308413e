"""What a `config.json` says, in both spellings, and what is refused by name."""

import math

import numpy as np
import pytest

from dpo_jax import errors
from dpo_jax.models import decoder, hf
from dpo_jax.models.families import FAMILIES
from dpo_jax.models.spec import RopeScaling

LLAMA = {
    "model_type": "llama",
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
}
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 60,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "n_ctx": 64,
    "layer_norm_epsilon": 1e-5,
    "activation_function": "gelu_new",
    "resid_pdrop": 0.1,
    "task_specific_params": {"text-generation": {"max_length": 50}},
}
CONFIGS = {"llama": LLAMA, "gpt2": GPT2}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def refusal(config):
    with pytest.raises(errors.ModelError) as caught:
        hf.spec_of(config)
    return str(caught.value)


def test_absent_attributes_mean_what_hf_means_by_their_absence():
    """Llama: heads of width/heads, theta 1e4, no bias, untied; GPT-2: 4·width, tied."""
    llama = hf.spec_of(LLAMA)
    assert (llama.head_dim, llama.rope_theta, llama.tie) == (8, 1e4, False)
    assert (llama.qkv_bias, llama.out_bias, llama.mlp_bias) == (False,) * 3
    no_kv = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}
    assert hf.spec_of(no_kv).kv_heads == 4
    gpt2 = hf.spec_of(GPT2)
    assert (gpt2.ff, gpt2.tie, gpt2.rope_theta, gpt2.gated) == (128, True, 0, False)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"rope_theta": 5e5, "rope_scaling": None}, None),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, None),
        (
            {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
            RopeScaling("linear", 2.0),
        ),
        (
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
            RopeScaling("llama3", 8.0, 1.0, 4.0, 64),
        ),
        (
            {
                "rope_parameters": {
                    "rope_theta": 5e5,
                    "rope_type": "llama3",
                    **LLAMA3,
                }
            },
            RopeScaling("llama3", 8.0, 1.0, 4.0, 64),
        ),
    ],
)
def test_both_spellings_of_rope_mean_the_same(settings, expected):
    spec = hf.spec_of({**LLAMA, **settings})
    assert (spec.rope_theta, spec.rope_scaling) == (5e5, expected)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_type='yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0, "beta": 3}},
            "beta=3 is not supported",
        ),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 2e4}}, "contradicts"),
        ({"rope_scaling": "linear"}, "must be an object"),
    ],
)
def test_rope_settings_that_are_not_understood_are_refused(settings, text):
    assert text in refusal({**LLAMA, **settings})


def test_llama3_scaling_of_frequencies_by_hand():
    """E = 4, theta = 100: frequencies 1 and 0.1, wavelengths 2π ≈ 6.3 and 20π ≈ 62.8.

    original = 64, low 1, high 4: wavelengths below 64/4 = 16 stay; 62.8 lies between 16
    and 64, with (64/62.8 − 1)/(4 − 1) = 0.00620 of it kept and the rest divided by 8.
    With original = 32 the second is longer than 32/1 and divided in full.
    """
    base = {**LLAMA, "head_dim": 4, "rope_theta": 100.0}
    scaled = {"rope_type": "llama3", **LLAMA3}
    frequencies = decoder.rope_frequencies(hf.spec_of({**base, "rope_scaling": scaled}))
    kept = (64 / (20 * math.pi) - 1) / 3
    expected = [1.0, 0.1 * (kept + (1 - kept) / 8)]
    np.testing.assert_allclose(frequencies, expected, rtol=1e-5)
    scaled = {**scaled, "original_max_position_embeddings": 32}
    frequencies = decoder.rope_frequencies(hf.spec_of({**base, "rope_scaling": scaled}))
    np.testing.assert_allclose(frequencies, [1.0, 0.0125], rtol=1e-5)


def test_unknown_attributes_are_all_named_unless_they_are_off():
    off = {"sliding_window": None, "use_qk_norm": False, "extra": {}}
    assert hf.spec_of({**LLAMA, **off}) == hf.spec_of(LLAMA)
    text = refusal(
        {
            **LLAMA,
            "sliding_window": 8,
            "quantization_config": {"bits": 4},
            "hidden_size": 0,
        }
    )
    for name in ("sliding_window=8", "quantization_config", "hidden_size=0"):
        assert name in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scale_attn_by_inverse_layer_idx", True),
        ("scale_attn_weights", False),
        ("add_cross_attention", True),
        ("activation_function", "relu"),
        ("n_head", 5),
        ("vocab_size", "60"),
        ("tie_word_embeddings", "yes"),
    ],
)
def test_gpt2_refuses_what_it_cannot_compute(name, value):
    assert name in refusal({**GPT2, name: value})


def test_missing_sizes_are_all_named():
    text = refusal({"model_type": "llama"})
    for name in ("vocab_size=None", "hidden_size=None", "rms_norm_eps=None"):
        assert name in text


def test_sizes_that_do_not_fit_are_refused():
    assert "kv_heads=3 must divide heads=4" in refusal(
        {**LLAMA, "num_key_value_heads": 3}
    )


def test_an_unknown_model_type_lists_the_known_ones():
    text = refusal({"model_type": "lama"})
    assert "did you mean 'llama'? Known: gpt2, llama" in text
    assert "model_type=None" in refusal({})


def test_remote_code_is_refused_even_for_a_known_type():
    text = refusal({**LLAMA, "auto_map": {"AutoModel": "modeling.Evil"}})
    assert "refuses remote code" in text


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("variant", ["plain", "other"])
def test_to_hf_is_read_back_to_the_same_spec(name, variant):
    other = {
        "llama": {
            "rope_scaling": {"rope_type": "llama3", **LLAMA3},
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "head_dim": 16,
            "hidden_act": "gelu_pytorch_tanh",
        },
        "gpt2": {
            "n_inner": 40,
            "activation_function": "gelu",
            "tie_word_embeddings": False,
        },
    }
    extra = other[name] if variant == "other" else {}
    spec = hf.spec_of({**CONFIGS[name], **extra})
    assert hf.spec_of(FAMILIES[name].to_hf(spec)) == spec


@pytest.mark.parametrize("name", FAMILIES)
def test_every_row_has_a_place_in_some_tree_and_every_leaf_a_row(name):
    """The union of all biases, untied, covers the table; each leaf has one row."""
    full = {
        "llama": {"attention_bias": True, "mlp_bias": True},
        "gpt2": {"tie_word_embeddings": False},
    }
    spec = hf.spec_of({**CONFIGS[name], **full[name]})
    paths = [path for row in FAMILIES[name].table for path in row.paths]
    assert sorted(paths) == sorted(decoder.leaves(spec))
