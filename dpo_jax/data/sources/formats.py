"""Which reader reads which file, by the ending of its name."""

from collections.abc import Callable

from dpo_jax.data.sources.files import Rows
from dpo_jax.data.sources.json_rows import read_json, read_jsonl
from dpo_jax.data.sources.tables import read_csv, read_parquet, read_tsv

Reader = Callable[[str, str], Rows]  # path, field -> rows

PACKED = ("", ".gz", ".zst")
TEXTS: dict[str, Reader] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
}
READERS: dict[str, Reader] = {
    ending + packed: reader for ending, reader in TEXTS.items() for packed in PACKED
} | {".parquet": read_parquet}
ENDINGS = f"{', '.join([*TEXTS, '.parquet'])} (all but the last also with .gz or .zst)"


def ending_of(path: str) -> str:
    """Returns the ending of a path that a reader knows; '' if none does."""
    return next((ending for ending in READERS if path.endswith(ending)), "")


def reader_of(path: str) -> Reader | None:
    """Returns the reader for the ending of a path, or None."""
    return READERS.get(ending_of(path))
