"""Compiles a run's step for TPUs that are not there: bytes, seconds, collectives.

    python experiments/throughput/compile_for_tpu.py --topology=v5e:2x2 [--model=NAME]

Needs `pip install libtpu` beside dpo_jax, on Linux x86, and no TPU. Without `--config`
it takes `configs/dpo.py` with prefix-shared rows, splash attention, bfloat16, layers
computed again in the backward pass, and parameters spread over all chips; any
`--config.KEY=VALUE` overrides that.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # to run from a checkout that is not installed

from dpo_jax.cli import common  # noqa: E402
from dpo_jax.config import Config  # noqa: E402
from dpo_jax.errors import ConfigError, UserError, unknown  # noqa: E402

ENVIRONMENT = {  # libtpu without a TPU, and seconds that no cache shortens
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several may compile at once
    "DPO_JAX_COMPILE_CACHE": "",
}
DEFAULTS = (
    f"--config={ROOT / 'configs' / 'dpo.py'}",
    "--config.model.attention=splash",
    "--config.model.dtype=bfloat16",
    "--config.model.remat=block",
    "--config.mesh.data=1",
    "--config.mesh.fsdp=-1",
)
DEFAULT_MODEL = "llama-3.2-1b"
TINY_VOCAB = 5003
MIB = 2**20


def define(values: flags.FlagValues) -> None:
    """Adds the flags."""
    add = flags.DEFINE_string
    add("topology", "v5e:2x2", "as libtpu names it", flag_values=values)
    what = f"tiny, or a key of shapes.SHAPES; '' = model.path, or {DEFAULT_MODEL}"
    add("model", "", what, flag_values=values)
    count = flags.DEFINE_integer
    count("row_tokens", 4096, "tokens of a row", flag_values=values)
    count("rows", 1, "of a microbatch, on each shard", flag_values=values)
    count("pairs", 16, "of a row; half its tokens are scored", flag_values=values)


def find_spec(name: str, config: Config, tokens: int) -> tuple[Path | None, Any]:
    """Returns the folder and the spec of a named model, or of `model.path`.

    Raises:
      UserError: if there is no such model.
    """
    import dataclasses

    from dpo_jax.models import files, hf, spec
    from experiments.throughput import shapes

    if not name and config.model.path:
        folder = files.resolve(config.model.path, config.model.revision)
        return folder, hf.spec_of(files.read_config(folder))
    name = name or DEFAULT_MODEL
    if name == "tiny":
        return None, spec.preset("tiny", vocab=TINY_VOCAB, max_positions=tokens)
    if name not in shapes.SHAPES:
        raise ConfigError(unknown("model", name, ["tiny", *shapes.SHAPES]))
    found = shapes.spec_of(name)
    longest = max(tokens, found.max_positions)
    return None, dataclasses.replace(found, max_positions=longest)


def table(programs: Sequence[Any]) -> str:
    """Renders programs as aligned text, in MiB of one device."""
    columns = ("arguments", "temporaries", "outputs", "aliased", "code", "peak")
    head = "".join(f"{name:>13}" for name in (*columns, "seconds"))
    lines = [f"{'MiB a device':<14}{head}  collectives"]
    for program in programs:
        sizes = (
            program.arguments,
            program.temporaries,
            program.outputs,
            program.aliased,
            program.code,
            program.peak,
        )
        cells = "".join(f"{size / MIB:13,.1f}" for size in sizes)
        kinds = ", ".join(f"{n} {kind}" for kind, n in program.collectives.items())
        lines.append(f"{program.name:<14}{cells}{program.seconds:13.1f}  {kinds}")
    return "\n".join(lines)


def run(arguments: Sequence[str]) -> str:
    """Compiles what the flags ask for; returns what to print.

    Raises:
      UserError: what a user can mend.
    """
    named = any(word.lstrip("-").split("=")[0] == "config" for word in arguments)
    words = [*(() if named else DEFAULTS), *arguments]
    values = common.parse(words, config=True, define=define)
    config = values["config"].value
    common.setup_jax(config, debug=values["debug"].value)

    from dpo_jax.data.layouts import Shape
    from dpo_jax.losses import LOSSES
    from dpo_jax.sharding.mesh import make_mesh, row_shards
    from dpo_jax.wiring import compiling, objective

    topology, tokens = values["topology"].value, values["row_tokens"].value
    mesh = make_mesh(**config.mesh, devices=compiling.tpus(topology))
    folder, spec = find_spec(values["model"].value, config, tokens)
    pairs = values["pairs"].value
    shape = Shape(
        rows=values["rows"].value * row_shards(mesh),
        tokens=tokens,
        scored=tokens // 2,
        slots=2 * pairs,
        comparisons=pairs,
    )
    losses = objective.losses_of(config.loss, LOSSES)
    steps = config.train.steps or 1000
    found = compiling.compile_run(
        config, losses, folder, spec, shape, mesh, steps=steps
    )
    sizes = " × ".join(f"{axis} {n}" for axis, n in mesh.shape.items())
    kind = mesh.devices.flat[0].device_kind
    return "\n".join(
        [
            f"{topology}: {mesh.size} × {kind}, mesh {sizes}",
            f"{spec.layers} layers of width {spec.width}, {spec.heads} heads of "
            f"{spec.head_dim}, {spec.vocab} ids; {config.model.dtype}, attention "
            f"{config.model.attention}, {config.data.layout}; {shape.rows} rows of "
            f"{tokens} tokens, {config.batch.microbatches} microbatches",
            table(found),
        ]
    )


def main() -> int:
    """Prints the table, or what is wrong; returns the exit code."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        sys.stdout.write(run(sys.argv[1:]) + "\n")
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
