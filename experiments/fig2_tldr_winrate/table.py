"""Ours, the paper's and z of figure 2 (right), of what is there.

python -m experiments.fig2_tldr_winrate.table --tier=quick --out=runs/fig2/quick
"""

from experiments import judged
from experiments.fig2_tldr_winrate.sweep import FIGURE

if __name__ == "__main__":
    judged.print_table(FIGURE, __doc__)
