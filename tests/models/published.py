"""What the `config.json` of much downloaded folders says, attribute by attribute.

Facts, not files: names and values as they stand there, in both spellings of rope where
folders differ, with their quirks. Phi's factors are a rule; their number is right.
"""

COMMON = {
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.1",
    "use_cache": True,
}
GPT = {  # GPT-2's and GPT-J's: heads of tasks, dropout, generation
    **{k: COMMON[k] for k in ("initializer_range",)},
    "activation_function": "gelu_new",
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "layer_norm_epsilon": 1e-05,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
}
GPT2 = {
    **GPT,
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_positions": 1024,
    "vocab_size": 50257,
}
GPTJ = {
    **GPT,
    "architectures": ["GPTJForCausalLM"],
    "gradient_checkpointing": False,
    "model_type": "gptj",
    "n_inner": None,
    "n_positions": 2048,
    "rotary": True,
    "rotary_dim": 64,
    "scale_attn_weights": True,
    "tie_word_embeddings": False,
    "tokenizer_class": "GPT2Tokenizer",
    "transformers_version": "4.18.0.dev0",
    "use_cache": True,
    "vocab_size": 50400,
}
NEOX = {
    **COMMON,
    "architectures": ["GPTNeoXForCausalLM"],
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "model_type": "gpt_neox",
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "use_parallel_residual": True,
    "vocab_size": 50304,
}
LLAMA2 = {
    **COMMON,
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}
LLAMA3 = LLAMA2 | {
    "attention_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "vocab_size": 128256,
}
LLAMA32 = LLAMA3 | {
    "head_dim": 128,
    "rope_scaling": LLAMA3["rope_scaling"] | {"factor": 32.0},
    "tie_word_embeddings": True,
}
SMOLLM2 = LLAMA2 | {
    "attention_bias": False,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "pad_token_id": 2,
    "rope_interleaved": False,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "vocab_size": 49152,
}
MISTRAL = {
    **COMMON,
    "architectures": ["MistralForCausalLM"],
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "vocab_size": 32768,
}
MINISTRAL3 = {  # the text of the wrapper
    "attention_dropout": 0.0,
    "head_dim": 128,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 262144,
    "model_type": "ministral3",
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 16.0,
        "llama_4_scaling_beta": 0.1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 16384,
        "rope_theta": 1000000.0,
        "rope_type": "yarn",
        "type": "yarn",
    },
    "sliding_window": None,
    "use_cache": True,
    "vocab_size": 131072,
}
MISTRAL3 = {
    "architectures": ["Mistral3ForConditionalGeneration"],
    "dtype": "bfloat16",
    "image_token_index": 10,
    "model_type": "mistral3",
    "multimodal_projector_bias": False,
    "projector_hidden_act": "gelu",
    "spatial_merge_size": 2,
    "transformers_version": "5.0.0.dev0",
    "vision_config": {"hidden_size": 1024, "model_type": "pixtral", "patch_size": 14},
    "vision_feature_layer": -1,
}
GRANITE3 = LLAMA2 | {
    "architectures": ["GraniteForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.1,
    "attention_multiplier": 0.015625,
    "bos_token_id": 0,
    "embedding_multiplier": 12.0,
    "logits_scaling": 8.0,
    "mlp_bias": False,
    "model_type": "granite",
    "pad_token_id": 0,
    "residual_multiplier": 0.22,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "vocab_size": 49155,
}
del GRANITE3["pretraining_tp"]
QWEN2 = {
    **COMMON,
    "architectures": ["Qwen2ForCausalLM"],
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "model_type": "qwen2",
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3 = QWEN2 | {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "model_type": "qwen3",
    "rope_scaling": None,
    "sliding_window": None,
}
GEMMA = {
    **COMMON,
    "architectures": ["GemmaForCausalLM"],
    "attention_bias": False,
    "head_dim": 256,
    "hidden_act": "gelu",
    "hidden_activation": None,
    "max_position_embeddings": 8192,
    "model_type": "gemma",
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "vocab_size": 256000,
}
GEMMA2 = GEMMA | {
    "architectures": ["Gemma2ForCausalLM"],
    "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": 30.0,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "model_type": "gemma2",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
del GEMMA2["rope_scaling"]
GEMMA3_1B = GEMMA2 | {
    "architectures": ["Gemma3ForCausalLM"],
    "attn_logit_softcapping": None,
    "eos_token_id": [1, 106],
    "final_logit_softcapping": None,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
del GEMMA3_1B["hidden_act"]
GEMMA3 = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 896,
        "intermediate_size": 4304,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "vision_use_head": False,
    },
}
PHI3 = {
    **COMMON,
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "auto_map": {
        "AutoConfig": "configuration_phi3.Phi3Config",
        "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
    },
    "embd_pdrop": 0.0,
    "eos_token_id": 32000,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "model_type": "phi3",
    "original_max_position_embeddings": 4096,
    "pad_token_id": 32000,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "long_factor": [1.0 + 0.5 * i for i in range(48)],
        "short_factor": [1.0 + 0.05 * i for i in range(48)],
        "type": "longrope",
    },
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "tie_word_embeddings": False,
    "vocab_size": 32064,
}
OLMO2 = {
    **COMMON,
    "architectures": ["Olmo2ForCausalLM"],
    "attention_bias": False,
    "eos_token_id": 100257,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "model_type": "olmo2",
    "pad_token_id": 100277,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 500000,
    "tie_word_embeddings": False,
    "vocab_size": 100352,
}


def gpt(base, width, layers, heads, **others):
    return base | {"n_embd": width, "n_layer": layers, "n_head": heads} | others


def sized(base, width, ff, layers, heads, kv_heads=0, **others):
    sizes = {
        "hidden_size": width,
        "intermediate_size": ff,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }
    if kv_heads:
        sizes["num_key_value_heads"] = kv_heads
    return base | sizes | others


PUBLISHED = {  # folder -> (parameters as published, a tied head once; attributes)
    "openai-community/gpt2": (124_439_808, gpt(GPT2, 768, 12, 12)),
    "openai-community/gpt2-medium": (
        354_823_168,
        gpt(GPT2, 1024, 24, 16, n_special=0, predict_special_tokens=True),
    ),
    "openai-community/gpt2-large": (774_030_080, gpt(GPT2, 1280, 36, 20)),
    "openai-community/gpt2-xl": (1_557_611_200, gpt(GPT2, 1600, 48, 25)),
    "distilbert/distilgpt2": (
        81_912_576,
        gpt(GPT2, 768, 6, 12, _num_labels=1, id2label={"0": "LABEL_0"}),
    ),
    "ai-forever/rugpt3large_based_on_gpt2": (
        760_300_032,
        gpt(
            GPT2,
            *(1536, 24, 16),
            **{"n_ctx": 2048, "n_positions": 2048, "n_special": 0},
            output_past=True,
            predict_special_tokens=True,
        ),
    ),
    "EleutherAI/gpt-j-6b": (6_050_882_784, gpt(GPTJ, 4096, 28, 16)),
    "EleutherAI/pythia-70m": (70_426_624, sized(NEOX, 512, 2048, 6, 8)),
    "EleutherAI/pythia-1.4b": (1_414_647_808, sized(NEOX, 2048, 8192, 24, 16)),
    "EleutherAI/pythia-6.9b": (
        6_857_302_016,
        sized(NEOX, 4096, 16384, 32, 32, vocab_size=50432),
    ),
    "EleutherAI/gpt-neox-20b": (
        20_554_567_680,
        sized(
            NEOX | {"hidden_act": "gelu_fast", "attention_probs_dropout_prob": 0},
            *(6144, 24576, 44, 64),
            hidden_dropout_prob=0,
            vocab_size=50432,
        ),
    ),
    "meta-llama/Llama-2-7b-chat-hf": (
        6_738_415_616,
        sized(LLAMA2, 4096, 11008, 32, 32, 32),
    ),
    "meta-llama/Meta-Llama-3-8B-Instruct": (
        8_030_261_248,
        sized(LLAMA3, 4096, 14336, 32, 32, 8)
        | {"max_position_embeddings": 8192, "rope_scaling": None},
    ),
    "meta-llama/Llama-3.1-8B-Instruct": (
        8_030_261_248,
        sized(LLAMA3, 4096, 14336, 32, 32, 8),
    ),
    "meta-llama/Llama-3.2-1B-Instruct": (
        1_235_814_400,
        sized(LLAMA32, 2048, 8192, 16, 32, 8, head_dim=64),
    ),
    "meta-llama/Llama-3.2-3B-Instruct": (
        3_212_749_824,
        sized(LLAMA32, 3072, 8192, 28, 24, 8),
    ),
    "meta-llama/Llama-3.3-70B-Instruct": (
        70_553_706_496,
        sized(LLAMA3, 8192, 28672, 80, 64, 8),
    ),
    "unsloth/Llama-3.2-1B-Instruct": (
        1_235_814_400,
        sized(LLAMA32, 2048, 8192, 16, 32, 8, head_dim=64, unsloth_fixed=True),
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": (
        8_030_261_248,
        sized(LLAMA3, 4096, 14336, 32, 32, 8),
    ),
    "lmsys/vicuna-7b-v1.5": (
        6_738_415_616,
        sized(LLAMA2, 4096, 11008, 32, 32, 32, _name_or_path="vicuna-7b-v1.5"),
    ),
    "lmsys/vicuna-7b-v1.5-16k": (
        6_738_415_616,
        sized(LLAMA2, 4096, 11008, 32, 32, 32)
        | {
            "max_sequence_length": 16384,
            "rope_scaling": {"factor": 4.0, "type": "linear"},
        },
    ),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": (
        1_100_048_384,
        sized(LLAMA2, 2048, 5632, 22, 32, 4, max_position_embeddings=2048),
    ),
    "HuggingFaceTB/SmolLM2-135M": (
        134_515_008,
        sized(SMOLLM2, 576, 1536, 30, 9, 3, initializer_range=0.041666666666666664),
    ),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": (
        1_711_376_384,
        sized(SMOLLM2, 2048, 8192, 24, 32, 32, rope_theta=130000)
        | {
            "transformers.js_config": {
                "dtype": "q4",
                "kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"},
                "use_external_data_format": {"model.onnx": True},
            }
        },
    ),
    "mistralai/Mistral-7B-v0.1": (
        7_241_732_096,
        sized(MISTRAL, 4096, 14336, 32, 32, 8)
        | {"rope_theta": 10000.0, "sliding_window": 4096, "vocab_size": 32000},
    ),
    "mistralai/Mistral-7B-Instruct-v0.3": (
        7_248_023_552,
        sized(MISTRAL, 4096, 14336, 32, 32, 8),
    ),
    "mistralai/Mistral-Nemo-Instruct-2407": (
        12_247_782_400,
        sized(MISTRAL, 5120, 14336, 40, 32, 8, head_dim=128)
        | {"max_position_embeddings": 131072, "vocab_size": 131072},
    ),
    "HuggingFaceH4/zephyr-7b-beta": (
        7_241_732_096,
        sized(MISTRAL, 4096, 14336, 32, 32, 8, pad_token_id=2)
        | {"rope_theta": 10000.0, "sliding_window": 4096, "vocab_size": 32000},
    ),
    "Qwen/Qwen2.5-0.5B-Instruct": (
        494_032_768,
        sized(QWEN2, 896, 4864, 24, 14, 2, max_window_layers=21)
        | {"tie_word_embeddings": True},
    ),
    "Qwen/Qwen2.5-1.5B-Instruct": (
        1_543_714_304,
        sized(QWEN2, 1536, 8960, 28, 12, 2, max_window_layers=21)
        | {"tie_word_embeddings": True},
    ),
    "Qwen/Qwen2.5-7B-Instruct": (
        7_615_616_512,
        sized(QWEN2, 3584, 18944, 28, 28, 4, max_window_layers=28, vocab_size=152064),
    ),
    "Qwen/Qwen2.5-14B-Instruct": (
        14_770_033_664,
        sized(QWEN2, 5120, 13824, 48, 40, 8, max_window_layers=70, vocab_size=152064),
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": (
        1_777_088_000,
        sized(QWEN2, 1536, 8960, 28, 12, 2, max_window_layers=21, use_mrope=False)
        | {"max_position_embeddings": 131072, "rope_theta": 10000},
    ),
    "Qwen/Qwen3-0.6B": (
        596_049_920,
        sized(QWEN3, 1024, 3072, 28, 16, 8, max_window_layers=28)
        | {"tie_word_embeddings": True},
    ),
    "Qwen/Qwen3-4B-Instruct-2507": (
        4_022_468_096,
        sized(QWEN3, 2560, 9728, 36, 32, 8, max_window_layers=36, rope_theta=5000000)
        | {"max_position_embeddings": 262144, "tie_word_embeddings": True},
    ),
    "Qwen/Qwen3-8B": (
        8_190_735_360,
        sized(QWEN3, 4096, 12288, 36, 32, 8, max_window_layers=36),
    ),
    "Qwen/Qwen3-32B": (
        32_762_123_264,
        sized(QWEN3, 5120, 25600, 64, 64, 8, max_window_layers=64),
    ),
    "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B": (
        8_190_735_360,
        sized(QWEN3, 4096, 12288, 36, 32, 8, max_window_layers=36)
        | {
            "max_position_embeddings": 131072,
            "rope_scaling": {
                "attn_factor": 0.8782488562869419,
                "factor": 4,
                "original_max_position_embeddings": 32768,
                "rope_type": "yarn",
            },
        },
    ),
    "Qwen/Qwen3-30B-A3B": (
        30_532_122_624,
        sized(QWEN3, 2048, 6144, 48, 32, 4, max_window_layers=48)
        | {
            "architectures": ["Qwen3MoeForCausalLM"],
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "model_type": "qwen3_moe",
            "moe_intermediate_size": 768,
            "norm_topk_prob": True,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "output_router_logits": False,
            "router_aux_loss_coef": 0.001,
        },
    ),
    "mistralai/Mixtral-8x7B-Instruct-v0.1": (
        46_702_792_704,
        sized(MISTRAL, 4096, 14336, 32, 32, 8, vocab_size=32000)
        | {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "num_experts_per_tok": 2,
            "num_local_experts": 8,
            "output_router_logits": False,
            "router_aux_loss_coef": 0.02,
        },
    ),
    "allenai/OLMoE-1B-7B-0924-Instruct": (
        6_919_161_856,
        sized(OLMO2, 2048, 1024, 16, 16, 16)
        | {
            "architectures": ["OlmoeForCausalLM"],
            "clip_qkv": None,
            "max_position_embeddings": 4096,
            "model_type": "olmoe",
            "norm_topk_prob": False,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "output_router_logits": False,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "router_aux_loss_coef": 0.01,
            "vocab_size": 50304,
        },
    ),
    "google/gemma-2b-it": (2_506_172_416, sized(GEMMA, 2048, 16384, 18, 8, 1)),
    "google/gemma-7b": (8_537_680_896, sized(GEMMA, 3072, 24576, 28, 16, 16)),
    "google/gemma-2-2b-it": (2_614_341_888, sized(GEMMA2, 2304, 9216, 26, 8, 4)),
    "google/gemma-2-9b-it": (
        9_241_705_984,
        sized(GEMMA2, 3584, 14336, 42, 16, 8, sliding_window_size=4096),
    ),
    "google/gemma-2-27b-it": (
        27_227_128_320,
        sized(GEMMA2, 4608, 36864, 46, 32, 16, head_dim=128, query_pre_attn_scalar=144),
    ),
    "google/gemma-3-1b-it": (999_885_952, sized(GEMMA3_1B, 1152, 6912, 26, 4, 1)),
    "google/gemma-3-4b-it": (
        3_880_263_168,
        GEMMA3
        | {
            "text_config": {
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "model_type": "gemma3_text",
                "num_hidden_layers": 34,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                "sliding_window": 1024,
            }
        },
    ),
    "microsoft/Phi-3-mini-4k-instruct": (
        3_821_079_552,
        sized(PHI3, 3072, 8192, 32, 32, 32)
        | {
            "max_position_embeddings": 4096,
            "rope_scaling": None,
            "sliding_window": 2047,
        },
    ),
    "microsoft/Phi-3.5-mini-instruct": (
        3_821_079_552,
        sized(PHI3, 3072, 8192, 32, 32, 32),
    ),
    "microsoft/phi-4": (
        14_659_507_200,
        sized(PHI3, 5120, 17920, 40, 40, 10)
        | {
            "auto_map": None,
            "max_position_embeddings": 16384,
            "original_max_position_embeddings": 16384,
            "rope_scaling": None,
            "rope_theta": 250000,
            "sliding_window": None,
            "vocab_size": 100352,
        },
    ),
    "microsoft/Phi-4-mini-instruct": (
        3_836_021_760,
        sized(PHI3, 3072, 8192, 32, 24, 8, full_attn_mod=1, interpolate_factor=1)
        | {
            "auto_map": PHI3["auto_map"] | {"AutoTokenizer": "Xenova/gpt-4o"},
            "lm_head_bias": False,
            "mlp_bias": False,
            "partial_rotary_factor": 0.75,
            "tie_word_embeddings": True,
            "vocab_size": 200064,
        },
    ),
    "allenai/OLMo-2-1124-7B-Instruct": (
        7_298_617_344,
        sized(OLMO2, 4096, 11008, 32, 32, 32),
    ),
    "allenai/Olmo-3-7B-Instruct": (
        7_298_011_136,
        sized(OLMO2, 4096, 11008, 32, 32, 32, vocab_size=100278)
        | {
            "architectures": ["Olmo3ForCausalLM"],
            "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 8,
            "max_position_embeddings": 65536,
            "model_type": "olmo3",
            "rope_scaling": {
                "attention_factor": 1.2079441541679836,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "factor": 8.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "yarn",
            },
            "sliding_window": 4096,
        },
    ),
    "ibm-granite/granite-3.0-2b-instruct": (
        2_533_531_648,
        sized(GRANITE3, 2048, 8192, 40, 32, 8),
    ),
    "mistralai/Ministral-3-3B-Instruct-2512-BF16": (
        3_429_006_336,
        MISTRAL3
        | {
            "text_config": MINISTRAL3
            | {
                "hidden_size": 3072,
                "intermediate_size": 9216,
                "num_hidden_layers": 26,
                "tie_word_embeddings": True,
            }
        },
    ),
    "mistralai/Ministral-3-3B, its text alone": (
        3_429_006_336,
        sized(MINISTRAL3, 3072, 9216, 26, 32, 8, tie_word_embeddings=True),
    ),
    "allenai/OLMo-2-0425-1B": (1_484_916_736, sized(OLMO2, 2048, 8192, 16, 16, 16)),
    "HuggingFaceTB/SmolLM3-3B": (
        3_075_098_624,
        sized(LLAMA2, 2048, 11008, 36, 16, 4)
        | {
            "architectures": ["SmolLM3ForCausalLM"],
            "attention_bias": False,
            "eos_token_id": 128012,
            "layer_types": ["full_attention"] * 36,
            "max_position_embeddings": 65536,
            "max_window_layers": 28,
            "mlp_bias": False,
            "model_type": "smollm3",
            "no_rope_layer_interval": 4,
            "no_rope_layers": [1, 1, 1, 0] * 9,
            "pretraining_tp": 2,
            "rms_norm_eps": 1e-06,
            "rope_theta": 5000000.0,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "vocab_size": 128256,
        },
    ),
}

REFUSED = {  # folder -> (attributes, what the error names)
    "Qwen/Qwen2.5-7B-Instruct-AWQ": (
        PUBLISHED["Qwen/Qwen2.5-7B-Instruct"][1]
        | {
            "quantization_config": {
                "bits": 4,
                "group_size": 128,
                "quant_method": "awq",
                "version": "gemm",
                "zero_point": True,
            }
        },
        "the weights are quantized (quantization_config: awq)",
    ),
    "Qwen/Qwen3-8B-FP8": (
        PUBLISHED["Qwen/Qwen3-8B"][1]
        | {"quantization_config": {"fmt": "e4m3", "quant_method": "fp8"}},
        "the weights are quantized (quantization_config: fp8)",
    ),
    "unsloth/Llama-3.2-1B-Instruct-bnb-4bit": (
        PUBLISHED["unsloth/Llama-3.2-1B-Instruct"][1]
        | {"quantization_config": {"quant_method": "bitsandbytes"}},
        "the weights are quantized (quantization_config: bitsandbytes)",
    ),
    "mlx-community/Llama-3.2-1B-Instruct-4bit": (
        PUBLISHED["meta-llama/Llama-3.2-1B-Instruct"][1]
        | {"quantization": {"bits": 4, "group_size": 64}},
        "the weights are quantized (quantization: ",
    ),
    "a Qwen3 with dense layers between": (
        PUBLISHED["Qwen/Qwen3-30B-A3B"][1] | {"decoder_sparse_step": 2},
        "decoder_sparse_step=2 is not supported",
    ),
    "openai/gpt-oss-20b": (
        LLAMA3 | {"model_type": "gpt_oss"},
        "model_type='gpt_oss' is not known",
    ),
    "deepseek-ai/DeepSeek-V3": (
        LLAMA3
        | {
            "model_type": "deepseek_v3",
            "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
        },
        "refuses remote code",
    ),
    "a Llama with experts": (
        PUBLISHED["meta-llama/Llama-2-7b-chat-hf"][1] | {"num_local_experts": 8},
        "num_local_experts=8 is not supported: layers may be mixtures of experts",
    ),
}
