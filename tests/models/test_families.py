"""What a `config.json` says, in both spellings, and what is refused by name."""

import json

import pytest
from family_cases import CASES, CONFIGS

from dpo_jax import errors
from dpo_jax.models import decoder, families, hf, tensors
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
        ({"rope_scaling": {"type": "yarm", "factor": 2.0}}, "did you mean 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0, "beta": 3}},
            "beta=3 is not supported",
        ),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 2e4}}, "contradicts"),
        ({"rope_scaling": "linear"}, "must be an object"),
        ({"rope_scaling": {"rope_type": ["linear"], "factor": 2.0}}, "rope_type="),
    ],
)
def test_rope_settings_that_are_not_understood_are_refused(settings, text):
    assert text in refusal({**LLAMA, **settings})


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
    ("family", "extra"),
    [
        ("llama", {"is_llama_config": True, "rope_interleaved": False}),
        ("llama", {"transformers.js_config": {"dtype": "q4"}}),
        ("llama", {"neftune_noise_alpha": 5.0, "partial_rotary_factor": 1.0}),
        ("llama", {"max_sequence_length": 2048, "_model_name_or_path": "x"}),
        ("gpt2", {"n_special": 1, "predict_special_tokens": True, "n_embd": 64}),
        ("gpt2", {"output_past": True, "num_labels": 1, "torchscript": True}),
        ("gemma2", {"sliding_window_size": 5}),
    ],
)
def test_what_published_folders_write_down_is_left(family, extra):
    """SmolLM 2, NEFTune, Vicuna, GPT-2 medium and Gemma 2 9B: nothing reads it."""
    config = CONFIGS[family]
    extra = {k: config.get(k, v) for k, v in extra.items()}
    spec, left = families.described(config | extra)
    assert spec == hf.spec_of(config)
    on = {k for k, v in extra.items() if v not in (False, 1.0) and k not in config}
    assert {name.partition("=")[0] for name in left} >= on - {"num_labels"}


def test_an_attribute_may_be_ignored_by_name():
    mine = LLAMA | {"my_note": "x", "rope_interleaved": True}
    text = refusal(mine)
    assert "rope_interleaved=True is not supported: it turns neighbours" in text
    assert "model.ignore_attributes=('my_note',)" in text
    with pytest.raises(errors.ModelError, match="rope_interleaved"):
        hf.spec_of(mine, ["my_note"])
    assert hf.spec_of(mine, ["my_note", "rope_interleaved"]) == hf.spec_of(LLAMA)
    assert "hidden_size=0" in refusal({**LLAMA, "hidden_size": 0, "my_note": 0})
    assert "partial_rotary_factor=0.5" in refusal(
        LLAMA | {"partial_rotary_factor": 0.5}
    )


def test_names_that_transformers_maps_are_known_in_both_spellings():
    other = {k: v for k, v in GPT2.items() if k != "n_embd"} | {"hidden_size": 32}
    assert hf.spec_of(other) == hf.spec_of(GPT2 | {"hidden_size": 32})
    assert hf.spec_of(other) == hf.spec_of(GPT2)
    assert "hidden_size=16 and n_embd=32" in refusal(GPT2 | {"hidden_size": 16})


def test_quantized_weights_are_named_for_what_they_are():
    text = refusal(LLAMA | {"quantization_config": {"quant_method": "bitsandbytes"}})
    assert "the weights are quantized (quantization_config: bitsandbytes)" in text
    assert "remove" not in text


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


@pytest.mark.parametrize(
    ("family", "extra", "text"),
    [
        ("gemma", {"hidden_act": "silu"}, "contradict"),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional"),
        ("gemma2", {"layer_types": ["full_attention"]}, "must name 2 layers"),
        ("gemma2", {"sliding_window": -1}, "sliding_window=-1"),
        ("gemma3_text", {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping"),
        (
            "gemma3_text",
            {
                "rope_parameters": {
                    "sliding_attention": {"rope_type": "linear", "factor": 2.0}
                }
            },
            "must not be scaled",
        ),
        ("gemma3", {"text_config": None}, "text_config=None"),
        ("gemma3", {"text_config": {"wings": 2}}, "wings=2"),
        ("gpt_neox", {"rotary_pct": 0.5, "partial_rotary_factor": 1.0}, "contradicts"),
        ("gpt_neox", {"num_attention_heads": 3}, "must divide hidden_size=32"),
        ("gpt_neox", {"rotary_pct": 0.1}, "rope_dim=1 must be even"),
        ("gptj", {"rotary_dim": None}, "rotary_dim=None"),
        ("gptj", {"rotary_dim": 10}, "rope_dim=10 must be even and at most head_dim=8"),
        ("granite", {"residual_multiplier": 0}, "residual_multiplier=0"),
        ("granite", {"shared_intermediate_size": 8}, "shared_intermediate_size=8"),
        ("mistral", {"layer_types": ["full_attention"] * 2}, "layer_types"),
        (
            "ministral3",
            {"rope_parameters": {"rope_type": "default", "llama_4_scaling_beta": 0.1}},
            "needs a rope scaling that says original_max_position_embeddings",
        ),
        (
            "ministral3",
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
            "llama_4_scaling_beta=None",
        ),
        (
            "ministral3",
            {"rope_parameters": {"max_position_embeddings": 5}},
            "max_position_embeddings=5 of the rope contradicts",
        ),
        ("mistral3", {"text_config": {"model_type": "lama"}}, "text_config.model_type"),
        (
            "mistral3",
            {"text_config": CONFIGS["mistral3"]["text_config"] | {"wings": 2}},
            "wings=2",
        ),
        ("mixtral", {"num_experts": 4}, "num_experts and num_local_experts differ"),
        ("mixtral", {"num_experts_per_tok": 6}, "experts_per_token=6 must be 1 to"),
        ("mixtral", {"router_jitter_noise": 0.1}, "router_jitter_noise=0.1"),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv=8.0"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "mlp_only_layers=[0]"),
        ("olmo3", {"rope_parameters": {"rope_theta": 1e4}}, "must say it of"),
        ("olmo3", {"layer_types": ["full_attention"] * 3}, "must name 4 layers"),
        ("olmo2", {"clip_qkv": 3.0}, "clip_qkv=3.0"),
        (
            "phi3",
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "'linear' is not one of phi3",
        ),
        (
            "phi3",
            {
                "rope_scaling": {
                    "type": "su",
                    "short_factor": [1.0],
                    "long_factor": [1.0, 1.0, 1.0, -1.0],
                }
            },
            "long_factor=[1.0, 1.0, 1.0, -1.0] must be a list of positive",
        ),
        (
            "phi3",
            {
                "rope_scaling": {
                    "type": "longrope",
                    "short_factor": [1.0],
                    "long_factor": [1.0] * 4,
                }
            },
            "longrope has 1 short_factors for 4 pairs",
        ),
        ("phi3", {"full_attn_mod": 2}, "full_attn_mod=2"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 2}, "without a sliding"),
        ("qwen2", {"max_window_layers": -1}, "max_window_layers=-1"),
        ("qwen3", {"layer_types": ["linear_attention"] * 2}, "has linear_attention"),
        ("smollm3", {"no_rope_layers": [1, 2, 0, 0]}, "no_rope_layers"),
        (
            "llama",
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "head_dim": 2},
            "head_dim=2 must be at least 4 for dynamic",
        ),
    ],
)
def test_every_family_refuses_what_it_cannot_compute(family, extra, text):
    assert text in refusal(CONFIGS[family] | extra)


def test_windows_and_ropes_travel_by_layer():
    """Gemma 2 starts with a window, every sixth Gemma 3 has none, SmolLM 3 as said."""
    assert hf.spec_of(CONFIGS["gemma2"]).windows == (5, 0)
    assert hf.spec_of(CONFIGS["gemma3_text"]).windows == (5, 5, 5, 5, 5, 0, 5)
    assert hf.spec_of(CONFIGS["mistral"]).windows == (5, 5)
    assert hf.spec_of(CONFIGS["olmo3"]).windows == (5, 5, 5, 0)
    assert hf.spec_of(CONFIGS["smollm3"]).rope_layers == (True, True, True, False)
    assert hf.spec_of(CASES["smollm3_yarn"][1]).windows == (0, 0, 0, 5)
    assert hf.spec_of(CASES["qwen3_yarn"][1]).windows == (0, 5, 5)
    assert hf.spec_of(CONFIGS["qwen3"]).windows == ()


def test_gemma3_reads_both_spellings_and_what_published_files_leave_out():
    new = {k: v for k, v in CONFIGS["gemma3_text"].items() if not k.startswith("rope")}
    new["rope_parameters"] = {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    assert hf.spec_of(new) == hf.spec_of(CONFIGS["gemma3_text"])
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    spec = hf.spec_of({"model_type": "gemma3", "text_config": text})
    assert (spec.heads, spec.kv_heads, spec.head_dim) == (8, 4, 256)
    assert (spec.rope_theta, spec.rope_theta_local) == (1e6, 1e4)
    assert (spec.vocab, spec.attn_scale, spec.tie) == (262208, 1 / 16, True)
    assert spec.windows[:6] == (1024,) * 5 + (0,)


def test_factors_of_granite_that_are_left_out_are_one():
    """Of attention, too: not E^−½, as in other families."""
    plain = {
        k: v for k, v in CONFIGS["granite"].items() if not k.endswith("multiplier")
    }
    spec = hf.spec_of(plain | {"logits_scaling": None})
    factors = (spec.attn_scale, spec.embed_scale, spec.logit_divisor)
    assert (*factors, spec.residual_scale) == (1, 1, 1, 1)


def test_ministral3_reads_what_published_files_leave_out_and_both_texts():
    """Its own rope: yarn × 16 of 16,384; a plain Mistral in the wrapper grows none."""
    plain = {k: v for k, v in CONFIGS["ministral3"].items() if k != "rope_parameters"}
    spec = hf.spec_of(plain)
    assert (spec.query_beta, spec.rope_theta, spec.windows) == (0.1, 1e6, ())
    assert spec.rope_scaling.original_max_positions == 16_384
    assert spec.rope_scaling.attention_factor == 1
    small = hf.spec_of(CASES["mistral3_small"][1])
    assert (small.query_beta, small.windows, small.tie) == (0, (5, 5), False)


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
    assert f"did you mean 'llama'? Known: {', '.join(sorted(FAMILIES))}" in text
    assert len(FAMILIES) == 21
    assert "model_type=None" in refusal({})


def test_remote_code_is_refused_even_for_a_known_type():
    text = refusal({**LLAMA, "auto_map": {"AutoModel": "modeling.Evil"}})
    assert "refuses remote code" in text


def test_code_that_transformers_has_itself_is_no_remote_code():
    """Phi's files name it; whatever stands in the folder is never run."""
    native = {
        "AutoConfig": "configuration_phi3.Phi3Config",
        "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
    }
    phi3 = CONFIGS["phi3"]
    assert hf.spec_of(phi3 | {"auto_map": native}) == hf.spec_of(phi3)
    assert "refuses remote code" in refusal({**LLAMA, "auto_map": native})
    other = {"AutoModelForCausalLM": ["modeling_phi3.Evil", None]}
    assert "refuses remote code" in refusal(phi3 | {"auto_map": native | other})


@pytest.mark.parametrize("case", CASES)
def test_to_hf_is_read_back_to_the_same_spec(case):
    family, config = CASES[case]
    spec = hf.spec_of(config)
    assert spec.model_type == family
    written = json.loads(json.dumps(FAMILIES[family].to_hf(spec)))
    assert hf.spec_of(written) == spec


@pytest.mark.parametrize("name", FAMILIES)
def test_every_row_has_a_place_in_some_tree_and_every_leaf_a_row(name):
    """The union of all biases, untied, covers the table; each leaf has one row."""
    everything = {
        "attn": {"attention_bias": True, "tie_word_embeddings": False},
        "mlp": {"mlp_bias": True},
    }
    extra = {
        "gptj": {},
        "gpt2": {"tie_word_embeddings": False},
        "granite": everything["attn"] | everything["mlp"],
        "llama": everything["attn"] | everything["mlp"],
        "smollm3": everything["attn"] | everything["mlp"],
    }.get(name, everything["attn"])
    config = CONFIGS[name] | extra
    if name == "gemma3":
        config["text_config"] = config["text_config"] | {"attention_bias": True}
        del config["attention_bias"]
    if name in ("ministral3", "mistral", "mistral3", "mixtral", "phi3", "qwen2"):
        del config["attention_bias"]
    spec = hf.spec_of(config)
    met = {path for row in FAMILIES[name].table for path in row.paths}
    paths = [path for row in tensors.rows_of(spec) for path in row.paths]
    assert sorted(paths) == sorted(decoder.leaves(spec))
    biases = {path for path in met - set(paths) if "/bias" in path}
    assert met - set(paths) == biases  # rows of biases that a relative has
    if extra.get("mlp_bias") or name in ("gptj", "gpt2", "gpt_neox", "phi3"):
        assert not biases
