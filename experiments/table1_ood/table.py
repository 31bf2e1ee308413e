"""Ours, the paper's and z of table 1, of what is there.

python -m experiments.table1_ood.table --tier=quick --out=runs/table1/quick
"""

from experiments import judged
from experiments.table1_ood.sweep import FIGURE

if __name__ == "__main__":
    judged.print_table(FIGURE, __doc__)
