"""The kinds of inputs."""

from collections.abc import Callable
from pathlib import Path
from random import Random

import fuzz_doors as doors
import fuzz_files as files
import fuzz_models as models
import fuzz_places as places
import fuzz_rows as rows
import fuzz_runs as runs
from fuzz_cases import Base, Case

KINDS: dict[str, Callable[[Random, Base, Path], Case]] = {
    "rows": rows.texts,
    "rows alike": rows.rows_alike,
    "parquet": rows.parquet,
    "parquet alike": rows.parquet_alike,
    "bomb": rows.bomb,
    "columns": rows.columns,
    "template": rows.template,
    "prompts": rows.prompts,
    "config.json": models.config,
    "config.json alike": models.config_alike,
    "weights": models.weights,
    "tokenizer": models.tokenizer,
    "checkpoint": runs.checkpoint,
    "run folder": runs.run_folder,
    "override": runs.override,
    "combination": runs.combination,
    "flag": runs.flag,
    "losses": runs.losses,
    "environment": doors.environment,
    "remote": doors.remote,
    "on policy": doors.on_policy,
    "config file": doors.config_file,
    "rewards": doors.rewards,
    "tokenizer parts": files.tokenizer_parts,
    "header": files.header,
    "table": files.table,
    "turn": files.turn,
    "beside": places.beside,
    "encoding": places.encoding,
    "every key": places.every_key,
    "edited": places.edited,
    "place": places.place,
    "tables": places.tables,
}
