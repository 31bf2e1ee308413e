"""From a source's name to tokenized records, with an account of every row."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from dpo_jax.data import records, sources, tokenize
from dpo_jax.types import Record


class Options(NamedTuple):
    """The keys of the `data` section that say how rows become tokens."""

    path: str
    limit: int
    labels: str
    format: str
    chat_template: str
    join: str
    max_tokens: int
    max_prompt_tokens: int
    truncate_prompt: str
    truncate_response: str
    on_bad_row: str


class Prepared(NamedTuple):
    """Records of a split, and what data.json says of it."""

    records: list[Record]
    report: dict[str, Any]


def prepare(
    name: str,
    *,
    split: str,
    kind: str,
    tokenizer: Any,
    seed: int,
    options: Options,
) -> Prepared:
    """Reads, checks, tokenizes and cuts the rows of a source.

    Args:
      name: a file, a folder, a hub id or a source's name.
      split: `train` or `eval`.
      kind: `pairs`, `completions`, `singles` or `rankings`; see `records.validate`.
        As singles, a pair is cut as a pair, then taken apart into two records.
      tokenizer: as `tokenize.load_tokenizer` returns.
      seed: of a generated source.
      options: the `data` section.

    Raises:
      DataError: if the source or a row is bad (`on_bad_row='error'`).
    """
    local_copy = options.path if name in sources.LOCAL_COPY else ""
    found = sources.read(
        name,
        split=split,
        path=local_copy,
        kind=kind,
        seed=seed,
        rows=options.limit if split == "train" else 0,
        labels=options.labels if name in sources.GENERATED else "",
    )
    rows, counts = records.validate(
        found, kind=kind, format=options.format, on_bad_row=options.on_bad_row
    )
    kept, cut = tokenize.tokenize(
        rows,
        tokenizer,
        join=options.join,
        chat_template=tokenize.read_chat_template(options.chat_template),
        max_tokens=options.max_tokens,
        max_prompt_tokens=options.max_prompt_tokens,
        truncate_prompt=options.truncate_prompt,
        truncate_response=options.truncate_response,
        on_bad_row=options.on_bad_row,
    )
    dropped = {**counts.dropped, **cut.dropped}
    total = records.Counts(counts.read, len(kept), dropped)
    report = {
        "source": name,
        **total.as_dict(),
        "summary": f"{total.render()}; {cut.render()}",
        "cut": cut.as_dict(),
    }
    if kind == "singles":
        kept = [single for record in kept for single in _apart(record)]
        report["labels"] = _labels(kept)
    return Prepared(kept, report)


def _apart(record: Record) -> Iterator[Record]:
    """Makes a record of each response, all with the prompt and index of their row."""
    for which, response in enumerate(record.responses):
        yield record._replace(
            responses=(response,),
            response={name: (v[which],) for name, v in record.response.items()},
        )


def _labels(singles: list[Record]) -> dict[str, int]:
    desirable = sum(record.response["labels"] == (1,) for record in singles)
    return {"desirable": desirable, "undesirable": len(singles) - desirable}
