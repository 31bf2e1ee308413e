"""`report`: one self-contained page of one or more runs."""

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

    folders = [a for a in arguments if not a.startswith("-")]
    switches = [a for a in arguments if a.startswith("-")]
    values = common.parse(switches, config=False, define=define)
    out = values["out"].value
    if not folders:
        raise ConfigError("report needs at least one run folder: report RUN [RUN …]")
    from dpo_jax.report import html

    html.write_report(folders, out)
    sys.stdout.write(f"{out}\n")
    return 0
