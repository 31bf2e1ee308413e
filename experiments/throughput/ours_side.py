"""Trains with this project and says what it took, as JSON on the last line.

Run by `run.py`, in a process of its own so that peak memory is that of the training.
"""

import argparse
import json
import resource
import shutil
import sys
from pathlib import Path

from dpo_jax import build
from dpo_jax.cli import common
from dpo_jax.config import Config
from dpo_jax.configs import dpo
from experiments.throughput import inputs


def config(args: argparse.Namespace) -> Config:
    """Configures a run that does what TRL's does."""
    chosen = dpo.get_config("preset=trl")
    chosen.train.steps = args.steps
    chosen.batch.pairs = args.pairs
    chosen.model.path = str(args.folder / "model")
    chosen.model.dtype = args.dtype
    chosen.model.attention = args.attention
    chosen.model.remat = args.remat
    chosen.data.train = str(args.folder / "pairs.jsonl")
    chosen.data.shuffle = False
    chosen.data.layout = args.layout
    chosen.data.max_tokens = inputs.MAX_TOKENS
    chosen.data.max_prompt_tokens = inputs.MAX_TOKENS // 2
    chosen.ref.mode = args.reference
    chosen.loss.beta = inputs.BETA
    chosen.optimizer.lr = inputs.LR
    chosen.optimizer.schedule = "constant"
    chosen.optimizer.clip = inputs.CLIP
    chosen.batch.microbatches = args.microbatches
    chosen.data.row_tokens = args.row_tokens
    chosen.data.row_shapes = args.row_shapes
    return chosen


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds what `config` reads."""
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--pairs", type=int, required=True)
    parser.add_argument("--layout", required=True)
    parser.add_argument("--reference", choices=("live", "cached"), required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--attention", default="xla")
    parser.add_argument("--remat", default="elementwise")
    parser.add_argument("--row_shapes", type=int, default=6)
    parser.add_argument("--microbatches", type=int, default=0, help="0 = chosen")
    parser.add_argument("--row_tokens", type=int, default=0)


def main(argv: list[str] | None = None) -> None:
    """Trains for a few steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_flags(parser)
    args = parser.parse_args(argv)
    chosen = config(args)
    common.setup_jax(chosen, debug=False)
    work = args.folder / f"run_{args.layout}_{args.reference}"
    shutil.rmtree(work, ignore_errors=True)
    build.run(chosen, work)
    lines = map(json.loads, (work / "metrics.jsonl").read_text().splitlines())
    train = [line for line in lines if line["split"] == "train"]
    found = {
        "losses": [line["loss"] for line in train],
        "seconds": [line["step_seconds"] for line in train],
        "tokens": [x["tokens_per_second"] * x["step_seconds"] for x in train],
        "flops_seconds": [x["mfu"] * x["step_seconds"] for x in train],
        "padding": sum(line["padding_fraction"] for line in train) / len(train),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
