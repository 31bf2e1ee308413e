"""Rows, their tokenizer, and the plan of which lie in which step."""

import dataclasses
import datetime
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jax.sharding import Mesh

from dpo_jax.data import loader as loader_lib
from dpo_jax.data import mixture, sources, tokenize
from dpo_jax.data.loader import Loader
from dpo_jax.data.mixture import Sources
from dpo_jax.data.prepare import Prepared
from dpo_jax.data.tokens import fingerprint
from dpo_jax.errors import ConfigError, DataError, UserError
from dpo_jax.files import AnyPath
from dpo_jax.models import attention, files
from dpo_jax.models.spec import DecoderSpec
from dpo_jax.schema import Section
from dpo_jax.sharding import agree, arrays
from dpo_jax.sharding import mesh as mesh_lib
from dpo_jax.train import watchdog
from dpo_jax.types import Batch, Record
from dpo_jax.wiring import reading
from dpo_jax.wiring.microbatches import choose
from dpo_jax.wiring.reading import DataRequest

FOLDER = "token_cache"  # beside the run folder, so that the runs of a sweep share it
MOST_PLANNED = 2**26  # rows of all steps, repeated ones counted again
MOST_STEPS = 2**22  # some 250 bytes each
MOST_EPOCHS = 100_000  # an order each, where there is more than a row
USUAL_ROW = 2**16  # tokens, that few pairs may fill badly
MOSTLY_PADDING = 8  # times the tokens of a microbatch


class Data(NamedTuple):
    """Tokenized records and the account of them.

    Attributes:
      tokenizer: that made them.
      train: records to train on; [] where none were asked for.
      eval: records to evaluate on; [] without data.eval.
      report: what data.json holds.
      fingerprint: changes with any token of `train`, or their order.
      sources: what the records of each split are made of.
    """

    tokenizer: Any
    train: Sequence[Record]
    eval: Sequence[Record]
    report: dict[str, Any]
    fingerprint: str
    sources: Mapping[str, Sources] = {}

    def sources_of(self, split: str) -> Sources:
        """Returns what the records of a split are made of; of one source, itself."""
        records = {"train": self.train, "eval": self.eval}[split]
        return self.sources.get(split) or Sources(("",), (), (len(records),), (0,))


def load_tokenizer(path: str, model: Section, train: str) -> Any:
    """Loads the tokenizer: of tokenizer.path, the model, or the source itself.

    Args:
      path: `tokenizer.path`.
      model: `config.model`.
      train: `data.train`.

    Raises:
      ConfigError: if none of them has one.
      ModelError: if model.path does not exist, or its tokenizer cannot be used.
    """
    if path:
        return tokenize.load_tokenizer(path)
    if model["path"]:
        folder = files.resolve(model["path"], model["revision"])
        return tokenize.load_tokenizer(str(folder))
    part = sources.parts_of(train, "data.train")[0]
    if part.source in sources.TOKENIZERS:
        return sources.TOKENIZERS[part.source]()
    raise ConfigError(
        f"model.preset={model['preset']!r} has no tokenizer of its own; give "
        "tokenizer.path"
    )


def launch_time(
    given: Section, tokenizer: Any, *, seconds: float, whose: str = "run"
) -> str:
    """Takes the time of this launch, if a chat template asks for it and none is set.

    Args:
      given: `config.data`.
      tokenizer: of the run or policy.
      seconds: to wait for the first process, whose time all take.
      whose: names it among those of this launch.

    Returns:
      `data.now`; '' where no template asks for it.

    Raises:
      ConfigError: if it is set and nobody asks.
    """
    now = given["now"]
    template = tokenize.read_chat_template(given["chat_template"], tokenizer)
    asks = tokenize.is_dated(template, tokenizer)
    if now and not asks:
        raise ConfigError(
            f"data.now={now!r} is not used: no chat template asks for the date; leave "
            "it at ''"
        )
    if now or not asks:
        return now
    now = datetime.datetime.now().isoformat(timespec="seconds")
    return agree.of_first(f"clock of {whose}", now, seconds=seconds)


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


def load_data(
    request: DataRequest,
    tokenizer: Any,
    workdir: AnyPath | None = None,
    splits: Sequence[str] = ("train", "eval"),
) -> Data:
    """Loads the training and evaluation rows.

    Args:
      request: of the run.
      tokenizer: from `load_tokenizer`.
      workdir: the run folder; None = tokens are kept in data.cache_dir or nowhere.
      splits: those that are read, where the configuration names them.

    Raises:
      DataError: if a source or row is bad.
    """
    given = request.data
    folder = folder_beside(workdir, FOLDER, given["cache_dir"])
    names = {split: given[split] for split in splits if given[split]}
    if not names:
        raise ConfigError("data.eval is empty: there is nothing to evaluate")
    read: dict[str, Prepared] = {}
    made_of: dict[str, Sources] = {}
    for split in names:
        found = reading.sources_of(request, split, tokenizer)
        parts = {n: reading.load(each, tokenizer, folder) for n, each in found.items()}
        weights = [each.weight for each in found.values() if each.weight is not None]
        read[split], made_of[split] = mixture.together(parts, weights)
    if given["disjoint"] and len(read) > 1:
        read["train"], made_of["train"] = disjoint(
            read["train"], read["eval"], made_of["train"], batch=request.batch
        )
    kept = {split: each.records for split, each in read.items()}
    return Data(
        tokenizer,
        kept.get("train", []),
        kept.get("eval", []),
        {split: {"source": names[split], **read[split].report} for split in read},
        read["train"].fingerprint if "train" in read else "",
        made_of,
    )


def disjoint(
    train: Prepared, held_out: Prepared, made_of: Sources, *, batch: int
) -> tuple[Prepared, Sources]:
    """Leaves rows of training out whose prompt stands in the evaluation set.

    Args:
      train: rows to train on.
      held_out: to evaluate on.
      made_of: the sources of `train`.
      batch: rows that must be left.

    Returns:
      The others, with the account of them, and their sources.

    Raises:
      DataError: if they fill no batch.
    """
    known = set(held_out.records.prompts())
    prompts = train.records.prompts()
    kept = np.fromiter((each not in known for each in prompts), bool, len(prompts))
    left_out, left = int((~kept).sum()), int(kept.sum())
    if left < batch:
        raise DataError(
            f"data.disjoint leaves {left} of {len(kept)} rows of data.train, less than "
            f"batch.pairs={batch}: the prompts of the others stand in data.eval; give "
            "fewer rows to data.eval"
        )
    records = train.records.only(kept)
    owners = np.searchsorted(made_of.starts, records.indices, side="right") - 1
    sizes = np.bincount(owners, minlength=len(made_of.sizes)).tolist()
    report = {
        **train.report,
        "kept": left,
        "held_out": left_out,
        "summary": f"{train.report['summary']}; {left_out} rows with "
        "prompts of data.eval left out",
    }
    told = Prepared(records, report, fingerprint(records))
    return told, made_of._replace(sizes=tuple(sizes))


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
    orders = passes if records > 1 else 1
    if whole > MOST_STEPS or planned > MOST_PLANNED or orders > MOST_EPOCHS:
        raise ConfigError(
            f"train.steps={steps}, train.epochs={epochs:g}, batch.pairs={pairs} make "
            f"{whole:.4g} steps, {passes:.4g} passes over {records} rows; at most "
            f"{MOST_STEPS} steps, {MOST_PLANNED} rows and {MOST_EPOCHS} passes are "
            "planned: lower one"
        )
    if whole < 1:
        raise ConfigError(
            f"train.epochs={epochs} of {records} rows fill no batch of "
            f"batch.pairs={pairs}"
        )
    return whole


def settings_of(
    request: DataRequest, spec: DecoderSpec, mesh: Mesh, model: Section
) -> loader_lib.Settings:
    """Says how the rows of a step are laid out; arguments are those of `make_loaders`.

    A microbatch is the whole step.
    """
    given = request.data
    picked = attention.resolve(
        model["attention"], dtype=model["dtype"], softcap=spec.attn_softcap
    )
    return loader_lib.Settings(
        pairs=request.batch,
        microbatches=1,
        layout=given["layout"],
        row_tokens=given["row_tokens"],
        shards=mesh_lib.row_shards(mesh),
        even_tokens=spec.even_tokens if picked in attention.WHOLE_ROWS else math.inf,
        rows_here=functools.partial(arrays.rows_here, arrays.row_sharding(mesh)),
        row_shapes=given["row_shapes"],
    )


def make_loaders(
    request: DataRequest,
    data: Data,
    spec: DecoderSpec,
    mesh: Mesh,
    steps: int,
    join: loader_lib.Join | None = None,
    *,
    model: Section,
    microbatches: int,
) -> tuple[Loader, Loader | None]:
    """Plans the training steps, and the evaluation that takes each record once.

    Args:
      request: that the records answer.
      data: the records.
      spec: of the policy.
      mesh: of the run.
      steps: of training.
      join: see `Loader`; evaluation joins its whole set at once, so that its numbers do
        not depend on how it is cut into batches.
      model: `config.model`.
      microbatches: of a step; 0 = chosen so that activations stay small.
    """
    settings, pairs = settings_of(request, spec, mesh, model), request.batch
    rows = data.train or data.eval  # where only the latter were asked for
    order = mixture.train_steps(
        data.sources_of("train" if data.train else "eval"),
        pairs=pairs,
        steps=steps,
        seed=request.seed,
        shuffle=request.data["shuffle"],
    )

    @functools.cache
    def plan(number: int) -> Loader:
        many = dataclasses.replace(settings, microbatches=number)
        return Loader(rows, order, many, join)

    if microbatches:
        train = plan(microbatches)
    else:
        train = choose(
            spec,
            plan,
            mesh,
            pairs=pairs,
            remat=model["remat"],
            dtype=model["dtype"],
            chunk=model["logits_chunk"],
        )
    check_width(train)
    if not data.eval:
        return train, None
    # no more at a time than a microbatch of training holds
    size = -(-pairs // train.microbatches)
    order = mixture.eval_steps(data.sources_of("eval"), pairs=size)
    held_out = data.eval if join is None else join(data.eval)
    return train, Loader(held_out, order, settings)


def check_width(loads: Loader) -> None:
    """Checks that rows are not so long that nearly all of them is padding.

    Raises:
      ConfigError: if they are, and longer than `USUAL_ROW`.
    """
    most = max(USUAL_ROW, MOSTLY_PADDING * loads.most_tokens)
    if loads.row_tokens > most:
        raise ConfigError(
            f"data.row_tokens={loads.row_tokens}, but a microbatch has "
            f"{loads.most_tokens} tokens at most; use {most} at most, or 0"
        )


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
