"""Reads the rows of a source, and checks rows that are all at hand."""

from dpo_jax.data.records import RatedLater, Reading
from dpo_jax.data.sources import find, parts_of, read
from dpo_jax.data.sources.files import Request


def located(name, split="train", path="", **options):
    """Yields (where, columns) of a source, as data.train or data.eval names it."""
    (part,) = parts_of(name, f"data.{split}")
    return read(find(part, split, path=path), Request(split, **options))


def validate(rows, **options):
    """Returns the good rows and the counts, reading again as `prepare` does."""
    rows = list(rows)
    reading = Reading(rows, **options)
    try:
        return list(reading), reading.counts
    except RatedLater as later:
        reading = Reading(rows, **options, rated=later.where)
        return list(reading), reading.counts
