"""Rows, their tokenizer, and the plan of which lie in which step."""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from dpo_jax.config import Config
from dpo_jax.data import loader as loader_lib
from dpo_jax.data import prepare, sources, tokenize
from dpo_jax.data.loader import Loader
from dpo_jax.errors import ConfigError, DataError, UserError
from dpo_jax.models import attention, files
from dpo_jax.models.spec import DecoderSpec
from dpo_jax.sharding import arrays, mesh
from dpo_jax.train import watchdog
from dpo_jax.types import Batch, Record

PLAIN = [((), (), (), False), ((), (), ((0, 1),), False)]  # judged by order alone


KINDS = {  # config.objective -> kind of rows
    "preference": "pairs",
    "sft": "completions",
    "unpaired": "singles",
    "ranking": "rankings",
    "reward": "pairs",
}


class Data(NamedTuple):
    """Tokenized records and the account of them.

    Attributes:
      tokenizer: that made them.
      train: records to train on.
      eval: records to evaluate on; [] without data.eval.
      report: what data.json holds.
      fingerprint: changes with any token of `train`, or their order.
    """

    tokenizer: Any
    train: list[Record]
    eval: list[Record]
    report: dict[str, Any]
    fingerprint: str


def load_tokenizer(config: Config) -> Any:
    """Loads the tokenizer: of tokenizer.path, the model, or the source itself.

    Raises:
      ConfigError: if none of them has one.
      ModelError: if model.path does not exist, or its tokenizer cannot be used.
    """
    if config.tokenizer.path:
        return tokenize.load_tokenizer(config.tokenizer.path)
    if config.model.path:
        folder = files.resolve(config.model.path, config.model.revision)
        return tokenize.load_tokenizer(str(folder))
    if config.data.train in sources.TOKENIZERS:
        return sources.TOKENIZERS[config.data.train]()
    raise ConfigError(
        f"model.preset={config.model.preset!r} has no tokenizer of its own; give "
        "tokenizer.path"
    )


def load_data(config: Config, tokenizer: Any) -> Data:
    """Reads and tokenizes the training and evaluation rows.

    Raises:
      DataError: if a source or row is bad.
    """
    section = config.data
    choices = prepare.Options(*(section[name] for name in prepare.Options._fields))
    read = functools.partial(
        prepare.prepare,
        kind=KINDS[config.objective],
        tokenizer=tokenizer,
        seed=config.seed,
        options=choices,
    )
    train = read(section.train, split="train")
    report = {"train": train.report}
    held_out: list[Record] = []
    if section.eval:
        held_out, report["eval"] = read(section.eval, split="eval")
    mark = fingerprint(train.records)
    return Data(tokenizer, train.records, held_out, report, mark)


def fingerprint(records: Sequence[Record]) -> str:
    """Returns 16 hex digits of all ids and judgements, with places and boundaries."""
    digest = hashlib.sha256()
    for record in records:
        lengths = [len(part) for part in (record.prompt, *record.responses)]
        digest.update(np.array([record.index, *lengths], np.int64).tobytes())
        for part in (record.prompt, *record.responses):
            digest.update(np.asarray(part, np.int32).tobytes())
        labels, ratings = (record.response.get(n, ()) for n in ("labels", "ratings"))
        judged = (labels, ratings, record.comparisons, record.ranked)
        if judged not in PLAIN:
            digest.update(repr(judged).encode())
    return digest.hexdigest()[:16]


def total_steps(config: Config, records: int) -> int:
    """Counts the optimizer steps of a run; a last short batch is not taken."""
    if config.train.steps:
        return config.train.steps
    steps = int(config.train.epochs * records / config.batch.pairs)
    if steps < 1:
        raise ConfigError(
            f"train.epochs={config.train.epochs} of {records} rows fill no batch of "
            f"batch.pairs={config.batch.pairs}"
        )
    return steps


def make_loaders(
    config: Config,
    data: Data,
    spec: DecoderSpec,
    built: Mesh,
    steps: int,
    join: loader_lib.Join | None = None,
) -> tuple[Loader, Loader | None]:
    """Plans the training steps, and the evaluation that takes each record once.

    Args:
      config: of the run.
      data: its records.
      spec: of the policy.
      built: the mesh.
      steps: of training.
      join: see `Loader`; of training and evaluation alike.
    """
    picked = attention.resolve(
        config.model.attention, dtype=config.model.dtype, softcap=spec.attn_softcap
    )
    settings = loader_lib.Settings(
        pairs=config.batch.pairs,
        microbatches=config.batch.microbatches,
        layout=config.data.layout,
        row_tokens=config.data.row_tokens,
        shards=mesh.row_shards(built),
        even_tokens=spec.even_tokens if picked in attention.WHOLE_ROWS else math.inf,
        mine=arrays.host_part(built),
        row_shapes=config.data.row_shapes,
    )
    order = loader_lib.train_steps(
        len(data.train),
        pairs=config.batch.pairs,
        steps=steps,
        seed=config.seed,
        shuffle=config.data.shuffle,
    )
    train = Loader(data.train, order, settings, join)
    if not data.eval:
        return train, None
    order = loader_lib.eval_steps(len(data.eval), pairs=config.batch.pairs)
    return train, Loader(
        data.eval, order, dataclasses.replace(settings, microbatches=1), join
    )


def global_batches(
    loads: Loader,
    built: Mesh,
    start: int,
    then: Callable[[Batch], Batch] = loader_lib.as_it_is,
) -> Iterator[Batch]:
    """Yields batches as global arrays, filled ahead by threads.

    Args:
      loads: plans and fills them.
      built: the mesh.
      start: the first step.
      then: what is done to this host's rows first, in the same threads.

    Raises:
      DataError: naming the step and its rows, if one cannot be made.
    """
    place = arrays.row_sharding(built, leading=1)
    batches = loads.iterate(start, threads=2, ahead=4, then=then)
    for step in range(start, len(loads)):
        try:
            batch = next(batches)
        except UserError:
            raise
        except Exception as error:  # whatever reading or laying out a row may raise
            raise DataError(
                f"the batch of step {step + 1} cannot be made "
                f"({type(error).__name__}: {error}); its rows: {loads.ids_at(step)}"
            ) from error
        watchdog.beat()
        yield arrays.to_global(batch, place)
