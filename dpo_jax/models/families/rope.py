"""How the dialects write rotary positions, in the old spelling and the new.

The old spelling has `rope_theta` and `rope_scaling` (`type` or `rope_type`) beside the
other attributes; the new one (transformers 5) has both in `rope_parameters`.
"""

import math
from typing import Any, NamedTuple

from dpo_jax import errors
from dpo_jax.models.families import common
from dpo_jax.models.spec import RopeScaling

Config = dict[str, Any]

# Attributes of a config that `read` looks at.
KNOWN = frozenset(("rope_parameters", "rope_scaling", "rope_theta"))

_LLAMA3 = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_max_positions",
}
# What each type may say beside its name.
KEYS: dict[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset(("factor",)),
    "dynamic": frozenset(("factor", "original_max_position_embeddings")),
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


class Rope(NamedTuple):
    """What a config says of rotary positions.

    Attributes:
      theta: base of the wavelengths.
      scaling: None = none.
      share: of a head's features that turn.
    """

    theta: float
    scaling: RopeScaling | None
    share: float


def settings_of(config: Config, complaints: list[str]) -> Config:
    """Returns a copy of the settings in the spelling that the config uses."""
    settings = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if config.get("rope_parameters") and config.get("rope_scaling"):
        complaints.append("rope_parameters and rope_scaling are both given; keep one")
    if isinstance(settings, dict):
        return dict(settings)
    complaints.append(f"rope settings {settings!r} must be an object")
    return {}


def one_of(
    candidates: dict[str, Any], complaints: list[str], *, default: float
) -> float:
    """Reads a positive number that may be given under several names.

    Args:
      candidates: {name: value or None}.
      complaints: gets one if values differ or are no positive number.
      default: if none is given.
    """
    given = {name: value for name, value in candidates.items() if value is not None}
    name = next(iter(given), "")
    if any(value != given[name] for value in given.values()):
        said = ", ".join(f"{name}={value!r}" for name, value in given.items())
        complaints.append(f"{said}: one contradicts the other; keep one")
    return common.number(given, name, float, complaints, default=default)


def read(
    config: Config,
    complaints: list[str],
    *,
    max_positions: int,
    theta: float = 1e4,
    share: float | None = None,
    aliases: dict[str, tuple[str, ...]] | None = None,
) -> Rope:
    """Reads theta, scaling and the share of a head that turns.

    Args:
      config: the `config.json`.
      complaints: gets one sentence per fault.
      max_positions: tokens of context; what some scalings fall back on.
      theta: what an absent `rope_theta` means.
      share: what an absent `partial_rotary_factor` means; None = the family has none.
      aliases: the family's own names of `rope_theta` and `partial_rotary_factor`.
    """
    settings, aliases = settings_of(config, complaints), aliases or {}

    def either(name: str, default: float) -> float:
        names = (name, *aliases.get(name, ()))
        outer = {other: config.get(other) for other in names}
        inner = {f"rope_parameters.{name}": settings.pop(name, None)}
        return one_of(inner | outer, complaints, default=default)

    base = either("rope_theta", theta)
    turning = 1.0 if share is None else either("partial_rotary_factor", share)
    return Rope(base, scaling_of(settings, complaints, max_positions), turning)


def scaling_of(
    settings: Config, complaints: list[str], max_positions: int
) -> RopeScaling | None:
    """Reads how wavelengths are stretched; None = not."""
    settings = dict(settings)
    legacy = settings.pop("type", None)
    kind = settings.pop("rope_type", legacy) or "default"
    if kind not in KEYS:
        complaints.append(errors.unknown("rope_type", kind, KEYS))
        return None
    common.refuse_unknown(settings, KEYS[kind], complaints)
    if kind == "default":
        return None
    return _READERS[kind](settings, complaints, max_positions)


def _linear(settings: Config, complaints: list[str], longest: int) -> RopeScaling:
    del longest
    factor = common.number(settings, "factor", float, complaints)
    return RopeScaling("linear", factor)


def _dynamic(settings: Config, complaints: list[str], longest: int) -> RopeScaling:
    factor = common.number(settings, "factor", float, complaints)
    original = settings.get("original_max_position_embeddings") or longest
    if original != longest:  # transformers reads the other one
        complaints.append(
            f"original_max_position_embeddings={original!r} of dynamic rope scaling "
            f"differs from max_position_embeddings={longest}; remove it"
        )
    return RopeScaling("dynamic", factor, original_max_positions=longest)


def _llama3(settings: Config, complaints: list[str], longest: int) -> RopeScaling:
    del longest
    kinds = {"original_max_position_embeddings": int}
    values = {
        ours: common.number(settings, name, kinds.get(name, float), complaints)
        for name, ours in _LLAMA3.items()
    }
    if values["low_freq_factor"] >= values["high_freq_factor"]:
        complaints.append("low_freq_factor must be below high_freq_factor")
    return RopeScaling("llama3", **values)


def _original(settings: Config, complaints: list[str], longest: int) -> int:
    name = "original_max_position_embeddings"
    return common.number(settings, name, int, complaints, default=longest)


def _yarn(settings: Config, complaints: list[str], longest: int) -> RopeScaling:
    """Resolves what is left out as arXiv:2309.00071 and transformers do."""

    def value(name: str, default: float) -> float:
        return common.number(settings, name, float, complaints, default=default)

    original = _original(settings, complaints, longest)
    factor = value("factor", longest / original)
    grow = lambda m: 0.1 * m * math.log(factor) + 1 if factor > 1 else 1.0  # noqa: E731
    default = grow(1.0)
    if settings.get("mscale") and settings.get("mscale_all_dim"):
        default = grow(value("mscale", 1.0)) / grow(value("mscale_all_dim", 1.0))
    return RopeScaling(
        "yarn",
        factor,
        original_max_positions=original,
        beta_fast=value("beta_fast", 32.0),
        beta_slow=value("beta_slow", 1.0),
        truncate=common.boolean(settings, "truncate", complaints, default=True),
        attention_factor=value("attention_factor", default),
    )


def _longrope(settings: Config, complaints: list[str], longest: int) -> RopeScaling:
    """Resolves the attention factor as arXiv:2402.13753 and transformers do."""
    original = _original(settings, complaints, longest)
    ratio = longest / original
    stretch = common.number(settings, "factor", float, complaints, default=ratio)
    default = 1.0
    if stretch > 1 and original > 1:
        default = math.sqrt(1 + math.log(stretch) / math.log(original))
    return RopeScaling(
        "longrope",
        original_max_positions=original,
        attention_factor=common.number(
            settings, "attention_factor", float, complaints, default=default
        ),
        short_factors=_factors(settings, "short_factor", complaints),
        long_factors=_factors(settings, "long_factor", complaints),
    )


def _factors(settings: Config, name: str, complaints: list[str]) -> tuple[float, ...]:
    """Reads a list of positive numbers."""
    values = settings.get(name)
    if isinstance(values, list) and all(
        isinstance(x, int | float) and not isinstance(x, bool) and x > 0 for x in values
    ):
        return tuple(float(x) for x in values)
    complaints.append(f"{name}={values!r} must be a list of positive numbers")
    return ()


def to_hf(theta: float, scaling: RopeScaling | None) -> Config:
    """Writes theta and scaling in the old spelling, which every release reads."""
    if scaling is None:
        return {"rope_theta": theta, "rope_scaling": None}
    settings = {"rope_type": scaling.kind, **_WRITERS[scaling.kind](scaling)}
    return {"rope_theta": theta, "rope_scaling": settings}


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
        "original_max_position_embeddings": s.original_max_positions,
        "short_factor": list(s.short_factors),
    },
    "yarn": lambda s: {
        "attention_factor": s.attention_factor,
        "beta_fast": s.beta_fast,
        "beta_slow": s.beta_slow,
        "factor": s.factor,
        "original_max_position_embeddings": s.original_max_positions,
        "truncate": s.truncate,
    },
}
