"""Draws every loss of the table on one page: formula, curve, pull and map."""

import argparse
import sys
from collections.abc import Sequence

import jax

from dpo_jax.cli.own_functions import losses_of
from dpo_jax.losses import LOSSES, LossTable, find
from experiments.loss_gallery import curves, page

GROUPS = {  # (record a loss takes, whether it needs a reference) -> heading
    ("pairs", True): "Pairs with a reference",
    ("pairs", False): "Pairs without a reference",
    ("singles", True): "Single responses and lists",
    ("lists", True): "Single responses and lists",
    ("scores", False): "Reward model",
}


def loss_entries(table: LossTable = LOSSES) -> list[page.Entry]:
    """Evaluates every loss of the table."""
    losses = {name: find(name, table) for name in table}
    return [
        page.Entry(
            name,
            GROUPS[loss.takes, loss.reference],
            loss.formula,
            loss.source,
            curves.curve(name, table),
        )
        for name, loss in losses.items()
    ]


def main(arguments: Sequence[str]) -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="losses.html", help="the file to write")
    parser.add_argument("--losses", default="", help="a file, as `train` takes it")
    jax.config.update("jax_platforms", "cpu")  # takes no accelerator for curves
    given = parser.parse_args(arguments)
    page.write_explorer(loss_entries(losses_of(given.losses)), given.out)
    print(given.out)


if __name__ == "__main__":
    main(sys.argv[1:])
