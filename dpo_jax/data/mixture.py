"""Several sources as one: their records end to end, and which of them a step takes.

Without weights a mixture is its sources laid end to end: an epoch has each record once,
in one permutation. With weights, position p of a run belongs to a source that follows
from the weights and p alone, and its j-th turn is the j-th record of its own epoch
permutations. So a step depends on nothing but its number, on every host, and a small
source is seen more often than a large one of the same weight.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import accumulate
from math import gcd, lcm
from typing import Any, NamedTuple

import numpy as np

from dpo_jax.data import loader, permutations, tokens
from dpo_jax.data.prepare import Prepared
from dpo_jax.data.sources.parts import Part


class Sources(NamedTuple):
    """What the records of a split are made of, in order.

    Attributes:
      names: of the sources, none twice.
      weights: their shares of the pairs, up to a factor; () = as many as they have.
      sizes: how many records each has.
      starts: `Record.index` of the first row of each: rows are numbered through.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    sizes: tuple[int, ...]
    starts: tuple[int, ...]

    @property
    def several(self) -> bool:
        """Says whether there is anything to tell apart."""
        return len(self.names) > 1

    def name_of(self, index: int) -> str:
        """Names the source of a row by its `Record.index`."""
        return self.names[int(np.searchsorted(self.starts, index, side="right")) - 1]

    def shares(self, indices: Sequence[int]) -> dict[str, float]:
        """Returns the share of each source among rows, by their `Record.index`."""
        counted = Counter(map(self.name_of, indices))
        return {name: counted[name] / len(indices) for name in self.names}


def names_of(parts: Sequence[Part]) -> list[str]:
    """Names the parts of a mixture, each shortly and none like another.

    A file by its name without ending, an id of the hub without its owner; of equal ones
    the second is `NAME_2`.
    """
    seen: Counter[str] = Counter()
    names = []
    for part in parts:
        last = part.source.rstrip("/").rpartition("/")[2]
        name = last.partition(".")[0] or last
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return names


def faults_of(parts: Sequence[Part], field: str) -> list[str]:
    """Complains of weights that say nothing, or not enough.

    Args:
      parts: of `data.train` or `data.eval`.
      field: which.
    """
    weighted = [part for part in parts if part.weight is not None]
    if not weighted:
        return []
    said = f"{field} gives {weighted[0].source!r} the weight {weighted[0].weight:g}"
    if field == "data.eval":
        return [f"{said}, but an evaluation takes each row once; leave it out"]
    if len(parts) == 1:
        return [f"{said}, but there is no other source; leave it out"]
    if len(weighted) < len(parts):
        bare = next(part.source for part in parts if part.weight is None)
        return [f"{said} and {bare!r} none; give all of them one, or none"]
    return []


def turns(weights: Sequence[float], count: int) -> np.ndarray:
    """Says which source comes at each position: i32[count].

    After any number of positions, the number of each source differs from its share of
    them by less than 1.

    Args:
      weights: positive, up to a factor.
      count: positions.

    Source: R. Tijdeman, "The chairman assignment problem", Discrete Mathematics 32
    (1980): among the sources that are due, the one that must come first.
    """
    exact = [Fraction(repr(float(weight))) for weight in weights]
    whole = lcm(*(weight.denominator for weight in exact))
    parts = [int(weight * whole) for weight in exact]
    parts = [part // gcd(*parts) for part in parts]
    period, many = sum(parts), max(2 * len(parts) - 2, 1)
    taken, order = [0] * len(parts), []
    for place in range(1, min(period, count) + 1):
        # what each is owed, in shares of a position
        both = zip(parts, taken, strict=True)
        owed = [part * place - period * number for part, number in both]
        left = [(many - 1) * period - many * debt for debt in owed]
        due = [k for k, debt in enumerate(owed) if many * debt >= period]
        first = min(due, key=lambda k: left[k] / parts[k])
        taken[first] += 1
        order.append(first)
    return np.resize(np.array(order, np.int32), count)  # it comes round exactly


def train_steps(
    sources: Sources, *, pairs: int, steps: int, seed: int, shuffle: bool
) -> list[list[int]]:
    """Lists the records of each step of a run, as `loader.train_steps`.

    Args:
      sources: of the records.
      pairs: records a step.
      steps: number of steps.
      seed: of the permutations.
      shuffle: False = each source in order, epoch after epoch.
    """
    if not sources.weights:
        size = sum(sources.sizes)
        return loader.train_steps(
            size, pairs=pairs, steps=steps, seed=seed, shuffle=shuffle
        )
    owners = turns(sources.weights, steps * pairs)
    order, first = np.zeros(len(owners), np.int64), 0
    for source, size in enumerate(sources.sizes):
        own = np.flatnonzero(owners == source)
        if shuffle:
            epochs = max(-(-len(own) // size), 1)  # whose turn may never come
            drawn = permutations.epochs(size, epochs, seed, source)[: len(own)]
        else:
            drawn = np.arange(len(own)) % size
        order[own] = first + drawn.astype(np.int64)
        first += size
    return order.reshape(steps, pairs).tolist()


def eval_steps(sources: Sources, *, pairs: int) -> list[list[int]]:
    """Lists each record once, in order; a step has records of one source only."""
    firsts = [0, *accumulate(sources.sizes)]
    return [
        [first + at for at in step]
        for first, size in zip(firsts, sources.sizes, strict=False)
        for step in loader.eval_steps(size, pairs=pairs)
    ]


def together(
    parts: Mapping[str, Prepared], weights: Sequence[float]
) -> tuple[Prepared, Sources]:
    """Lays prepared sources end to end.

    Args:
      parts: by name, in order.
      weights: of each; () = none.

    Returns:
      Of one source, what it was. Else the records, with columns that all have; the
      counts of all together, and under `sources` of each; a fingerprint that changes
      with the weights, too.
    """
    read = [part.report["read"] for part in parts.values()]
    starts = tuple(accumulate([0, *read[:-1]]))
    sizes = tuple(len(part.records) for part in parts.values())
    sources = Sources(tuple(parts), tuple(weights), sizes, starts)
    if not sources.several:
        return next(iter(parts.values())), sources
    records = tokens.joined([part.records for part in parts.values()], starts)
    prints = [part.fingerprint for part in parts.values()]
    text = json.dumps([prints, sources.weights])
    report = _report({name: part.report for name, part in parts.items()}, weights)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Prepared(records, report, digest), sources


def _report(
    reports: Mapping[str, Mapping[str, Any]], weights: Sequence[float]
) -> dict[str, Any]:
    """Adds up what data.json says of each source, and keeps it under `sources`."""
    each = {
        name: {**report, **({"weight": weights[at]} if weights else {})}
        for at, (name, report) in enumerate(reports.items())
    }
    summaries = [
        f"{name} {report['kept']} of {report['read']} rows; {report['summary']}"
        for name, report in reports.items()
    ]
    return {
        **_added(list(reports.values())),
        "summary": " · ".join(summaries),
        "unread_columns": sorted(
            {name for report in reports.values() for name in report["unread_columns"]}
        ),
        "sources": each,
    }


def _added(counts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Adds numbers of the same name, in dicts of dicts."""
    total: dict[str, Any] = {}
    for name in {name: None for each in counts for name in each}:
        values = [each[name] for each in counts if name in each]
        if isinstance(values[0], Mapping):
            total[name] = _added(values)
        elif isinstance(values[0], int):
            total[name] = sum(values)
    return total
