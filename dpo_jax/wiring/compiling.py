"""A run's programs compiled for devices that need not be there.

The same wiring as training, with arrays that are shapes and nothing else. libtpu
compiles for TPUs on a machine without one, so what a step takes of a device's memory,
and what it sends between devices, is known before a pod is booked. This file reads no
data: which rows a step holds, its caller says.
"""

import collections
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from dpo_jax import roles
from dpo_jax.config import Config
from dpo_jax.data import layouts
from dpo_jax.errors import DeviceError
from dpo_jax.models.spec import DecoderSpec
from dpo_jax.sharding import arrays, rules
from dpo_jax.train import annotate
from dpo_jax.types import Batch, Params
from dpo_jax.wiring import model as model_wiring
from dpo_jax.wiring import training
from dpo_jax.wiring.objective import Losses, needs_whole_reference

ONE_CORE = {"v4": "megacore"}  # topologies that list a chip's cores unless asked not to
COLLECTIVE = re.compile(
    r"= .*? (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)"
    r"(?:-start)?\(.*?channel_id=(\d+)"
)
FUSED = "%all-reduce-scatter"  # a computation that TPUs run as one reduce-scatter


class Program(NamedTuple):
    """What the compiler says of a program; bytes are those of one device.

    Attributes:
      name: `reference` or `train step`.
      seconds: to trace, lower and compile.
      arguments: bytes that come in.
      outputs: bytes that go out.
      aliased: bytes of the outputs that lie where donated arguments lay.
      temporaries: bytes held besides, at most.
      code: bytes of the program itself.
      collectives: how many of each kind its text has; those in a loop's body, such as
        that over the layers, count once.
      text: optimized HLO.
    """

    name: str
    seconds: float
    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int
    collectives: dict[str, int]
    text: str

    @property
    def peak(self) -> int:
        """Bytes of a device that arguments, outputs, temporaries and code take."""
        fresh = self.outputs - self.aliased
        return self.arguments + fresh + self.temporaries + self.code


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


def compile_run(
    config: Config,
    losses: Losses,
    folder: Path | None,
    spec: DecoderSpec,
    shape: layouts.Shape,
    mesh: Mesh,
    *,
    steps: int,
) -> list[Program]:
    """Compiles what a step of `train` runs.

    Args:
      config: of the run.
      losses: of the run.
      folder: where the policy's weights would come from; None = drawn.
      spec: of the policy.
      shape: of a microbatch, over the whole mesh.
      mesh: of any devices.
      steps: of the run, for the schedule.

    Returns:
      The pass of a live reference, if there is one, and the train step.

    Raises:
      UserError: where `train` would refuse, too.
      DeviceError: if a program does not fit the devices.
    """
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        policy = model_wiring.make_model(config, folder, spec)
        model_wiring.check_loadable(policy, mesh)
        ignored = config.model.ignore_attributes
        reference = model_wiring.reference_model(policy, config.ref, mesh, ignored)
        trainer = training.make_trainer(config, losses, policy, reference, mesh, steps)
        batch = abstract_batch(shape, config.batch.microbatches or 1, mesh)
        programs = []
        if reference is not None:
            chunk, whole = config.model.logits_chunk, needs_whole_reference(losses)
            ask = model_wiring.compile_ask(reference, mesh, chunk=chunk, whole=whole)
            own = model_wiring.abstract_own(reference, mesh)
            params = roles.whole(own, trainer.frozen)
            if config.ref.mode == "live":
                programs.append(compiled("reference", ask, params, batch))
            batch = annotated(ask, params, batch, mesh)
        hyper = jax.eval_shape(trainer.hyper)
        replicated = dict.fromkeys(hyper, arrays.replicated(mesh))
        hyper = rules.with_shardings(hyper, replicated)
        given = (trainer.abstract, trainer.frozen, batch, hyper)
        return [*programs, compiled("train step", trainer.step, *given)]


def abstract_batch(shape: layouts.Shape, microbatches: int, mesh: Mesh) -> Batch:
    """Returns the step's batch as shapes, before anything is annotated."""
    place = arrays.row_sharding(mesh, leading=1)

    def one(leaf: Any) -> jax.ShapeDtypeStruct:
        full = (microbatches, shape.rows, *leaf.shape[1:])
        return jax.ShapeDtypeStruct(full, leaf.dtype, sharding=place)

    return jax.tree.map(one, layouts.empty(shape._replace(rows=1)))


def annotated(ask: Any, params: Params, batch: Batch, mesh: Mesh) -> Batch:
    """Adds the columns that a reference would give."""
    columns = jax.eval_shape(ask, params, batch)
    place = arrays.row_sharding(mesh, leading=1)
    places = dict.fromkeys(columns, place)
    return annotate.with_tokens(batch, rules.with_shardings(columns, places))


def compiled(name: str, program: Any, *shapes: Any) -> Program:
    """Compiles a jitted function for arguments that are shapes with shardings.

    Raises:
      DeviceError: in the compiler's words, if it does not fit the devices.
    """
    start = time.perf_counter()
    try:
        done = program.lower(*shapes).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DeviceError(f"{name} does not fit: {error}") from error
    seconds = time.perf_counter() - start
    memory, text = done.memory_analysis(), done.as_text()
    return Program(
        name,
        seconds,
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes,
        memory.alias_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.generated_code_size_in_bytes,
        collectives(text),
        text,
    )


def collectives(text: str) -> dict[str, int]:
    """Counts the collectives in optimized HLO, the most frequent kind first.

    One that runs beside other work stands there several times, under one channel.
    """
    channels, heading = {}, ""
    for line in text.splitlines():
        if not line.startswith(" "):
            heading = line
        match = COLLECTIVE.search(line)
        if match is not None:
            kind, channel = match.groups()
            fused = heading.startswith(FUSED)
            channels[channel] = "reduce-scatter" if fused else kind
    return dict(collections.Counter(channels.values()).most_common())
