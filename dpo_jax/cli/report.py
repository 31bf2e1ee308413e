"""`report`: one self-contained page, of one or more runs or of the losses."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from dpo_jax.cli import common
from dpo_jax.errors import ConfigError

if TYPE_CHECKING:
    from dpo_jax.report.explorer import Entry

GROUPS = {  # (record a loss takes, whether it needs a reference) -> heading
    ("pairs", True): "Pairs with a reference",
    ("pairs", False): "Pairs without a reference",
    ("singles", True): "Single responses and lists",
    ("lists", True): "Single responses and lists",
    ("scores", False): "Reward model",
}


def main(arguments: Sequence[str]) -> int:
    """Runs the verb; returns the exit code."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string(
            "out", "report.html", "the file to write", flag_values=values
        )
        flags.DEFINE_bool(
            "losses", False, "explain the losses instead of runs", flag_values=values
        )

    folders = [a for a in arguments if not a.startswith("-")]
    own = [a for a in arguments if a.startswith("-")]
    values = common.parse(own, config=False, define=define)
    out = values["out"].value
    if values["losses"].value:
        if folders:
            raise ConfigError(
                f"--losses explains the losses and reads no run; leave out {folders[0]}"
            )
        explain_losses(out)
    elif folders:
        from dpo_jax.report import html

        html.write_report(folders, out)
    else:
        raise ConfigError(
            "report needs at least one run folder: report RUN [RUN …], or --losses"
        )
    sys.stdout.write(f"{out}\n")
    return 0


def explain_losses(out: str) -> None:
    """Writes the page about the losses."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # takes no accelerator for curves
    from dpo_jax.report import explorer

    explorer.write_explorer(loss_entries(), out)


def loss_entries() -> list["Entry"]:
    """Evaluates every loss of the table."""
    from dpo_jax.losses import LOSSES, curves, find
    from dpo_jax.report import explorer

    rows = {name: find(name, LOSSES) for name in LOSSES}
    return [
        explorer.Entry(
            name,
            GROUPS[row.takes, row.reference],
            row.formula,
            row.source,
            curves.curve(name),
        )
        for name, row in rows.items()
    ]
