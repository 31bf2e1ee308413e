"""Ours, the paper's and z of figure 3 (left), of what is there.

python -m experiments.fig3_hh_winrate.table --tier=quick --out=runs/fig3/quick
"""

from experiments import judged
from experiments.fig3_hh_winrate.sweep import FIGURE

if __name__ == "__main__":
    judged.print_table(FIGURE, __doc__)
