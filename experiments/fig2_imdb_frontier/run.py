"""Figure 2 (left) by one command: the reference, its samples, all trials, the figure.

    python -m experiments.fig2_imdb_frontier.run --tier=quick --out=runs/fig2/quick

What is done stays done: the same command goes on where it was stopped. `--dry_run`
prints the trials and what they draw.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.fig2_imdb_frontier import budget, data, table
from experiments.fig2_imdb_frontier.tiers import HERE, TIERS

FIRST = "dpo.beta=0.1"  # a trial of every tier


def sweep(given: argparse.Namespace, part: str, *more: str) -> int:
    """Runs `dpo_jax sweep` on a part of the trials; returns its exit code.

    Args:
      given: the command line.
      part: of the sweep file.
      *more: flags of the verb.
    """
    arg = f"tier={given.tier},part={part},data={given.out / 'data'}"
    for name in ("reference", "imdb"):
        if value := vars(given)[name]:
            arg += f",{name}={value}"
    command = [sys.executable, "-m", "dpo_jax", "sweep", f"{HERE}/sweep.py:{arg}"]
    command += [f"--out={given.out}", f"--launcher={given.launcher}"]
    return subprocess.run([*command, *more]).returncode


def main(arguments: Sequence[str]) -> int:
    """Runs what is missing of a tier; returns the exit code of the sweep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tier", choices=TIERS, default="quick")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tier")
    parser.add_argument("--reference", default="", help="HF folder to start from")
    parser.add_argument("--imdb", default="", help="a local copy of the reviews")
    parser.add_argument("--launcher", default="local")
    parser.add_argument("--workers", type=int, default=1, help="trials at a time")
    parser.add_argument("--dry_run", action="store_true")
    given = parser.parse_args(arguments)
    tier = TIERS[given.tier]
    if given.dry_run:
        sys.stdout.write(budget.told(tier, budget.RATES.get(given.tier)))
        return sweep(given, "all", "--dry_run")
    if tier.sft and not given.reference:
        if code := sweep(given, "start"):
            return code
    own = str(given.out / "sft" / "export") if tier.sft else tier.reference
    data.make(tier, given.reference or own, given.out / "data", given.imdb)
    if given.workers > 1:  # one trial draws the frontier's samples, for all
        sweep(given, "all", f"--only={FIRST}")
    code = sweep(given, "all", f"--workers={given.workers}")
    if any(given.out.glob("*/frontier.json")):
        table.main([f"--out={given.out}"])
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
