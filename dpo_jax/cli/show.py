"""`show`: a row as the model sees it."""

import sys
from collections.abc import Sequence

from absl import flags

from dpo_jax.cli import common
from dpo_jax.errors import ConfigError


def main(arguments: Sequence[str]) -> int:
    """Runs the verb; returns the exit code."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_integer("index", 0, "row of data.train", flag_values=values)
        flags.DEFINE_bool(
            "explain",
            False,
            "log-prob of every scored token, the sums, and the loss",
            flag_values=values,
        )
        flags.DEFINE_string(
            "workdir", "", "a run: its policy, and its config", flag_values=values
        )

    values = common.parse(arguments, config=True, define=define)
    config, index = values["config"].value, values["index"].value
    common.setup_jax(config, debug=values["debug"].value)
    from dpo_jax import inspection

    row = inspection.tokenized(config, index)
    sys.stdout.write(inspection.as_text(row))
    if values["explain"].value:
        workdir = values["workdir"].value or None
        explained = inspection.explain(config, row.record, row.tokenizer, workdir)
        told = inspection.explained_as_text(
            row, explained, objective=config.objective, loss=config.loss
        )
        sys.stdout.write(told)
    elif values["workdir"].value and common.names_config(arguments):
        raise ConfigError("--workdir is not used without --explain")
    return 0
