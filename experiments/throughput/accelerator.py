"""Pairs per second of a published shape on an accelerator, in bfloat16.

    python -m experiments.throughput.accelerator --data=hh-harmless-test.jsonl.gz \
      --out=DIR [--shape=pythia-2.8b] [--pairs=64]

Layouts against each other, and the attention backends on the best of them. Every
contender trains random weights on the same pairs in a process of its own, one after the
other; one that fails, for want of memory say, is told and left out.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from experiments.throughput import inputs, shapes
from experiments.throughput.run import BEST, OURS, apart, child, needed, result, table

VOCAB = 16_384  # ids that are learnt; the shape's others stand for nothing


class Contender(NamedTuple):
    """A layout, a reference and an attention backend."""

    layout: str
    reference: str
    attention: str

    @property
    def name(self) -> str:
        """As the table names it."""
        return f"{self.layout}, {self.reference}, {self.attention}"


def contenders(layouts: str, backends: str) -> Iterator[Contender]:
    """Yields layouts with `auto`, then the backends on the best of them."""
    for name, (layout, reference) in OURS.items():
        if any(part in name for part in layouts.split(";")):
            yield Contender(layout, reference, "auto")
    for backend in filter(None, backends.split(",")):
        yield Contender(*OURS[BEST], backend)


def main(argv: list[str] | None = None) -> None:
    """Runs the contenders and writes results.json and table.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="hh-rlhf's .jsonl.gz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shape", choices=sorted(shapes.SHAPES), default="pythia-2.8b")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3, help="of these steps, timed")
    parser.add_argument("--pairs", type=int, default=64, help="of a step")
    parser.add_argument("--max_tokens", type=int, default=512, help="half are prompt")
    parser.add_argument("--dtype", default="bfloat16", help="of the computation")
    parser.add_argument("--remat", default="elementwise")
    parser.add_argument(
        "--repeated",
        type=int,
        default=8,
        help="microbatches of the layouts that hold a prompt twice, to fit the memory",
    )
    parser.add_argument(
        "--layouts", default=";".join(OURS), help="parts of their names"
    )
    parser.add_argument("--backends", default="xla,dense")
    parser.add_argument("--profile", action="store_true", help="trace the best's step")
    args = parser.parse_args(argv)
    folder: Path = args.out
    rows = inputs.read_pairs(args.data)
    filled = shapes.spec_of(args.shape).vocab
    inputs.write_tokenizer(rows, folder / "model", min(VOCAB, filled), filled=filled)
    drawn = inputs.sample(rows, args.steps * args.pairs)
    inputs.write_rows(drawn, folder / "pairs.jsonl")
    shared = ("shape", "steps", "rounds", "pairs", "max_tokens", "dtype", "remat")
    common = [f"--{name}={getattr(args, name)}" for name in shared]
    common += [f"--folder={folder}", "--row_shapes=2"]
    memory = "XLA_PYTHON_CLIENT_MEM_FRACTION"  # of the card; jax takes less by default
    settings = {memory: os.environ.get(memory, "0.95")}
    found: dict[Contender, dict] = {}
    for one in contenders(args.layouts, args.backends):
        flags = [f"--{name}={value}" for name, value in one._asdict().items()]
        if one.layout != OURS[BEST][0]:
            flags.append(f"--microbatches={args.repeated}")
        if args.profile and one == Contender(*OURS[BEST], "auto"):
            flags.append(f"--profile={folder / 'profile'}")
        try:
            found[one] = child("drawn_side", common + flags, **settings)
        except SystemExit as error:
            sys.stderr.write(f"{one.name}: {error}\n")
            continue
        (folder / "results.json").write_text(
            json.dumps({one.name: values for one, values in found.items()}, indent=1)
        )
        sys.stdout.write(f"{one.name}: {found[one]['seconds'][1:]} s a step\n")
        sys.stdout.flush()
    text = report(found, args.pairs)
    (folder / "table.md").write_text(text)
    sys.stdout.write(text)


def report(found: dict[Contender, dict], pairs: int) -> str:
    """Writes the table, and what it is relative to.

    Raises:
      SystemExit: if the best layout is not among the contenders that ran.
    """
    best = next((one for one in found if one[:2] == OURS[BEST]), None)
    if best is None:
        raise SystemExit(f"{BEST!r} did not run, the measure of all")
    results = [result(one.name, found[one]) for one in found]
    text = table(results, needed(found[best]), pairs)
    speeds = [values["matmul"] for values in found.values()]
    low, high = min(speeds) / 1e12, max(speeds) / 1e12
    kinds = {values["device"] for values in found.values()}
    picked = found[best]["attention"]
    return (
        f"{text}\n{', '.join(sorted(kinds))}; auto picks {picked}; matmul "
        f"{low:.0f} to {high:.0f} TFLOP/s; losses of a step differ by at most "
        f"{apart(results):.1e}\n"
    )


if __name__ == "__main__":
    main()
