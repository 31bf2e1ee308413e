"""Where a GPU's time went, from a trace that jax's profiler wrote.

    python -m experiments.throughput.trace DIR

DIR is that of `accelerator.py --profile`, or a run's `profile/`. Kernels are told apart
by their names; between them the device is idle.
"""

import argparse
import collections
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from jax.profiler import ProfileData

KINDS = {  # of kernels, the first that fits
    "attention": r"fmha|flash|sdpa|cudnn.*attention",
    "matrix products": r"gemm|nvjet|xmma|cutlass|cublas|matmul|_dot_|wgmma",
    "copies": r"memcpy|memset|^copy|transpose",
    "scatters and gathers": r"scatter|gather",
    "reductions": r"reduce",
    "elementwise": r"fusion|loop_|input_|wrapped_|convert|select|broadcast",
}


class Span(NamedTuple):
    """A kernel's time on the device, in nanoseconds."""

    name: str
    start: float
    end: float


def kind_of(name: str) -> str:
    """Sorts a kernel by its name."""
    for kind, pattern in KINDS.items():
        if re.search(pattern, name, re.IGNORECASE):
            return kind
    return "others"


def read(folder: Path) -> dict[str, list[Span]]:
    """Reads the kernels of each GPU of a trace.

    Raises:
      SystemExit: if there is no trace, or none of a GPU.
    """
    files = sorted(folder.rglob("*.xplane.pb"))
    if not files:
        raise SystemExit(f"{folder} holds no *.xplane.pb")
    found: dict[str, list[Span]] = {}
    for plane in ProfileData.from_file(str(files[-1])).planes:
        if plane.name.startswith("/device:GPU"):
            found[plane.name] = [
                Span(event.name, event.start_ns, event.end_ns)
                for line in plane.lines
                if line.name.startswith("Stream")
                for event in line.events
            ]
    if not any(found.values()):
        raise SystemExit(f"{files[-1]} holds no kernels of a GPU")
    return found


def busy(spans: Iterable[Span]) -> tuple[float, float]:
    """Returns the nanoseconds in which at least one ran, and the longest gap."""
    total = longest = 0.0
    until = None
    for span in sorted(spans, key=lambda s: s.start):
        if until is None or span.start > until:
            longest = max(longest, 0.0 if until is None else span.start - until)
            total += span.end - span.start
            until = span.end
        elif span.end > until:
            total += span.end - until
            until = span.end
    return total, longest


def describe(name: str, spans: Sequence[Span], top: int) -> str:
    """Tells a device's shares of time by kind, then its dearest kernels."""
    whole = max(s.end for s in spans) - min(s.start for s in spans)
    ran, longest = busy(spans)
    by_kind: collections.Counter[str] = collections.Counter()
    by_name: collections.Counter[str] = collections.Counter()
    for span in spans:
        by_kind[kind_of(span.name)] += span.end - span.start
        by_name[span.name] += span.end - span.start
    lines = [
        f"{name}: {whole / 1e6:.1f} ms from the first kernel to the last, idle "
        f"{1 - ran / whole:.1%}, at most {longest / 1e3:.0f} µs at once",
        *(f"{ns / whole:7.1%}  {kind}" for kind, ns in by_kind.most_common()),
        "",
        *(
            f"{ns / whole:7.1%}  {kernel[:100]}"
            for kernel, ns in by_name.most_common(top)
        ),
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--top", type=int, default=20, help="kernels to name")
    args = parser.parse_args(argv)
    for name, spans in read(args.folder).items():
        sys.stdout.write(describe(name, spans, args.top))


if __name__ == "__main__":
    main()
