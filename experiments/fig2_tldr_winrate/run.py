"""Figure 2 (right), by one command.

    python -m experiments.fig2_tldr_winrate.run --tier=quick --out=runs/fig2/quick

`--dry_run` prints the commands; `--judge=MODEL@URL` adds a served judge.
"""

import sys

from experiments import judged
from experiments.fig2_tldr_winrate.sweep import FIGURE

if __name__ == "__main__":
    sys.exit(judged.main(FIGURE, sys.argv[1:]))
