"""Pairs per second, memory and utilisation: this project's layouts against TRL.

    python -m experiments.throughput.run --data=hh-harmless-test.jsonl.gz --out=DIR

Every contender trains a random Llama of 33.7 M parameters on the same pairs, in the
same order, with the same loss and optimizer, in a process of its own, one after the
other. `--trl=` leaves TRL out: then it is the ablation padded → packed →
prefix_shared, and PyTorch is not needed.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dpo_jax import markdown
from experiments.throughput import inputs

ROOT = Path(__file__).parents[2]
OURS = {  # layout, reference
    "padded, live": ("padded", "live"),
    "padded, cached": ("padded", "cached"),
    "packed, cached": ("packed", "cached"),
    "prefix_shared, live": ("prefix_shared", "live"),
    "prefix_shared, cached": ("prefix_shared", "cached"),
}
BEST = "prefix_shared, cached"  # it runs only what a pair needs


class Result(NamedTuple):
    """What a contender took.

    Attributes:
      name: of the contender.
      seconds: of a step, the mean of all but the first.
      peak_bytes: resident, at most.
      losses: of each step.
      padding: share of a batch's places; NaN = not known.
    """

    name: str
    seconds: float
    peak_bytes: int
    losses: list[float]
    padding: float


class Needed(NamedTuple):
    """What a step needs: no padding, no prompt twice, the reference from disk.

    Attributes:
      tokens: of a step.
      seconds: that its model FLOPs take at the speed of a plain matmul.
    """

    tokens: float
    seconds: float


def child(module: str, flags: Sequence[str], **settings: str) -> dict:
    """Runs a side in a process of its own; returns the JSON of its last line.

    Args:
      module: of this folder.
      flags: of its command line.
      **settings: of its environment.
    """
    command = [sys.executable, "-m", f"experiments.throughput.{module}", *flags]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ | settings
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} exits with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def result(name: str, found: dict) -> Result:
    """Sums up a side's JSON."""
    return Result(
        name=name,
        seconds=statistics.mean(found["seconds"][1:]),
        peak_bytes=found["peak_bytes"],
        losses=found["losses"],
        padding=found.get("padding", math.nan),
    )


def needed(found: dict) -> Needed:
    """Reads what a step needs from the contender that runs nothing else."""
    pairs = zip(found["tokens"], found["flops_seconds"], strict=True)
    tokens, seconds = zip(*list(pairs)[1:], strict=True)
    return Needed(statistics.mean(tokens), statistics.mean(seconds))


def table(results: Sequence[Result], least: Needed, pairs: int) -> str:
    """Writes a Markdown table.

    Ratios are to the fastest TRL, or to the first contender where TRL takes no part.
    """
    theirs = [r for r in results if r.name.startswith("TRL")]
    base = min(theirs or results[:1], key=lambda r: r.seconds)
    head = [
        *("contender", "pairs/s", f"× {'TRL' if theirs else base.name}"),
        *("useful tokens/s", "of the matmul peak", "peak GB", "padding"),
        "loss, first and last step",
    ]
    rows = (
        [
            r.name,
            f"{pairs / r.seconds:.3f}",
            f"{base.seconds / r.seconds:.2f}",
            f"{least.tokens / r.seconds:.0f}",
            f"{least.seconds / r.seconds:.1%}",
            f"{r.peak_bytes / 1e9:.2f}",
            "–" if math.isnan(r.padding) else f"{r.padding:.1%}",
            f"{r.losses[0]:.6f}, {r.losses[-1]:.6f}",
        ]
        for r in results
    )
    return markdown.table(head, rows)


def apart(results: Sequence[Result]) -> float:
    """Returns by how much losses of a step differ among contenders, at most."""
    steps = zip(*(r.losses for r in results), strict=True)
    return max(max(losses) - min(losses) for losses in steps)


def main(argv: list[str] | None = None) -> None:
    """Runs the contenders and writes results.json and table.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="hh-rlhf's .jsonl.gz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=32, help="of a step")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--vocab", type=int, default=16_384)
    parser.add_argument("--dtype", default="float32", help="of the computation")
    parser.add_argument("--trl", default="1,2,4,8", help="TRL's batch sizes to try")
    parser.add_argument("--attention", default="xla")
    parser.add_argument("--remat", default="elementwise")
    parts = "parts of our contenders' names, with ';' between; '' = all"
    parser.add_argument("--only", default="", help=parts)
    args = parser.parse_args(argv)
    wanted = args.only.split(";")
    if not any(part in BEST for part in wanted):
        parser.error(f"--only={args.only!r} leaves out {BEST!r}, the measure of all")
    folder: Path = args.out
    inputs.write_folder(
        folder,
        inputs.read_pairs(args.data),
        args.steps * args.pairs,
        layers=args.layers,
        width=args.width,
        vocab=args.vocab,
    )
    shared = ("steps", "pairs", "dtype")
    common = [f"--{name}={getattr(args, name)}" for name in shared]
    common.append(f"--folder={folder}")
    results, least = [], None
    for name, (layout, reference) in OURS.items():
        if any(part in name for part in wanted):
            flags = [f"--layout={layout}", f"--reference={reference}"]
            flags += [f"--attention={args.attention}", f"--remat={args.remat}"]
            found = child("ours_side", common + flags)
            results.append(result(name, found))
            least = needed(found) if name == BEST else least
    for batch in filter(None, args.trl.split(",")):
        flags = [f"--batch={batch}", "--reference=cached"]
        found = child("trl_side", common + flags)
        results.append(result(f"TRL, {batch} at a time, cached", found))
    assert least is not None
    text = table(results, least, args.pairs)
    text += f"\nLosses of a step differ by at most {apart(results):.1e}.\n"
    load = os.getloadavg()[0]
    text += f"{os.cpu_count()} cores, load {load:.1f} at the end.\n"
    kept = {"needed": least._asdict(), "results": [r._asdict() for r in results]}
    (folder / "results.json").write_text(json.dumps(kept, indent=1))
    (folder / "table.md").write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
