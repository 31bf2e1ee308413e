"""Checks rows that are all at hand."""

from dpo_jax.data.records import RatedLater, Reading


def validate(rows, **options):
    """Returns the good rows and the counts, reading again as `prepare` does."""
    rows = list(rows)
    reading = Reading(rows, **options)
    try:
        return list(reading), reading.counts
    except RatedLater as later:
        reading = Reading(rows, **options, rated=later.where)
        return list(reading), reading.counts
