"""Table 1, by one command.

    python -m experiments.table1_ood.run --tier=quick --out=runs/table1/quick

`--dry_run` prints the commands; `--judge=MODEL@URL` adds a served judge.
"""

import sys

from experiments import judged
from experiments.table1_ood.sweep import FIGURE

if __name__ == "__main__":
    sys.exit(judged.main(FIGURE, sys.argv[1:]))
