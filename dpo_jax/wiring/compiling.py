"""Programs compiled for devices that need not be there, and what the compiler says.

libtpu compiles for TPUs on a machine without one, so what a step takes of a device's
memory, and what it sends between devices, is known before a pod is booked.
"""

import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from dpo_jax.errors import DeviceError
from dpo_jax.sharding import hlo, rules
from dpo_jax.train import flops
from dpo_jax.wiring.digests import digest_of

ONE_CORE = {"v4": "megacore"}  # topologies that list a chip's cores unless asked not to
REFUSED = re.compile(r"[Uu]sed ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm")


class Memory(NamedTuple):
    """What the compiler says of a program's memory: bytes of one device.

    Attributes:
      arguments: that come in.
      outputs: that go out.
      aliased: of the outputs that lie where donated arguments lay.
      temporaries: held besides, at most.
      code: of the program itself.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int

    @property
    def peak(self) -> int:
        """Bytes that arguments, outputs, temporaries and code take."""
        fresh = self.outputs - self.aliased
        return self.arguments + fresh + self.temporaries + self.code


class Program(NamedTuple):
    """What the compiler says of a program.

    Attributes:
      name: such as `reference` or `train step`.
      seconds: to trace, lower and compile.
      memory: None = unknown: the compiler says nothing, or zero where there is some.
      refused: why it does not fit, in the compiler's words; '' = it compiled.
      held: role -> bytes of one device that its arguments have.
      leaves: (name, bytes of one device) of its arguments, the largest first.
      traffic: what its collectives send.
      flops: its matrix products, on all devices together.
      outputs: shapes with shardings; None where it was refused.
      text: optimized HLO; '' where it was refused.
      digest: 16 hex digits of the lowered program.
      times: that it runs in a step or a turn.
      reads: how often a run of it goes through its arguments.
    """

    name: str
    seconds: float
    memory: Memory | None
    refused: str
    held: Mapping[str, int]
    leaves: Sequence[tuple[str, int]]
    traffic: Mapping[str, hlo.Traffic]
    flops: flops.Counted
    outputs: Any
    text: str
    digest: str
    times: int
    reads: int


class Loops(NamedTuple):
    """How long the loops run, at most, of which a program does not say it.

    Attributes:
      vocab: V, which tells the loop over logits from the others.
      chunks: of a row's scored tokens, whose logits are held at once.
      blocks: of keys in a row; a causal row needs half of them on average.
    """

    vocab: int
    chunks: int
    blocks: int

    def __call__(self, eqn: Any) -> int:
        """Says how long a loop of a jaxpr runs."""
        sizes = {n for each in eqn.invars for n in getattr(each.aval, "shape", ())}
        return self.chunks if self.vocab in sizes else max(1, (self.blocks + 1) // 2)


class Asked(NamedTuple):
    """A program that is to be compiled.

    Attributes:
      name: of it.
      run: the jitted function.
      given: arguments that are shapes with shardings, by what they are.
      fixed: further arguments, static ones among them.
      loops: of unknown length.
      times: that it runs in a step or a turn.
      reads: how often a run of it goes through its arguments.
    """

    name: str
    run: Any
    given: Mapping[str, Any]
    fixed: tuple[Any, ...] = ()
    loops: Loops = Loops(0, 1, 1)
    times: int = 1
    reads: int = 1


def tpus(topology: str) -> Sequence[Any]:
    """Lists the chips of a topology that libtpu knows, such as `v4:2x2x4`.

    Raises:
      DeviceError: if libtpu is not installed, or does not know it.
    """
    core = ONE_CORE.get(topology.partition(":")[0])
    more = {} if core is None else {"chip_config_name": core}
    try:
        described = topologies.get_topology_desc(topology, "tpu", **more)
    except (RuntimeError, ValueError, FileNotFoundError) as error:
        raise DeviceError(
            f"topology={topology!r}: {error}; names are such as 'v5e:2x2' and "
            "'v4:2x2x4', and libtpu must be installed"
        ) from error
    return described.devices


def compiled(asked: Asked, devices: int) -> Program:
    """Compiles a program for arguments that are shapes with shardings."""
    start = time.perf_counter()
    traced = asked.run.trace(*asked.given.values(), *asked.fixed)
    counted = flops.counted(traced.jaxpr, trips=asked.loops)
    lowered = traced.lower()
    digest = digest_of(lowered)
    memory, text, refused, outputs = None, "", "", None
    try:
        done = lowered.compile()
        memory = memory_of(done, computes=counted.products > 0)
        text = done.as_text()
        outputs = rules.with_shardings(lowered.out_info, done.output_shardings)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        refused = str(error)
    leaves = leaves_of(asked.given)
    held: dict[str, int] = {}
    for name, size in leaves:
        held[role_of(name)] = held.get(role_of(name), 0) + size
    return Program(
        asked.name,
        time.perf_counter() - start,
        memory,
        refused,
        held,
        sorted(leaves, key=lambda leaf: -leaf[1]),
        hlo.traffic(text, devices=devices, trips=asked.loops.chunks) if text else {},
        counted,
        outputs,
        text,
        digest,
        asked.times,
        asked.reads,
    )


def memory_of(done: Any, *, computes: bool) -> Memory | None:
    """Reads what the compiler says of memory; None where it says nothing, or zero.

    Args:
      done: compiled.
      computes: whether the program has products, and so some temporaries.
    """
    said = done.memory_analysis()
    if said is None:
        return None
    memory = Memory(
        said.argument_size_in_bytes,
        said.output_size_in_bytes,
        said.alias_size_in_bytes,
        said.temp_size_in_bytes,
        said.generated_code_size_in_bytes,
    )
    some = memory.arguments > 0 and memory.outputs > 0
    return memory if some and (memory.temporaries > 0 or not computes) else None


def used_of(refused: str) -> tuple[float, float] | None:
    """Reads (bytes needed, bytes there) out of a compiler's refusal, if it says so."""
    match = REFUSED.search(refused)
    if match is None:
        return None
    used, of_used, there, of_there = match.groups()
    units = {"": 1, **{letter: 2 ** (10 * i) for i, letter in enumerate("KMGT", 1)}}
    return float(used) * units[of_used], float(there) * units[of_there]


def leaves_of(tree: Any) -> list[tuple[str, int]]:
    """Lists (name, bytes of one device) of shapes with shardings."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return [(rules.path_name(path), bytes_of(leaf)) for path, leaf in found]


def bytes_of(leaf: Any) -> int:
    """Counts the bytes that a device holds of an array."""
    place = getattr(leaf, "sharding", None)
    shape = leaf.shape if place is None else place.shard_shape(leaf.shape)
    return math.prod(shape) * leaf.dtype.itemsize


ROLES = (
    (r"^state/params/value/", "value model"),
    (r"^weights/", "weights to decode"),
    (r"^(state/params|params)/", "parameters"),
    (r"^state/opt_state/", "optimizer"),
    (r"^frozen/base/", "base"),
    (r"^(state/ref|frozen/ref|ref)/", "reference"),
    (r"^(frozen/reward|reward)/", "reward model"),
    (r"/cache/", "KV cache"),
    (r"", "batch and rest"),
)


def role_of(name: str) -> str:
    """Says what an argument is for, by its name."""
    return next(role for pattern, role in ROLES if re.search(pattern, name))
