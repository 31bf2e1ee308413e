"""`evaluate`: evaluates the newest checkpoint of a run."""

import json
import sys
from collections.abc import Sequence

from absl import flags

from dpo_jax import files
from dpo_jax.cli import common
from dpo_jax.cli.train import results_text, values_text


def main(arguments: Sequence[str]) -> int:
    """Runs the verb; returns the exit code."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("workdir", "", "the run folder", flag_values=values)
        common.define_own(values, "losses", "rewards")
        flags.DEFINE_string("out", "", "a JSON file to write", flag_values=values)

    values = common.parse(arguments, config=True, define=define)
    workdir = common.required(values, "workdir")
    config = values["config"].value
    common.setup_logging()
    common.setup_jax(config, debug=values["debug"].value)
    from dpo_jax import build
    from dpo_jax.cli.own_functions import losses_of, rewards_of

    losses = losses_of(values["losses"].value)
    rewards = rewards_of(values["rewards"].value)
    summary = build.evaluate(config, workdir, losses=losses, rewards=rewards)
    if not common.is_first():
        return 0
    lines = [f"step {summary.step} of {workdir}", *values_text(summary.values)]
    sys.stdout.write("\n".join(lines + results_text(summary.results)) + "\n")
    if values["out"].value:
        ended = {"step": summary.step, "values": summary.values, **summary.results}
        files.write_whole(values["out"].value, json.dumps(ended, indent=1) + "\n")
    return 0
