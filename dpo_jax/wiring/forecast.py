"""What a step would take of a topology: bytes, what is sent, FLOPs, and bounds.

`compiling` compiles what `programs` lists. A bound is what no run can be faster than; a
number that the compiler does not give is unknown and never a reason to say "fits".
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from dpo_jax.data import layouts
from dpo_jax.sharding import arrays, chips, rules
from dpo_jax.sharding import mesh as mesh_lib
from dpo_jax.wiring import compiling, feeds
from dpo_jax.wiring import programs as run_programs
from dpo_jax.wiring.compiling import Asked, Program
from dpo_jax.wiring.feeds import Runs, Work
from dpo_jax.wiring.parts import Parts

MARGIN = 0.05  # of a chip's memory: the runtime's own, and gaps between arrays
BATCHES = 2  # that lie on the devices beside the one in use
# FLOPs of attention's kernels for a visible pair and feature of a query head: forward
# the scores and the sum of values; backward these and their gradients, two kernels
KERNELS = {"fwd": 4.0, "dq": 6.0, "dkv": 8.0}


class Bound(NamedTuple):
    """Seconds that a step takes at least, by what bounds it.

    Attributes:
      compute: products at the chip's peak, recomputed ones among them.
      memory: arguments read and outputs written once (of sampling, read once a token),
        at the chip's full speed.
      links: what the collectives receive, over all links at once.
      mfu: the share of the peak that the model's own FLOPs would have then.
    """

    compute: float
    memory: float
    links: float
    mfu: float

    @property
    def seconds(self) -> float:
        """The longest of them: all others may run meanwhile."""
        return max(self.compute, self.memory, self.links)


class Forecast(NamedTuple):
    """What is known of a run's step on a topology, before it is booked.

    Attributes:
      topology: its name.
      fake: whether CPU devices stand in for its chips.
      kind: of the devices, as jax names it.
      mesh: size of each axis.
      processes: rows that each process lays out, of the microbatch.
      shape: of a microbatch.
      microbatches: of a step.
      programs: compiled.
      resident: role -> bytes of one device that lie there all the time.
      needed: bytes of one device, at most, with what lies beside the step; None =
        unknown.
      limit: bytes of one chip; None = it does not say.
      fits: None = unknown.
      model_flops: of a step, over all devices, nothing computed twice.
      counted_flops: of the programs' products, over all devices.
      bound: None where no table has the chip.
      dropped: what a sharding rule could not split.
    """

    topology: str
    fake: bool
    kind: str
    mesh: Mapping[str, int]
    processes: Mapping[int, Sequence[int]]
    shape: layouts.Shape
    microbatches: int
    programs: Sequence[Program]
    resident: Mapping[str, int]
    needed: int | None
    limit: int | None
    fits: bool | None
    model_flops: float
    counted_flops: float
    bound: Bound | None
    dropped: Sequence[str]


def forecast(
    parts: Parts,
    topology: str,
    *,
    fake: bool = False,
    tell: Callable[[str], None] = lambda name: None,
) -> Forecast:
    """Compiles a run's programs and says what they would take.

    Args:
      parts: of the run, on the topology's mesh.
      topology: its name.
      fake: whether CPU devices stand in for its chips.
      tell: is told what is compiled next.
    """
    mesh = parts.mesh
    device = mesh.devices.flat[0]
    chip = None if fake else chips.of_kind(device.device_kind)
    programs = []
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        asked = asked_of(parts)
        if parts.turns is not None:
            programs += run_programs.sampling(parts, tell)
        for each in asked:
            tell(each.name)
            programs.append(compiling.compiled(each, mesh.size))
    resident = resident_of(parts)
    needed = needed_of(programs, sum(resident.values()))
    limit = None if chip is None else chip.memory
    model = model_flops(parts)
    counted = sum(each.times * flops_of(parts, each) for each in programs)
    return Forecast(
        topology,
        fake,
        device.device_kind,
        dict(mesh.shape),
        rows_of_processes(mesh, shape_of(parts).rows),
        shape_of(parts),
        microbatches_of(parts),
        programs,
        resident,
        needed,
        limit,
        fits(programs, needed, limit),
        model,
        counted,
        None if chip is None else bound(chip, mesh.size, programs, model, counted),
        dropped(parts),
    )


def shape_of(parts: Parts) -> layouts.Shape:
    """Returns the largest shape of a microbatch, or that of a turn's updates."""
    if parts.turns is not None:
        sizes = parts.turns.sizes
        new = sizes.samples * sizes.new_tokens
        return layouts.Shape(sizes.rows, sizes.width + new, new, sizes.samples, 0)
    assert parts.train is not None
    loads = parts.train
    return max((loads.shape_at(s) for s in range(len(loads))), key=lambda s: s.rows)


def microbatches_of(parts: Parts) -> int:
    """Returns the microbatches of an update."""
    if parts.turns is not None:
        return parts.turns.sizes.microbatches
    assert parts.train is not None
    return parts.train.microbatches


def asked_of(parts: Parts) -> list[Asked]:
    """Lists the programs of a step or a turn, but for sampling; the update is last."""
    return run_programs.of_turn(parts) if parts.turns else run_programs.of_step(parts)


def resident_of(parts: Parts) -> dict[str, int]:
    """Adds up what lies on a device all the time: what trains, and what is frozen."""
    held: dict[str, int] = {}
    for name, size in compiling.leaves_of(run_programs.state_of(parts)):
        role = compiling.role_of(name)
        role = role if role in RESIDENT else "rest of the state"
        held[role] = held.get(role, 0) + size
    return held


def needed_of(programs: Sequence[Program], resident: int) -> int | None:
    """Finds the most bytes that a device holds; None = unknown.

    While a program runs that is not given all that trains and is frozen, or does not
    read it (jit lets such arguments go), that lies beside it; so do batches that wait,
    and the weights to decode while prompts are read.
    """
    most = 0
    waiting = BATCHES * programs[-1].held.get("batch and rest", 0)
    decoding = sum(each.held.get("weights to decode", 0) for each in programs)
    for each in programs:
        if each.memory is None:
            return None
        given = sum(size for role, size in each.held.items() if role in RESIDENT)
        unread = max(0, sum(each.held.values()) - each.memory.arguments)
        beside = max(0, resident - given) + unread + waiting
        beside += decoding if each.name == "prefill" else 0
        most = max(most, each.memory.peak + beside)
    return most


RESIDENT = (
    *("parameters", "base", "optimizer", "reference", "reward model", "value model"),
)


def fits(
    programs: Sequence[Program], needed: int | None, limit: int | None
) -> bool | None:
    """Says whether a chip holds it, with a margin; None = unknown."""
    if any(each.refused for each in programs):
        return False
    if needed is None or limit is None:
        return None
    return needed <= (1 - MARGIN) * limit


def rows_of_processes(mesh: Mesh, rows: int) -> dict[int, list[int]]:
    """Lists which of a microbatch's rows each process lays out."""
    held: dict[int, set[int]] = {}
    slices = arrays.row_sharding(mesh).devices_indices_map((rows,))
    for device, (rows_of,) in slices.items():
        here = held.setdefault(device.process_index, set())
        here |= set(range(*rows_of.indices(rows)))
    return {process: sorted(each) for process, each in sorted(held.items())}


def dropped(parts: Parts) -> list[str]:
    """Says which axes do not divide a parameter, so that it is not split over them."""
    told, mesh = [], parts.mesh
    state = parts.trainer.abstract.params
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = rules.path_name(path)
        spec = rules.rule_of(name, rules.STATE_RULES)[1]
        kept = rules.fitting(spec, leaf.shape, mesh)
        for size, axes, stays in zip(leaf.shape, spec, kept, strict=False):
            if axes != stays:
                told.append(f"{axes} does not divide the {size} of {name}")
    return told


def runs_of(parts: Parts) -> Runs:
    """Lists the forward passes that a step takes of each model."""
    if parts.turns is not None:
        return parts.runs(parts.trainer.frozen)
    runs = [(parts.model.passes, parts.model.spec)]
    live = parts.ask is not None and parts.ref["mode"] == "live"
    if live and parts.reference is not None:
        runs.append((1.0, parts.reference.spec))
    return runs


def work_of(parts: Parts) -> Work:
    """Counts what the largest step, or a turn of the longest samples, is given."""
    if parts.turns is not None:
        sizes = parts.turns.sizes
        each, n = sizes.new_tokens, sizes.samples
        prompt, grown = sizes.width, sizes.width + each
        pairs = causal(prompt) + n * (causal(grown) - causal(prompt))
        count = sizes.prompts
        return Work(
            count * (prompt + n * each), count * n * each, lambda window: count * pairs
        )
    assert parts.train is not None
    loads = parts.train
    step = max(range(len(loads)), key=lambda step: loads.facts(step)["tokens"])
    facts = loads.facts(step)
    visible = functools.partial(loads.visible_pairs, step)
    return Work(facts["tokens"], facts["scored"], visible)


def causal(tokens: int) -> float:
    """Counts the (query, key) pairs of a text."""
    return tokens * (tokens + 1) / 2


def model_flops(parts: Parts) -> float:
    """Counts the FLOPs that a step needs, over all devices."""
    return feeds.flops_of(runs_of(parts), work_of(parts))


def flops_of(parts: Parts, program: Program) -> float:
    """Counts what a program computes, over all devices, kernels by what they see."""
    spec = parts.model.spec
    shape, turns = shape_of(parts), parts.turns
    rows = shape.rows * microbatches_of(parts) if turns is None else turns.sizes.prompts
    queries = spec.layers * rows * shape.tokens * spec.heads * spec.head_dim
    seen = work_of(parts).visible_to(spec) * spec.heads * spec.head_dim
    kernels = sum(
        count / queries * factor * seen
        for name, count in program.flops.kernels.items()
        for part, factor in KERNELS.items()
        if f"_{part}" in name
    )
    return program.flops.products + kernels


def bound(
    chip: chips.Chip,
    devices: int,
    programs: Sequence[Program],
    model: float,
    counted: float,
) -> Bound:
    """Finds what a step takes at least.

    Args:
      chip: of the topology.
      devices: of it.
      programs: of the step.
      model: FLOPs that the step needs.
      counted: FLOPs that the programs compute.
    """
    compute = counted / (devices * chip.flops)
    passed = sum(
        each.times * (each.reads * each.memory.arguments + each.memory.outputs)
        for each in programs
        if each.memory is not None
    )
    sent = sum(
        each.times * kind.bytes for each in programs for kind in each.traffic.values()
    )
    memory, links = passed / chip.memory_speed, sent / chip.link_speed
    seconds = max(compute, memory, links)
    return Bound(compute, memory, links, model / (devices * chip.flops * seconds))


def reckoned(parts: Parts, like: Forecast | None) -> int:
    """Reckons the bytes of one device without compiling.

    Arguments are counted exactly; what lies beside them is that of a plan that was
    compiled: the gradient as the parameters are split, the rest by rows of a device.

    Args:
      parts: of the run on the mesh in question.
      like: compiled for another mesh; None = only what lies there all the time and the
        gradient.
    """
    resident = resident_of(parts)
    here = sum(resident.values()) + resident["parameters"]
    if like is None or like.needed is None:
        return here
    before = sum(like.resident.values()) + like.resident["parameters"]
    rows = shape_of(parts).rows / mesh_lib.row_shards(parts.mesh)
    then = like.shape.rows / (like.mesh["data"] * like.mesh["fsdp"])
    return math.ceil(here + max(0, like.needed - before) * rows / then)
