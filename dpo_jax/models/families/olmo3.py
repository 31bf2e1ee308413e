"""OLMo 3: three windowed layers to one full one, whose rope alone is scaled."""

import dataclasses

from dpo_jax.models.families import llama_like, olmo2, rope
from dpo_jax.models.families.common import Config, Given
from dpo_jax.models.spec import DecoderSpec, Family

KNOWN = olmo2.KNOWN | {"layer_types", "sliding_window"}
THETA = 5e5


def read(given: Given) -> DecoderSpec:
    """Reads a `config.json`."""
    both, kinds = given.config.get("rope_parameters") or {}, llama_like.LAYER_KINDS
    if both and not set(both) & set(kinds):
        must = f"must say it of {' and '.join(kinds)}"
        given.complaints.append(f"rope_parameters={both!r} {must}")
    old = given.config.get("rope_theta")  # one for both kinds of layers
    plain, local = rope.of_both(given, local=THETA if old is None else old)
    spec = olmo2.read(given._replace(config=plain), theta=THETA)
    window = given.window(default=4096)
    windows = llama_like.windows(given, spec.layers, window, lambda i: (i + 1) % 4 != 0)
    return dataclasses.replace(spec, windows=windows, rope_theta_local=local)


def to_hf(spec: DecoderSpec) -> Config:
    """Writes the `config.json` that `read` reads back to `spec`.

    The old spelling has no place for the theta of layers with a window.
    """
    config = olmo2.to_hf(spec) | {"architectures": ["Olmo3ForCausalLM"]}
    del config["rope_scaling"], config["rope_theta"]
    full = rope.one_to_hf(spec.rope_theta, spec.rope_scaling)
    sliding = rope.one_to_hf(spec.rope_theta_local, None)
    return config | {
        "layer_types": llama_like.layer_types(spec),
        "rope_parameters": {"full_attention": full, "sliding_attention": sliding},
        "sliding_window": llama_like.one_window(spec),
    }


FAMILY = Family(KNOWN, read, to_hf, olmo2.TABLE, ignored=llama_like.IGNORED)
