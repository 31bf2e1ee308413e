"""Rows, their tokenizer, and the plan of which lie in which step."""

import dataclasses
import datetime
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath
from jax.sharding import Mesh

from dpo_jax import config as config_lib
from dpo_jax.config import Config
from dpo_jax.data import loader as loader_lib
from dpo_jax.data import prepare, records, sources, token_cache, tokenize
from dpo_jax.data.loader import Loader
from dpo_jax.data.prepare import Prepared, Source
from dpo_jax.data.sources import Origin
from dpo_jax.data.sources.mapping import ColumnMap
from dpo_jax.errors import ConfigError, DataError, UserError
from dpo_jax.files import AnyPath
from dpo_jax.models import attention, files
from dpo_jax.models.spec import DecoderSpec
from dpo_jax.objectives import OBJECTIVES
from dpo_jax.sharding import agree, arrays
from dpo_jax.sharding import mesh as mesh_lib
from dpo_jax.train import watchdog
from dpo_jax.types import Batch, Record
from dpo_jax.wiring import microbatches

FOLDER = "token_cache"  # beside the run folder, so that the runs of a sweep share it
EVAL_SEED = 0
MOST_PLANNED = 2**26  # rows of all steps, repeated ones counted again
MOST_EPOCHS = 100_000


class Data(NamedTuple):
    """Tokenized records and the account of them.

    Attributes:
      tokenizer: that made them.
      train: records to train on; [] where none were asked for.
      eval: records to evaluate on; [] without data.eval.
      report: what data.json holds.
      fingerprint: changes with any token of `train`, or their order.
    """

    tokenizer: Any
    train: Sequence[Record]
    eval: Sequence[Record]
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
    part = sources.parts_of(config.data.train, "data.train")[0]
    if part.source in sources.TOKENIZERS:
        return sources.TOKENIZERS[part.source]()
    raise ConfigError(
        f"model.preset={config.model.preset!r} has no tokenizer of its own; give "
        "tokenizer.path"
    )


def with_clock(config: Config, tokenizer: Any, whose: str = "run") -> Config:
    """States the time of this launch, if a chat template asks for it and none is set.

    Args:
      config: of the run or policy.
      tokenizer: of it.
      whose: names it among those of this launch; all processes take the time of the
        first.

    Returns:
      The configuration with `data.now`; '' there where no template asks for it.

    Raises:
      ConfigError: if it is set and nobody asks.
    """
    now = config.data.now
    template = tokenize.read_chat_template(config.data.chat_template, tokenizer)
    asks = tokenize.is_dated(template, tokenizer)
    if now and not asks:
        raise ConfigError(
            f"data.now={now!r} is not used: no chat template asks for the date; leave "
            "it at ''"
        )
    if now or not asks:
        return config
    now = datetime.datetime.now().isoformat(timespec="seconds")
    seconds = config.distributed.timeout_seconds
    now = agree.of_first(f"clock of {whose}", now, seconds=seconds)
    return config_lib.stated(config, {"data.now": now})


def origin_of(section: Config, split: str) -> Origin:
    """Finds the source of a split.

    Args:
      section: `config.data`.
      split: `train` or `eval`.
    """
    field = f"data.{split}"
    part, *more = sources.parts_of(section[split], field)
    if more:
        raise ConfigError(f"{field}={section[split]!r} names several sources")
    columns = ColumnMap(**section.columns.to_dict())
    path = section.path if sources.name_of(part.source) else ""
    return sources.find(part, split, path=path, columns=columns)


def text_of(tokenizer: Any, ids: list[int]) -> str:
    """Decodes token ids of GPT-2; DataError if the tokenizer is another."""
    if tokenizer.convert_ids_to_tokens([262]) != ["Ġthe"]:
        raise DataError(
            "the data hold token ids of GPT-2, which this tokenizer cannot decode; use "
            "a model with GPT-2's tokenizer"
        )
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def source(
    config: Config,
    split: str,
    tokenizer: Any,
    on_bad_row: str = "",
    *,
    reads_ratings: bool = True,
) -> tuple[Source, dict[str, Any]]:
    """Finds how the rows of a split become records, and the settings that say so.

    A value of `on_bad_row` counts before that of the configuration; `reads_ratings` as
    in `records.Reading`.

    Generated rows of `train` follow data.seed; those of `eval` follow no seed, so that
    all runs are evaluated on the same.
    """
    section, kind = config.data, OBJECTIVES[config.objective].rows
    origin, on_bad_row = origin_of(section, split), on_bad_row or section.on_bad_row
    generated = origin.part.source in sources.GENERATED
    seed = order_seed(config.seed, section.seed)
    reading = {
        "split": split,
        "kind": kind,
        "seed": seed if split == "train" else EVAL_SEED,
        "rows": section.limit if split == "train" else config.eval.limit,
        "labels": section.labels if generated else "",
    }
    checking = {
        "kind": kind,
        "format": origin.published.format or section.format,
        "on_bad_row": on_bad_row,
        "drops": origin.drops,
        "reads_ratings": reads_ratings,
        "scored": section.scored,
    }
    tokenizing = {
        "join": section.join,
        "chat_template": tokenize.read_chat_template(section.chat_template, tokenizer),
        "now": section.now,
        "max_tokens": section.max_tokens,
        "max_prompt_tokens": section.max_prompt_tokens,
        "truncate_prompt": section.truncate_prompt,
        "truncate_response": section.truncate_response,
        "on_bad_row": on_bad_row,
        "drops": origin.drops,
    }
    read = functools.partial(
        sources.read,
        origin,
        sources.Request(**reading),
        functools.partial(text_of, tokenizer),
    )
    made = Source(
        read,
        functools.partial(records.Reading, **checking),
        functools.partial(tokenize.tokenize, tokenizer=tokenizer, **tokenizing),
        apart=kind == "singles",
    )
    return made, {"origin": origin, **reading, **checking, **tokenizing}


def load_split(
    how: Source,
    settings: dict[str, Any],
    tokenizer: Any,
    folder: epath.Path | None,
) -> Prepared:
    """Reads and tokenizes the rows of a split, or takes their tokens from the cache.

    Args:
      how: from `source`.
      settings: likewise.
      tokenizer: that it was made with.
      folder: of the cache; None = tokens are not kept.

    Raises:
      DataError: if a source or row is bad.
    """
    make = functools.partial(prepare.prepare, how)
    origin: Origin = settings.pop("origin")
    read = sources.files_of(origin)
    if folder is None or read is None:
        return make()
    part = origin.part._replace(source=origin.name)  # files count by what they hold
    if origin.part.source in sources.GENERATED:
        part = origin.part
    settings |= {"part": part, "words": origin.words, "columns": origin.columns}
    kept = token_cache.name_of(settings, read, tokenizer)
    return make() if kept is None else token_cache.kept(folder, kept, make)


def folder_beside(
    workdir: AnyPath | None, name: str, instead: str
) -> epath.Path | None:
    """Finds a folder that the runs of a sweep share: beside their run folders.

    Args:
      workdir: of the run; None = there is none.
      name: of the folder.
      instead: the folder that the user named; '' = none.
    """
    if instead:
        return epath.Path(instead)
    return None if workdir is None else epath.Path(workdir).parent / name


def order_seed(seed: int, own: int) -> int:
    """Returns the seed of the order of the training data: its own, if it is ≥ 0."""
    return seed if own < 0 else own


def load_data(
    config: Config,
    tokenizer: Any,
    workdir: AnyPath | None = None,
    splits: Sequence[str] = ("train", "eval"),
    *,
    reads_ratings: bool = True,
) -> Data:
    """Loads the training and evaluation rows.

    Args:
      config: of the run.
      tokenizer: from `load_tokenizer`.
      workdir: the run folder; None = tokens are kept in data.cache_dir or nowhere.
      splits: those that are read, where the configuration names them.
      reads_ratings: whether a loss does.

    Raises:
      DataError: if a source or row is bad.
    """
    folder = folder_beside(workdir, FOLDER, config.data.cache_dir)
    names = {split: config.data[split] for split in splits if config.data[split]}
    if not names:
        raise ConfigError("data.eval is empty: there is nothing to evaluate")
    find = functools.partial(source, config, reads_ratings=reads_ratings)
    read = {
        split: load_split(*find(split=split, tokenizer=tokenizer), tokenizer, folder)
        for split in names
    }
    kept = {split: each.records for split, each in read.items()}
    return Data(
        tokenizer,
        kept.get("train", []),
        kept.get("eval", []),
        {split: {"source": names[split], **read[split].report} for split in read},
        read["train"].fingerprint if "train" in read else "",
    )


def rows_kept(account: Mapping[str, Any]) -> int:
    """Counts the records of a split from what data.json says of it."""
    return sum(account.get("labels", {}).values()) or account["kept"]


def total_steps(records: int, *, steps: int, epochs: float, pairs: int) -> int:
    """Counts the optimizer steps of a run; a last short batch is not taken.

    Args:
      records: of data.train.
      steps: that the user asks for; 0 = by epochs.
      epochs: over the records.
      pairs: records of a step.

    Raises:
      ConfigError: if they fill no step, or more than can be planned.
    """
    whole = steps or int(epochs * records / pairs)
    planned, passes = whole * pairs, whole * pairs / max(records, 1)
    if planned > MOST_PLANNED or passes > MOST_EPOCHS:
        raise ConfigError(
            f"train.steps={steps}, train.epochs={epochs:g}, batch.pairs={pairs} make "
            f"{whole:.4g} steps, {passes:.4g} passes over {records} rows; at most "
            f"{MOST_PLANNED} rows and {MOST_EPOCHS} passes are planned: lower one"
        )
    if whole < 1:
        raise ConfigError(
            f"train.epochs={epochs} of {records} rows fill no batch of "
            f"batch.pairs={pairs}"
        )
    return whole


def make_loaders(
    config: Config,
    data: Data,
    spec: DecoderSpec,
    mesh: Mesh,
    steps: int,
    join: loader_lib.Join | None = None,
) -> tuple[Loader, Loader | None]:
    """Plans the training steps, and the evaluation that takes each record once.

    Args:
      config: of the run.
      data: its records.
      spec: of the policy.
      mesh: of the run.
      steps: of training.
      join: see `Loader`; evaluation joins its whole set at once, so that its numbers do
        not depend on how it is cut into batches.
    """
    picked = attention.resolve(
        config.model.attention, dtype=config.model.dtype, softcap=spec.attn_softcap
    )
    pairs = config.batch.pairs
    settings = loader_lib.Settings(
        pairs=pairs,
        microbatches=1,
        layout=config.data.layout,
        row_tokens=config.data.row_tokens,
        shards=mesh_lib.row_shards(mesh),
        even_tokens=spec.even_tokens if picked in attention.WHOLE_ROWS else math.inf,
        rows_here=functools.partial(arrays.rows_here, arrays.row_sharding(mesh)),
        row_shapes=config.data.row_shapes,
    )
    rows = data.train or data.eval  # where only the latter were asked for
    order = loader_lib.train_steps(
        len(rows),
        pairs=pairs,
        steps=steps,
        seed=order_seed(config.seed, config.data.seed),
        shuffle=config.data.shuffle,
    )

    @functools.cache
    def plan(number: int) -> Loader:
        many = dataclasses.replace(settings, microbatches=number)
        return Loader(rows, order, many, join)

    if config.batch.microbatches:
        train = plan(config.batch.microbatches)
    else:
        train = microbatches.choose(
            spec,
            plan,
            mesh,
            pairs=pairs,
            remat=config.model.remat,
            dtype=config.model.dtype,
            chunk=config.model.logits_chunk,
        )
    if not data.eval:
        return train, None
    # no more at a time than a microbatch of training holds
    order = loader_lib.eval_steps(len(data.eval), pairs=-(-pairs // train.microbatches))
    held_out = data.eval if join is None else join(data.eval)
    return train, Loader(held_out, order, settings)


def global_batches(loads: Loader, mesh: Mesh, start: int) -> Iterator[Batch]:
    """Yields batches as global arrays, filled ahead by threads.

    Args:
      loads: plans and fills them.
      mesh: of the run.
      start: the first step.

    Raises:
      DataError: naming the step and its rows, if one cannot be made.
    """
    place = arrays.row_sharding(mesh, leading=1)
    batches = loads.iterate(start, threads=2, ahead=4)
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
