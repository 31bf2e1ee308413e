"""Trains a published shape with weights drawn on the device; JSON on the last line.

Run by `accelerator.py`. What a run leaves on disk is left out (gigabytes of random
weights): the wiring's data, reference and step are a run's own. All steps are taken
once, which compiles; those that count take the same batches again, held ready.
"""

import argparse
import json
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from dpo_jax.cli import common
from dpo_jax.config import Config
from dpo_jax.losses import LOSSES
from dpo_jax.models import attention, spec
from dpo_jax.sharding.mesh import make_mesh
from dpo_jax.train import throughput
from dpo_jax.types import Batch, TrainState
from dpo_jax.wiring import checks, feeds
from dpo_jax.wiring import data as data_wiring
from dpo_jax.wiring.assembling import make_parts
from experiments.throughput import ours_side, shapes


def config(args: argparse.Namespace) -> Config:
    """Configures what `ours_side` does, for a shape and rows that may be cut."""
    chosen = ours_side.config(args)
    chosen.model.path, chosen.model.preset = "", args.shape
    chosen.tokenizer.path = str(args.folder / "model")
    chosen.data.max_tokens = args.max_tokens
    chosen.data.max_prompt_tokens = args.max_tokens // 2
    chosen.ref.dtype = args.dtype
    return chosen


def peak_bytes() -> int:
    """Returns what a device held at most, or, of a CPU, what the process did."""
    stats = jax.local_devices()[0].memory_stats()
    if stats:
        return stats["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def take(
    step: Callable[[TrainState, Batch], tuple[TrainState, Any]],
    state: TrainState,
    batches: list[Batch],
) -> tuple[TrainState, list[float], float]:
    """Takes a step with each batch; the host waits behind the last one only.

    Returns:
      The state, the loss of each step, and the seconds of all together.
    """
    losses = []
    begun = time.perf_counter()
    for batch in batches:
        state, metrics = step(state, batch)
        losses.append(metrics["loss"])
    jax.block_until_ready((state, losses))
    seconds = time.perf_counter() - begun
    return state, [float(loss) for loss in losses], seconds


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Trains; returns what `run.result` and `run.needed` read."""
    chosen = config(args)
    bound = checks.check(chosen, LOSSES)
    mesh = make_mesh(**chosen.mesh)
    work = args.folder / f"drawn_{args.layout}_{args.reference}_{args.attention}"
    shutil.rmtree(work, ignore_errors=True)
    with jax.set_mesh(mesh):
        parts = make_parts(chosen, bound, mesh)
        size = 8192 if jax.default_backend() != "cpu" else 2048
        matmul = throughput.matmul_flops_per_second(
            args.dtype, size=size, seconds=throughput.FIRST_SECONDS
        )
        referred = parts.refer(work)
        frozen, hyper = referred.frozen, parts.trainer.hyper()
        state = parts.trainer.init(frozen)
        ready = data_wiring.global_batches(referred.train, mesh, 0)
        batches = list(ready)

        def step(state: TrainState, batch: Batch) -> tuple[TrainState, Any]:
            batch = referred.annotate(state, frozen, batch, state.key, hyper)
            return parts.trainer.step(state, frozen, batch, hyper)

        state, losses, compiling = take(step, state, batches)
        rounds = []
        for _ in range(args.rounds):
            state, _, seconds = take(step, state, batches)
            rounds.append(seconds / len(batches))
        if args.profile:
            with jax.profiler.trace(str(args.profile)):
                take(step, state, batches[:1])
    peak = matmul * jax.device_count()
    facts = feeds.make_facts(parts.train, parts.model.spec, None, peak)
    steps = [facts(number, {}) for number in range(1, args.steps + 1)]
    count = len(rounds) + 1  # the first is left out by those who read this
    mean = lambda name: statistics.mean(one[name] for one in steps)  # noqa: E731
    return {
        "device": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
        "attention": attention.resolve(args.attention, dtype=args.dtype),
        "matmul": matmul,
        "losses": losses,
        "seconds": [compiling / len(batches), *rounds],
        "tokens": [mean("tokens")] * count,
        "flops_seconds": [mean("flops")] * count,
        "padding": mean("padding_fraction"),
        "peak_bytes": peak_bytes(),
    }


def main(argv: list[str] | None = None) -> None:
    """Trains for a few steps, several times."""
    parser = argparse.ArgumentParser(description=__doc__)
    ours_side.add_flags(parser)
    parser.add_argument("--shape", choices=sorted(shapes.SHAPES), required=True)
    parser.add_argument("--max_tokens", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", type=Path, help="folder of a trace of one step")
    args = parser.parse_args(argv)
    spec.PRESETS[args.shape] = shapes.spec_of(args.shape)
    common.setup_jax(config(args), debug=False)
    sys.stdout.write(json.dumps(measure(args)) + "\n")


if __name__ == "__main__":
    main()
