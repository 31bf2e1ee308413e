"""Ours, the paper's and z of table 1, of what is there.

python -m experiments.table1_ood.table --tier=quick --out=runs/table1/quick
"""

import argparse
import sys
from pathlib import Path

from experiments import judged
from experiments.table1_ood.sweep import FIGURE

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tier", choices=FIGURE.tiers, default="quick")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tier")
    given = parser.parse_args()
    sys.stdout.write(judged.table(FIGURE, given.tier, given.out))
