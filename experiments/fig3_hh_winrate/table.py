"""Ours, the paper's and z of figure 3 (left), of what is there.

python -m experiments.fig3_hh_winrate.table --tier=quick --out=runs/fig3/quick
"""

import argparse
import sys
from pathlib import Path

from experiments import judged
from experiments.fig3_hh_winrate.sweep import FIGURE

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tier", choices=FIGURE.tiers, default="quick")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tier")
    given = parser.parse_args()
    sys.stdout.write(judged.table(FIGURE, given.tier, given.out))
