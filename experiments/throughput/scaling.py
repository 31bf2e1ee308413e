"""What a pair costs as rows, vocabulary, model or mesh grow.

    python -m experiments.throughput.scaling --data=hh-harmless-test.jsonl.gz --out=DIR

One thing varies at a time; everything else is that of the first line of its table.
Fake devices share the cores of a CPU: their line shows what spreading itself costs.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

from experiments.throughput import inputs
from experiments.throughput.run import child, needed, result


class Setting(NamedTuple):
    """What a run is made of.

    Attributes:
      row_tokens: T.
      vocab: ids of the tokenizer.
      layers: of the model.
      width: of the model.
      devices: of the mesh.
    """

    row_tokens: int = 1024
    vocab: int = 4096
    layers: int = 4
    width: int = 256
    devices: int = 1


AXES = {
    "row_tokens": (1024, 2048, 4096),
    "vocab": (4096, 8192, 16_384),
    "width": (256, 512),
    "layers": (4, 8),
    "devices": (1, 2, 4),
}
HEAD = "| pairs/s | of the matmul peak | peak GB |\n|---|---|---|---|\n"


def main(argv: list[str] | None = None) -> None:
    """Runs every setting once and prints a table for each axis."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="hh-rlhf's .jsonl.gz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=32, help="of a step")
    args = parser.parse_args(argv)
    rows = inputs.sample(inputs.read_pairs(args.data), args.steps * args.pairs)
    found: dict[Setting, str] = {}
    for axis, values in AXES.items():
        sys.stdout.write(f"\n| {axis} {HEAD}")
        for value in values:
            setting = Setting()._replace(**{axis: value})
            if setting not in found:
                found[setting] = measure(setting, rows, args)
            sys.stdout.write(f"| {value:,} | {found[setting]} |\n")
            sys.stdout.flush()


def measure(
    setting: Setting, rows: list[dict[str, str]], args: argparse.Namespace
) -> str:
    """Trains with a setting; returns its cells of a table."""
    folder = args.out / "_".join(map(str, setting[1:4]))
    inputs.write_folder(
        folder,
        rows,
        len(rows),
        layers=setting.layers,
        width=setting.width,
        vocab=setting.vocab,
    )
    flags = [
        f"--folder={folder}",
        f"--steps={args.steps}",
        f"--pairs={args.pairs}",
        f"--row_tokens={setting.row_tokens}",
        "--layout=prefix_shared",
        "--reference=cached",
    ]
    found = child("ours_side", flags, DPO_JAX_CPU_DEVICES=str(setting.devices))
    took = result("", found)
    share = needed(found).seconds / took.seconds
    rate = args.pairs / took.seconds
    return f"{rate:.2f} | {share:.1%} | {took.peak_bytes / 1e9:.2f}"


if __name__ == "__main__":
    main()
