"""Figure 4, by one command.

    python -m experiments.fig4_best_of_n.run --tier=quick --out=runs/fig4/quick

`--dry_run` prints the commands; `--judge=MODEL@URL` adds a served judge.
"""

import sys

from experiments import judged
from experiments.fig4_best_of_n.sweep import FIGURE

if __name__ == "__main__":
    sys.exit(judged.main(FIGURE, sys.argv[1:]))
