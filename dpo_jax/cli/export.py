"""`export`: writes a run's policy as a Hugging Face folder."""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from dpo_jax.cli import common


def main(arguments: Sequence[str]) -> int:
    """Runs the verb; returns the exit code."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("workdir", "", "the run folder", flag_values=values)
        flags.DEFINE_string("out", "", "the folder to write", flag_values=values)
        flags.DEFINE_string(
            "dtype", "float32", "of the weights written", flag_values=values
        )
        flags.DEFINE_bool(
            "overwrite", False, "replace what lies in --out", flag_values=values
        )
        flags.DEFINE_bool(
            "merged",
            False,
            "of a LoRA run: the whole model, not the adapter",
            flag_values=values,
        )
        flags.DEFINE_string(
            "push", "", "owner/name on the hub to upload to", flag_values=values
        )

    values = common.parse(arguments, config=False, define=define)
    workdir = common.required(values, "workdir")
    out = common.required(values, "out")
    common.setup_logging()
    from dpo_jax import build
    from dpo_jax.wiring import exporting, restoring

    common.setup_jax(restoring.run_config(workdir), debug=values["debug"].value)
    dtype, overwrite = values["dtype"].value, values["overwrite"].value
    merged = values["merged"].value
    build.export_run(workdir, out, dtype=dtype, overwrite=overwrite, merged=merged)
    if not common.is_first():
        return 0
    sys.stdout.write(f"{out}\n")
    if values["push"].value:
        address = exporting.push(Path(out), values["push"].value)
        sys.stdout.write(f"{address}\n")
    return 0
