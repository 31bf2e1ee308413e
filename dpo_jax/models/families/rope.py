"""How the dialects write rotary positions, in the old spelling and the new.

The old spelling has `rope_theta` and `rope_scaling` (`type` or `rope_type`) beside the
other attributes; the new one (transformers 5) has both in `rope_parameters`.
"""

import math
from collections.abc import Mapping
from typing import Any

from dpo_jax import errors
from dpo_jax.models.families.common import REAL, Config, Given
from dpo_jax.models.spec import RopeScaling

ORIGINAL = "original_max_position_embeddings"

# Attributes of a config that `read` looks at.
KNOWN = frozenset(
    ("partial_rotary_factor", "rope_parameters", "rope_scaling", "rope_theta")
)

_LLAMA3 = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    ORIGINAL: "original_max_positions",
}
# What each type may say beside its name.
KEYS: dict[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset(("factor",)),
    "dynamic": frozenset(("factor", ORIGINAL)),
    "llama3": frozenset(_LLAMA3),
    "yarn": frozenset(
        """
        attention_factor beta_fast beta_slow factor mscale mscale_all_dim
        original_max_position_embeddings truncate
        """.split()
    ),
    "longrope": frozenset(
        """
        attention_factor factor long_factor original_max_position_embeddings
        short_factor
        """.split()
    ),
}


def settings_of(given: Given) -> Given:
    """Returns a copy of the settings in the spelling that the config uses."""
    new, old = (given.config.get(n) for n in ("rope_parameters", "rope_scaling"))
    settings = new or old or {}
    if new and old:
        given.complaints.append(
            "rope_parameters and rope_scaling are both given; keep one"
        )
    if not isinstance(settings, dict):
        given.complaints.append(f"rope settings {settings!r} must be an object")
        settings = {}
    return given._replace(config=dict(settings))


def one_of(given: Given, default: float) -> float:
    """Reads a positive number that may be given under several names.

    Args:
      given: {name: value or None}.
      default: if none is given.
    """
    values = {name: x for name, x in given.config.items() if x is not None}
    name = next(iter(values), "")
    if any(value != values[name] for value in values.values()):
        said = ", ".join(f"{name}={value!r}" for name, value in values.items())
        given.complaints.append(f"{said}: one contradicts the other; keep one")
    return given.real(name, default)


def read(
    given: Given,
    max_positions: int,
    head_dim: int,
    *,
    theta: float = 1e4,
    share: float | None = None,
    aliases: Mapping[str, tuple[str, ...]] = {},
) -> dict[str, Any]:
    """Reads theta, scaling and the share of a head that turns.

    Args:
      given: the `config.json`.
      max_positions: tokens of context; what some scalings fall back on.
      head_dim: features of a head.
      theta: what an absent `rope_theta` means.
      share: what an absent `partial_rotary_factor` means; None = the family has none.
      aliases: the family's own names of `rope_theta` and `partial_rotary_factor`.

    Returns:
      The fields `rope_theta`, `rope_scaling` and `rope_dim` of the spec.
    """
    settings = settings_of(given)

    def either(name: str, default: float) -> float:
        values = {f"rope_parameters.{name}": settings.config.pop(name, None)}
        values |= {n: given.config.get(n) for n in (name, *aliases.get(name, ()))}
        return one_of(given._replace(config=values), default)

    base = either("rope_theta", theta)
    turning = either("partial_rotary_factor", 1.0 if share is None else share)
    if share is None and turning != 1:
        given.complaints.append(
            f"partial_rotary_factor={turning} is not supported: all of a head turns"
        )
    turned = int(head_dim * turning)
    if not turned:
        given.complaints.append(
            f"partial_rotary_factor={turning} of {head_dim} features turns none"
        )
    return {
        "rope_theta": base,
        "rope_scaling": scaling_of(settings, max_positions),
        "rope_dim": 0 if turning == 1 else turned,
    }


def of_both(given: Given, *, local: float) -> tuple[Config, float]:
    """Splits the settings of layers with a window from those of all others.

    Args:
      given: the `config.json`.
      local: theta of layers with a window, where nothing is said of it.

    Returns:
      The config with the settings of the others as most dialects write them, and the
      theta of layers with a window, which nothing may scale.
    """
    both = given.config.get("rope_parameters")
    names = ("full_attention", "sliding_attention")
    outer = {"rope_local_base_freq": given.config.get("rope_local_base_freq")}
    if not isinstance(both, dict) or not set(both) & set(names):
        return given.config, one_of(given._replace(config=outer), local)
    given._replace(config=both).refuse_unknown(names)
    full, sliding = (dict(both.get(name) or {}) for name in names)
    inner = {
        "rope_parameters.sliding_attention.rope_theta": sliding.pop("rope_theta", 0)
    }
    if scaling_of(given._replace(config=sliding), max_positions=1) is not None:
        given.complaints.append(f"sliding_attention must not be scaled: {sliding}")
    theta = one_of(given._replace(config=inner | outer), local)
    return given.config | {"rope_parameters": full}, theta


def scaling_of(given: Given, max_positions: int) -> RopeScaling | None:
    """Reads how wavelengths are stretched; None = not."""
    settings = dict(given.config)
    legacy = settings.pop("type", None)
    kind = settings.pop("rope_type", legacy) or "default"
    if not isinstance(kind, str) or kind not in KEYS:
        given.complaints.append(errors.unknown("rope_type", str(kind), KEYS))
        return None
    given = given._replace(config=settings)
    given.refuse_unknown(KEYS[kind])
    return None if kind == "default" else _READERS[kind](given, max_positions)


def _linear(given: Given, longest: int) -> RopeScaling:
    del longest
    return RopeScaling("linear", given.real("factor"))


def _dynamic(given: Given, longest: int) -> RopeScaling:
    original = given.config.get(ORIGINAL) or longest
    if original != longest:  # transformers reads the other one
        given.complaints.append(
            f"{ORIGINAL}={original!r} of dynamic rope scaling differs from "
            f"max_position_embeddings={longest}; remove it"
        )
    factor = given.real("factor")
    return RopeScaling("dynamic", factor, original_max_positions=longest)


def _llama3(given: Given, longest: int) -> RopeScaling:
    del longest
    values = {
        ours: given.number(name, int if name == ORIGINAL else float)
        for name, ours in _LLAMA3.items()
    }
    if values["low_freq_factor"] >= values["high_freq_factor"]:
        given.complaints.append("low_freq_factor must be below high_freq_factor")
    return RopeScaling("llama3", **values)


def _yarn(given: Given, longest: int) -> RopeScaling:
    """Resolves what is left out as arXiv:2309.00071 and transformers do."""
    original = given.size(ORIGINAL, longest)
    factor = given.real("factor", longest / original)
    grow = lambda m: 0.1 * m * math.log(factor) + 1 if factor > 1 else 1.0  # noqa: E731
    default = grow(1.0)
    if given.config.get("mscale") and given.config.get("mscale_all_dim"):
        default = grow(given.real("mscale")) / grow(given.real("mscale_all_dim"))
    return RopeScaling(
        "yarn",
        factor,
        original_max_positions=original,
        beta_fast=given.real("beta_fast", 32.0),
        beta_slow=given.real("beta_slow", 1.0),
        truncate=given.flag("truncate", True),
        attention_factor=given.real("attention_factor", default),
    )


def _longrope(given: Given, longest: int) -> RopeScaling:
    """Resolves the attention factor as arXiv:2402.13753 and transformers do."""
    original = given.size(ORIGINAL, longest)
    stretch = given.real("factor", longest / original)
    default = 1.0
    if stretch > 1 and original > 1:
        default = math.sqrt(1 + math.log(stretch) / math.log(original))
    return RopeScaling(
        "longrope",
        original_max_positions=original,
        attention_factor=given.real("attention_factor", default),
        short_factors=_factors(given, "short_factor"),
        long_factors=_factors(given, "long_factor"),
    )


def _factors(given: Given, name: str) -> tuple[float, ...]:
    """Reads a list of positive numbers."""
    values = given.config.get(name)
    if isinstance(values, list) and all(
        isinstance(x, int | float)
        and not isinstance(x, bool)
        and REAL[0] <= x <= REAL[1]
        for x in values
    ):
        return tuple(float(x) for x in values)
    given.complaints.append(f"{name}={values!r} must be a list of positive numbers")
    return ()


def to_hf(theta: float, scaling: RopeScaling | None) -> Config:
    """Writes theta and scaling in the old spelling, which every release reads."""
    settings = one_to_hf(theta, scaling)
    theta = settings.pop("rope_theta")
    return {"rope_theta": theta, "rope_scaling": settings if scaling else None}


def one_to_hf(theta: float, scaling: RopeScaling | None) -> Config:
    """Writes theta and scaling in the new spelling, as one object."""
    if scaling is None:
        return {"rope_theta": theta, "rope_type": "default"}
    settings = {"rope_type": scaling.kind, **_WRITERS[scaling.kind](scaling)}
    return settings | {"rope_theta": theta}


_READERS = {
    "dynamic": _dynamic,
    "linear": _linear,
    "llama3": _llama3,
    "longrope": _longrope,
    "yarn": _yarn,
}

_WRITERS = {
    "dynamic": lambda s: {"factor": s.factor},
    "linear": lambda s: {"factor": s.factor},
    "llama3": lambda s: {name: vars(s)[ours] for name, ours in _LLAMA3.items()},
    "longrope": lambda s: {
        "attention_factor": s.attention_factor,
        "long_factor": list(s.long_factors),
        ORIGINAL: s.original_max_positions,
        "short_factor": list(s.short_factors),
    },
    "yarn": lambda s: {
        "attention_factor": s.attention_factor,
        "beta_fast": s.beta_fast,
        "beta_slow": s.beta_slow,
        "factor": s.factor,
        ORIGINAL: s.original_max_positions,
        "truncate": s.truncate,
    },
}
