"""Keys of policy, reference, adapters and tokenizer."""

from dpo_jax.schema.key import COUNT, FLOATS, NOT_NEGATIVE, POSITIVE_SHARE, Key

MODELS: dict[str, Key] = {
    "model.path": Key("", "an HF folder or hub id: the policy"),
    "model.revision": Key("", "of a hub id"),
    "model.ignore_attributes": Key(
        (),
        "names in config.json of the policy (and of ref.path and reward.path) that are "
        "not known here and that transformers computes nothing with",
    ),
    "model.adapter": Key(
        "",
        "a peft folder of model.path: its adapter is trained on, with its rank, alpha "
        "and targets",
    ),
    "model.preset": Key("", "instead of path: train from scratch"),
    "model.dtype": Key(
        "float32", "of the computation; masters are float32", choices=FLOATS
    ),
    "model.remat": Key(
        "elementwise",
        "or 'none', 'block': what is computed again for the gradient",
        choices=("none", "elementwise", "block"),
    ),
    "model.attention": Key(
        "auto",
        "or 'xla', 'cudnn' (GPU), 'splash' (TPU), 'dense'",
        choices=("auto", "xla", "cudnn", "splash", "dense"),
    ),
    "model.score_start": Key(
        "normal",
        "objective=reward: of a new scalar head, variance 1/(D + 1); or 'zero': its "
        "loss starts at ln 2",
        choices=("normal", "zero"),
    ),
    "model.vocab_multiple": Key(
        1,
        "rows of the embedding table are a multiple of it, so that they divide over "
        "mesh.tensor; those behind the vocabulary are never read nor exported; 1 = off",
        COUNT,
    ),
    "model.router_aux_coef": Key(
        0.0,
        "of a mixture of experts: weight of the load-balancing loss of its routers, "
        "arXiv:2101.03961; 0 = they are only looked at (router/*)",
        NOT_NEGATIVE,
    ),
    "model.logits_chunk": Key(
        128, "scored tokens per row whose logits are held at once", COUNT
    ),
    "ref.path": Key("", "the reference; '' = the initial policy"),
    "ref.revision": Key("", "of a hub id"),
    "ref.mode": Key(
        "live",
        "or 'cached' (its log-probs, from disk), 'none'",
        choices=("live", "cached", "none"),
    ),
    "ref.cache_dir": Key("", "of 'cached'; '' = ref_cache beside the run folder"),
    "ref.dtype": Key(
        "", "of its weights and computation; '' = model.dtype", choices=("", *FLOATS)
    ),
    "ref.sync_every_steps": Key(
        0, "> 0: it follows the policy (TR-DPO); 0 = frozen", NOT_NEGATIVE
    ),
    "ref.sync_mix": Key(
        0.6,
        "ref ← (1 − mix)·ref + mix·policy, arXiv:2404.09656; 1 = copy",
        POSITIVE_SHARE,
    ),
    "ref.adapter": Key(
        "",
        "of a LoRA run: 'base' (no adapter), or the peft folder of an adapter on "
        "model.path; '' = the initial policy's",
    ),
    "lora.rank": Key(
        0,
        "> 0: adapters of this rank are trained, and no weights; 0 = all weights",
        (0, 2**14, True),
    ),
    "lora.alpha": Key(0, "they act by alpha / rank; 0 = 2 · rank", (0, 2**24, True)),
    "lora.rslora": Key(False, "by alpha / √rank instead, arXiv:2312.03732"),
    "lora.targets": Key(
        (),
        "which linear maps have one: 'attention', 'mlp', 'all_linear', or names of "
        "modules in the HF model ('q_proj', '*_proj'); () = all of the layers",
    ),
    "lora.init": Key(
        "b_zero",
        "which factor starts at 0; the other is drawn",
        choices=("b_zero", "a_zero"),
    ),
    "tokenizer.path": Key("", "'' = model.path, or the source's own"),
}
