"""What the runs of a sweep would take of a topology together, at best.

Each run's step is lowered; those that are one program are compiled once.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from dpo_jax import booking, config
from dpo_jax.errors import ConfigError
from dpo_jax.wiring import forecast
from dpo_jax.wiring.digests import digest_of
from dpo_jax.wiring.forecast import Forecast

OWN = ("model.path", "model.preset", "model.revision")  # what says which model it is


class Share(NamedTuple):
    """The runs of one program.

    Attributes:
      names: of the runs.
      steps: updates of them all.
      hours: of a chip, at best; None = unknown.
      plan: of the program.
    """

    names: list[str]
    steps: int
    hours: float | None
    plan: Forecast


def rooted(configs: Mapping[str, Any], exports: Mapping[str, str]) -> dict[str, Any]:
    """Gives runs that start from another's export, which is not there, its model.

    Args:
      configs: name -> configuration, each behind those that it starts from.
      exports: path of an export -> name of the run that would write it.
    """
    found: dict[str, Any] = {}
    for name, given in configs.items():
        changed: dict[str, Any] = {}
        if given.model.path in exports:
            other = config.flat(found[exports[given.model.path]])
            changed = {key: other[key] for key in (*OWN, "tokenizer.path")}
        if given.ref.path in exports:
            changed["ref.path"] = ""
        found[name] = config.stated(given, changed)
    return found


def shares(
    runs: Mapping[str, booking.Planned], topology: str, tell: Callable[[str], None]
) -> list[Share]:
    """Plans all runs of a sweep.

    Args:
      runs: by name.
      topology: each of them would run on.
      tell: is told what is done next.

    Raises:
      ConfigError: if it is not known how many steps a run has.
    """
    devices, fake = booking.devices_of(topology)
    groups: dict[tuple[str, ...], list[tuple[str, int]]] = {}
    plans: dict[tuple[str, ...], Forecast] = {}
    for name, planned in runs.items():
        if not (planned.config.train.steps or planned.rows):
            raise ConfigError(
                f"trial {name!r} runs by epochs of rows that are not read; give "
                "train.steps, or --rows"
            )
        parts = booking.parts_of(planned, devices)
        with jax.sharding.use_abstract_mesh(parts.mesh.abstract_mesh):
            asked = forecast.asked_of(parts)
            lowered = (each.run.lower(*each.given.values()) for each in asked)
            key = tuple(map(digest_of, lowered))
        if key not in plans:
            tell(name)
            plans[key] = forecast.forecast(parts, topology, fake=fake, tell=tell)
        updates = 1 if parts.turns is None else parts.turns.sizes.updates
        groups.setdefault(key, []).append((name, parts.steps // updates))
    return [_share(members, plans[key]) for key, members in groups.items()]


def _share(members: Sequence[tuple[str, int]], plan: Forecast) -> Share:
    """Adds up the runs of a program."""
    names, steps = [name for name, _ in members], sum(n for _, n in members)
    chips = 1
    for n in plan.mesh.values():
        chips *= n
    bound = plan.bound
    hours = None if bound is None else steps * bound.seconds * chips / 3600
    return Share(names, steps, hours, plan)


def as_text(found: Sequence[Share], topology: str) -> str:
    """Renders what a sweep takes."""
    runs = sum(len(share.names) for share in found)
    known = [share.hours for share in found if share.hours is not None]
    total = f"{sum(known):.3g} chip-hours at best"
    if len(known) < len(found):
        total = "hours unknown: nothing is known of these devices' speed"
    lines = [f"{runs} runs, {len(found)} programs on {topology}: {total}"]
    word = {True: "fits", False: "does not fit", None: "unknown whether it fits"}
    for share in found:
        few = ", ".join(share.names[:4]) + (", …" if len(share.names) > 4 else "")
        bound = share.plan.bound
        least = "" if bound is None else f", {bound.seconds:.3g} s each at least"
        lines.append(
            f"  {len(share.names)} runs ({few}): {share.steps} steps{least}; "
            f"{booking.gib(share.plan.needed)} a chip, {word[share.plan.fits]}"
        )
    return "\n".join(lines) + "\n"
