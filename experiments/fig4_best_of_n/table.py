"""Ours, the paper's and z of figure 4, of what is there.

python -m experiments.fig4_best_of_n.table --tier=quick --out=runs/fig4/quick
"""

from experiments import judged
from experiments.fig4_best_of_n.sweep import FIGURE

if __name__ == "__main__":
    judged.print_table(FIGURE, __doc__)
