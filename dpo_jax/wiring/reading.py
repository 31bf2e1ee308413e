"""How the rows of the sources of a run become records, each by the same settings."""

import functools
from typing import Any, NamedTuple

from etils import epath

from dpo_jax.data import mixture, prepare, records, sources, token_cache, tokenize
from dpo_jax.data.prepare import Prepared, Source
from dpo_jax.data.sources import Origin
from dpo_jax.data.sources.mapping import ColumnMap
from dpo_jax.errors import DataError
from dpo_jax.objectives import OBJECTIVES
from dpo_jax.schema import Config, Section

EVAL_SEED = 0


class Found(NamedTuple):
    """A source that was found and not yet read.

    Attributes:
      source: how its rows become records.
      settings: that say so, by which its tokens are kept.
      origin: where its rows are.
    """

    source: Source
    settings: dict[str, Any]
    origin: Origin

    @property
    def weight(self) -> float | None:
        """Its share of a mixture; None where none was given."""
        return self.origin.part.weight


class DataRequest(NamedTuple):
    """Which rows a run asks for, and how they become records.

    Attributes:
      data: `config.data`.
      kind: of rows, as the objective has it.
      seed: of the order of the training data, and of what is generated for it.
      held_out: rows of data.eval, at most; 0 = all.
      batch: rows of a step, or prompts of a turn.
      reads_ratings: whether a loss does.
    """

    data: Section
    kind: str
    seed: int
    held_out: int
    batch: int
    reads_ratings: bool = True


def request_of(config: Config, *, reads_ratings: bool = True) -> DataRequest:
    """Collects what a configuration asks of its data; see `DataRequest`."""
    kind, data = OBJECTIVES[config.objective].rows, config.data
    seed = config.seed if data.seed < 0 else data.seed
    batch = config.rollout.prompts if kind == "prompts" else config.batch.pairs
    return DataRequest(data, kind, seed, config.eval.limit, batch, reads_ratings)


def origins_of(given: Section, split: str) -> dict[str, Origin]:
    """Finds the sources of a split, in order, by names that are short and differ.

    Args:
      given: `config.data`.
      split: `train` or `eval`.
    """
    parts = sources.parts_of(given[split], f"data.{split}")
    columns = ColumnMap(**given["columns"])
    origins = [
        sources.find(
            part,
            split,
            path=given["path"] if sources.name_of(part.source) else "",
            columns=columns,
        )
        for part in parts
    ]
    return dict(zip(mixture.names_of(parts), origins, strict=True))


def text_of(tokenizer: Any, ids: list[int]) -> str:
    """Decodes token ids of GPT-2; DataError if the tokenizer is another."""
    if tokenizer.convert_ids_to_tokens([262]) != ["Ġthe"]:
        raise DataError(
            "the data hold token ids of GPT-2, which this tokenizer cannot decode; use "
            "a model with GPT-2's tokenizer"
        )
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def sources_of(
    request: DataRequest, split: str, tokenizer: Any, on_bad_row: str = ""
) -> dict[str, Found]:
    """Finds how the rows of a split become records, source by source.

    A value of `on_bad_row` counts before that of the configuration.
    """
    on_bad_row = on_bad_row or request.data["on_bad_row"]
    return {
        name: _found(request, split, tokenizer, origin, on_bad_row)
        for name, origin in origins_of(request.data, split).items()
    }


def _found(
    request: DataRequest, split: str, tokenizer: Any, origin: Origin, on_bad_row: str
) -> Found:
    """Finds how the rows of a source become records.

    Generated rows of `train` follow data.seed; those of `eval` follow no seed, so that
    all runs are evaluated on the same.
    """
    given, kind = request.data, request.kind
    generated = origin.part.source in sources.GENERATED
    template = None  # without a tokenizer nothing is rendered
    if tokenizer is not None:
        template = tokenize.read_chat_template(given["chat_template"], tokenizer)
    reading = {
        "split": split,
        "kind": kind,
        "seed": request.seed if split == "train" else EVAL_SEED,
        "rows": given["limit"] if split == "train" else request.held_out,
        "labels": given["labels"] if generated else "",
    }
    checking = {
        "kind": kind,
        "format": origin.published.format or given["format"],
        "on_bad_row": on_bad_row,
        "drops": origin.drops,
        "reads_ratings": request.reads_ratings,
        "scored": given["scored"],
    }
    tokenizing = {
        "join": given["join"],
        "chat_template": template,
        "now": given["now"],
        "max_tokens": given["max_tokens"],
        "max_prompt_tokens": given["max_prompt_tokens"],
        "truncate_prompt": given["truncate_prompt"],
        "truncate_response": given["truncate_response"],
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
    return Found(made, {**reading, **checking, **tokenizing}, origin)


def load(found: Found, tokenizer: Any, folder: epath.Path | None) -> Prepared:
    """Reads and tokenizes the rows of a source, or takes their tokens from the cache.

    Args:
      found: of `sources_of`.
      tokenizer: that it was made with.
      folder: of the cache; None = tokens are not kept.

    Raises:
      DataError: if a source or row is bad.
    """
    make, origin = functools.partial(prepare.prepare, found.source), found.origin
    read = sources.files_of(origin)
    if folder is None or read is None:
        return make()
    part = origin.part._replace(source=origin.name, weight=None)  # files by their bytes
    if origin.part.source in sources.GENERATED:
        part = part._replace(source=origin.part.source)
    where = {"part": part, "words": origin.words, "columns": origin.columns}
    kept = token_cache.name_of(found.settings | where, read, tokenizer)
    return make() if kept is None else token_cache.kept(folder, kept, make)
