"""A run's step on a topology, before it is booked: planned, and told.

The parts of the run are wired by the function that `train` calls, of the same resolved
configuration; only weights, rows and devices need not be there.
"""

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from absl import logging

from dpo_jax import config as config_lib
from dpo_jax.config import Config
from dpo_jax.errors import ConfigError, DeviceError
from dpo_jax.losses import LOSSES
from dpo_jax.rewards import REWARDS, RewardTable
from dpo_jax.schema import Section
from dpo_jax.sharding import agree, chips, hlo
from dpo_jax.sharding.mesh import make_mesh
from dpo_jax.wiring import checks, compiling, forecast, supply
from dpo_jax.wiring.assembling import make_parts
from dpo_jax.wiring.forecast import Forecast
from dpo_jax.wiring.parts import Parts

NO_ROWS = "longest.jsonl"  # stands for data.train where none is named: nothing reads it
SHOWN = 6  # of the largest arrays and values
TRIED = 3  # topologies that are compiled to find the smallest

Tell = Callable[[str], None]


class Planned(NamedTuple):
    """How a run is planned.

    Attributes:
      config: of the run.
      losses: the table that `loss.name` is looked up in.
      rewards: that of `reward.name`.
      rows: whether the rows of data.train are read; else they are as long as the
        configuration allows.
    """

    config: Config
    losses: checks.LossTable = LOSSES
    rewards: RewardTable = REWARDS
    rows: bool = False


def has_libtpu() -> bool:
    """Says whether programs can be compiled for TPUs here."""
    return importlib.util.find_spec("libtpu") is not None


def devices_of(topology: str) -> tuple[Sequence[Any], bool]:
    """Returns a topology's devices, and whether those of a CPU stand in for them.

    Raises:
      ConfigError: if the topology is written wrong.
      DeviceError: if it is not known, or this process has too few CPU devices.
    """
    name, sides = chips.parse(topology)
    if name != "cpu" and has_libtpu():
        return compiling.tpus(topology), False
    count = chips.count(sides)
    found = jax.devices("cpu")
    if len(found) < count:
        raise DeviceError(
            f"--topology={topology!r} needs {count} devices, and this process has "
            f"{len(found)} of a CPU; set DPO_JAX_CPU_DEVICES={count}"
        )
    return found[:count], name != "cpu"


def parts_of(planned: Planned, devices: Sequence[Any]) -> Parts:
    """Wires a run on devices that need not be there; reads no weights."""
    config = planned.config
    if not config.data.train and not planned.rows:
        config = config_lib.stated(config, {"data.train": NO_ROWS})
    losses = checks.check(config, planned.losses, planned.rewards)
    mesh = make_mesh(**config.mesh, devices=devices)
    source = supply.FROM_CONFIG
    if planned.rows:
        source = source._replace(
            tokenizer=supply.FROM_FILES.tokenizer,
            rows=supply.FROM_FILES.rows,
            prompts=supply.FROM_FILES.prompts,
        )
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return make_parts(
            config, losses, mesh, None, ("train",), planned.rewards, source
        )


def plan(planned: Planned, topology: str, tell: Tell = logging.info) -> Forecast:
    """Compiles what a run would compile on a topology.

    Args:
      planned: the run.
      topology: `v4:2x2x4`, `cpu:8`, …
      tell: is told what is compiled next.

    Raises:
      UserError: where `train` would refuse, too.
    """
    devices, fake = devices_of(topology)
    parts = parts_of(planned, devices)
    return forecast.forecast(parts, topology, fake=fake, tell=tell)


class Candidate(NamedTuple):
    """A topology that may do: bytes of a chip as reckoned, and the plan, if compiled.

    `refused` says why the run cannot be laid out there; '' = it can.
    """

    topology: str
    reckoned: int
    plan: Forecast | None
    refused: str = ""


def smallest(
    planned: Planned, like: Forecast, compile: bool, tell: Tell = logging.info
) -> list[Candidate]:
    """Looks for the smallest topology of a kind of chip that holds the run.

    Args:
      planned: the run.
      like: a plan for any topology of the kind.
      compile: whether what seems to fit is compiled, at most `TRIED` of them, until one
        does fit.
      tell: is told what is compiled next.

    Returns:
      Topologies from the smallest on; the last is the one that was found.
    """
    name, _ = chips.parse(like.topology)
    limit = (1 - forecast.MARGIN) * chips.CHIPS[name].memory
    found, tried = list[Candidate](), 0
    for topology in (f"{name}:{slice_}" for slice_ in chips.CHIPS[name].slices):
        try:
            parts = parts_of(planned, compiling.tpus(topology))
        except DeviceError as error:
            found.append(Candidate(topology, 0, None, str(error)))
            continue
        bytes_ = forecast.reckoned(parts, like)
        if bytes_ > limit:
            found.append(Candidate(topology, bytes_, None))
            continue
        if not compile:
            return [*found, Candidate(topology, bytes_, None)]
        tell(topology)
        known = like if topology == like.topology else None
        made = known or forecast.forecast(parts, topology, tell=tell)
        found.append(Candidate(topology, bytes_, made))
        tried += 1
        if made.fits or tried == TRIED:
            return found
    return found


def identity(made: Forecast, flags: Mapping[str, str]) -> dict[str, Any]:
    """Returns what a run that was planned must have in common with its plan.

    Args:
      made: the plan.
      flags: of the compiler, from the environment.
    """
    return {
        "programs": {each.name: each.digest for each in made.programs},
        "flags": dict(flags),
        "versions": agree.versions(),
    }


def as_json(made: Forecast, flags: Mapping[str, str]) -> str:
    """Writes a plan as JSON text, without the text of its programs."""
    programs = [
        {
            **each._asdict(),
            "memory": None if each.memory is None else each.memory._asdict(),
            "traffic": {k: v._asdict() for k, v in each.traffic.items()},
            "flops": each.flops._asdict(),
            "leaves": each.leaves[:SHOWN],
            "text": None,
            "outputs": None,
        }
        for each in made.programs
    ]
    whole = {
        **made._asdict(),
        "shape": made.shape._asdict(),
        "bound": None if made.bound is None else made.bound._asdict(),
        "programs": [
            {k: v for k, v in each.items() if v is not None or k == "memory"}
            for each in programs
        ],
        "identity": identity(made, flags),
    }
    return json.dumps(whole, indent=1) + "\n"


def gib(size: float | None) -> str:
    """Renders bytes."""
    if size is None:
        return "unknown"
    if size >= 2**29:
        return f"{size / 2**30:.2f} GiB"
    return f"{size / 2**20:.1f} MiB" if size >= 2**19 else f"{size / 2**10:.1f} KiB"


def as_text(made: Forecast, data: Section) -> str:
    """Renders a plan for a terminal; `data` is `config.data`."""
    return "\n".join(
        [
            *head_lines(made, data),
            *[line for each in made.programs for line in program_lines(each)],
            *memory_lines(made),
            *speed_lines(made),
            *[f"not split: {line}" for line in made.dropped],
        ]
    )


def head_lines(made: Forecast, data: Section) -> list[str]:
    """Says what was planned: mesh, rows, shape; `data` is `config.data`."""
    sizes = " × ".join(f"{axis} {n}" for axis, n in made.mesh.items())
    devices = 1
    for n in made.mesh.values():
        devices *= n
    shape, counts = made.shape, {len(rows) for rows in made.processes.values()}
    first = next(iter(made.processes.values()))
    lines = [
        f"{made.topology}: {devices} devices ({made.kind}), "
        f"{len(made.processes)} processes; mesh {sizes}"
    ]
    if made.fake:
        lines.append(
            "libtpu is not installed: CPU devices stand in, whose compiler lays memory "
            "out in other ways; pip install 'jax[tpu]' on Linux x86 to compile for TPUs"
        )
    prompt, response = supply.longest(data)
    lines += [
        f"rows of a microbatch: {shape.rows} × {shape.tokens} tokens, "
        f"{shape.scored} scored, {shape.slots} responses; {made.microbatches} "
        f"microbatches; a prompt may have {prompt} tokens, a response {response}",
        f"rows of a process: {', '.join(map(str, sorted(counts)))} of {shape.rows}; "
        f"process 0 lays out {spans(first)}",
    ]
    return lines


def spans(numbers: Sequence[int]) -> str:
    """Renders ascending numbers as `0-3, 8-11`."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    said = [str(a) if a == b else f"{a}-{b}" for a, b in runs]
    return ", ".join(said[:8]) + (", …" if len(said) > 8 else "")


def program_lines(each: compiling.Program) -> list[str]:
    """Renders what the compiler says of a program."""
    often = f"{each.times} × " if each.times > 1 else ""
    lines = [
        f"{often}{each.name}: compiled in {each.seconds:.0f} s, digest {each.digest}",
        "  given: "
        + " + ".join(f"{role} {gib(size)}" for role, size in each.held.items() if size),
    ]
    if each.refused:
        used = compiling.used_of(each.refused)
        told = each.refused.splitlines()[0][:300]
        if used:
            told = f"it would use {gib(used[0])} of {gib(used[1])}"
        return [*lines, f"  does not fit: {told}"]
    memory = each.memory
    if memory is None:
        lines.append("  memory: unknown, the compiler does not say")
    else:
        lines.append(
            f"  {gib(memory.peak)} = arguments {gib(memory.arguments)} + outputs "
            f"{gib(memory.outputs)} − aliased {gib(memory.aliased)} + temporaries "
            f"{gib(memory.temporaries)} + code {gib(memory.code)}"
        )
    for kind, sent in each.traffic.items():
        unknown = " (loops of unknown length counted in full)" if sent.unknown else ""
        lines.append(
            f"  {kind}: {sent.calls} calls, {gib(sent.bytes)} received{unknown}"
        )
    lines += [f"  {gib(size):>11}  {name}" for name, size in each.leaves[:SHOWN]]
    lines += [
        f"  {gib(v.bytes):>11}  {v.type} of {v.origin}"
        for v in hlo.largest(each.text, number=SHOWN)
    ]
    return lines


def memory_lines(made: Forecast) -> list[str]:
    """Renders what lies on a device, and whether it fits."""
    roles = " + ".join(
        f"{role} {gib(size)}" for role, size in made.resident.items() if size
    )
    lines = [f"always on a device: {roles}"]
    word = {True: "fits", False: "DOES NOT FIT", None: "unknown whether it fits"}
    limit = "a limit that is not known" if made.limit is None else gib(made.limit)
    lines.append(
        f"needed at most: {gib(made.needed)} of {limit} "
        f"({forecast.MARGIN:.0%} of it left free): {word[made.fits]}"
    )
    return lines


def speed_lines(made: Forecast) -> list[str]:
    """Renders FLOPs and the bounds on a step."""
    ratio = made.counted_flops / made.model_flops if made.model_flops else 0.0
    lines = [
        f"FLOPs of a step: {made.model_flops:.4g} of the model, "
        f"{made.counted_flops:.4g} in the programs ({ratio:.2f}×), loops multiplied out"
    ]
    bound = made.bound
    if bound is None:
        return [*lines, "no bound: nothing is known of these devices' speed"]
    lines.append(
        f"a step takes at least {bound.seconds:.3g} s: products {bound.compute:.3g}, "
        f"memory {bound.memory:.3g}, links {bound.links:.3g}; MFU at most "
        f"{bound.mfu:.1%}"
    )
    return lines


def smallest_text(found: Sequence[Candidate]) -> str:
    """Renders which topologies were looked at."""
    lines = []
    for each in found:
        if each.refused:
            lines.append(f"{each.topology}: {each.refused}")
        elif each.plan is None:
            lines.append(f"{each.topology}: {gib(each.reckoned)} a chip, reckoned")
        else:
            word = {True: "fits", False: "does not fit", None: "unknown"}
            lines.append(
                f"{each.topology}: {gib(each.reckoned)} a chip reckoned, "
                f"{gib(each.plan.needed)} compiled: {word[each.plan.fits]}"
            )
    return "\n".join(lines)


def check_flags(topology: str, smallest: bool) -> None:
    """Refuses flags that contradict each other.

    Raises:
      ConfigError: so.
    """
    name, _ = chips.parse(topology)
    if smallest and (name == "cpu" or not has_libtpu()):
        raise ConfigError(
            "--smallest compiles for TPUs; give --topology=v4:… or the like, with "
            "libtpu installed"
        )
