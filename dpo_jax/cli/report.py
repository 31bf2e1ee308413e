"""`report`: one self-contained page of one or more runs, or of the losses."""

import sys
from collections.abc import Sequence

from absl import flags

from dpo_jax.cli import common
from dpo_jax.errors import ConfigError


def main(arguments: Sequence[str]) -> int:
    """Runs the verb; returns the exit code."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string(
            "out", "report.html", "the file to write", flag_values=values
        )
        flags.DEFINE_string(
            "losses",
            None,
            "instead of runs: draw the losses of the table, and those of this file",
            flag_values=values,
        )

    folders = [a for a in arguments if not a.startswith("-")]
    switches = [a for a in arguments if a.startswith("-")]
    values = common.parse(switches, config=False, define=define)
    out, file = values["out"].value, values["losses"].value
    if file is not None:
        _draw_losses(file, folders, out)
    elif folders:
        from dpo_jax.report import html

        html.write_report(folders, out)
    else:
        raise ConfigError("report needs at least one run folder: report RUN [RUN …]")
    sys.stdout.write(f"{out}\n")
    return 0


def _draw_losses(file: str, folders: Sequence[str], out: str) -> None:
    """Writes the page of the losses, those of a file among them ('' = none)."""
    if folders:
        named = " ".join(folders)
        raise ConfigError(f"report draws runs or --losses, not both: {named} is a run")
    import jax

    jax.config.update("jax_platforms", "cpu")  # takes no accelerator for curves
    from dpo_jax import gallery
    from dpo_jax.cli.own_functions import losses_of

    gallery.page.write_explorer(gallery.loss_entries(losses_of(file)), out)
