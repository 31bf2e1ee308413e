"""Batches as a function of the step.

Step s takes positions [s·n, (s+1)·n) of the concatenated epoch permutations, whatever
the layout, the mesh or the number of hosts; lengths decide only how those records lie
in rows. `batch_at(step)` has no state, so resuming needs the step number and nothing
else. All sizes are chosen from the plan of the whole run, on every host alike.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice

import grain
import numpy as np

from dpo_jax.data import layouts
from dpo_jax.data.layouts import Lengths, Shape
from dpo_jax.types import Batch, Record

Join = Callable[[Sequence[Record]], Sequence[Record]]

QUANTILES = (1.0, 0.9, 0.5)  # of the rows that steps need: candidates for buckets
WORTH_COMPILING = 0.1  # share of rows that a further bucket must save
SCORED_MULTIPLE = 16
MAX_CHOSEN_TOKENS = 2048
PROBED_STEPS = 16


def as_it_is(batch: Batch) -> Batch:
    """Leaves a batch as it was laid out."""
    return batch


def epochs(size: int, *, seed: int, shuffle: bool) -> grain.MapDataset:
    """Concatenates the permutations of all epochs: position -> record."""
    order = grain.MapDataset.range(size).seed(seed)
    return (order.shuffle() if shuffle else order).repeat(None)


def round_up(value: int, multiple: int) -> int:
    """Returns the smallest multiple that is at least `value`."""
    return -(-value // multiple) * multiple


def choose_row_tokens(layout: str, lengths: Sequence[Lengths]) -> int:
    """Chooses T: the longest document, rounded to a size that tiles well."""
    longest = layouts.longest_document(layout, lengths)
    return round_up(longest, 128 if longest > 128 else 8)


def row_token_choices(layout: str, lengths: Sequence[Lengths]) -> list[int]:
    """Lists sizes of T to choose from: the longest document, and room for more."""
    longest = layouts.longest_document(layout, lengths)
    least = round_up(longest, 128 if longest > 128 else 8)
    if layout == "padded":
        return [least]
    return [least * n for n in (1, 2, 4, 8) if n == 1 or least * n <= MAX_CHOSEN_TOKENS]


def row_cost(rows: int, tokens: int, even_tokens: float) -> float:
    """Weighs a batch of rows: every place costs, and a place in a long row costs more.

    Args:
      rows: B.
      tokens: T.
      even_tokens: length of a row at which attention costs as much as all the rest.
    """
    return rows * tokens * (1.0 + tokens / even_tokens)


def deal(sizes: Sequence[int], hands: int) -> list[list[int]]:
    """Deals items to hands of even total size, longest first; order kept in a hand."""
    totals, dealt = [0] * hands, [[] for _ in range(hands)]
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        hand = min(range(hands), key=lambda h: (totals[h], h))
        totals[hand] += sizes[i]
        dealt[hand].append(i)
    return [sorted(hand) for hand in dealt]


def row_buckets(counts: Sequence[int], shards: int) -> tuple[int, ...]:
    """Chooses the numbers of rows to compile for: few, and each worth its compilation.

    Args:
      counts: rows that each step's plan needs.
      shards: devices that rows are spread over; the numbers are multiples of it.

    Returns:
      Numbers in ascending order. The last holds every step; a smaller one is there only
      if it saves the steps that fit it at least `WORTH_COMPILING` of their rows.
    """
    needed = [round_up(count, shards) for count in counts]
    marks = np.quantile(needed, QUANTILES)
    buckets: list[int] = []
    for mark in (round_up(int(np.ceil(mark)), shards) for mark in marks):
        if not buckets or mark <= (1 - WORTH_COMPILING) * buckets[-1]:
            buckets.append(mark)
    return tuple(reversed(buckets))


@dataclasses.dataclass(frozen=True)
class Settings:
    """How records become batches.

    Attributes:
      pairs: records per optimizer step, over the whole mesh.
      microbatches: parts of a step that are run one after the other.
      layout: a name of `layouts.LAYOUTS`.
      row_tokens: T; 0 = chosen from the lengths.
      shards: devices that rows are spread over.
      even_tokens: see `row_cost`; read where T is chosen.
      mine: this host's rows of a microbatch, as a fraction (start, stop) of them.
    """

    pairs: int
    microbatches: int
    layout: str
    row_tokens: int
    shards: int
    even_tokens: float = 4096.0
    mine: tuple[float, float] = (0.0, 1.0)


class Loader:
    """Plans all steps from lengths at construction; fills one when asked.

    Attributes:
      row_tokens: T of every batch.
      buckets: the numbers of rows that occur.
    """

    def __init__(
        self,
        records: Sequence[Record],
        steps: Sequence[Sequence[int]],
        settings: Settings,
        join: Join | None = None,
    ):
        """Plans.

        Args:
          records: all records.
          steps: positions in `records` of each step's records.
          settings: how to lay them out.
          join: what the records of one whole step become, in order, as many as they
            were; None = they stay as they are. Lengths are taken afterwards.
        """
        self._records, self._steps, self._settings = records, steps, settings
        self._join = join
        self._lengths, every = self._measure_steps()
        self.row_tokens = settings.row_tokens or self._cheapest_row_tokens(every)
        shapes = [self._shape(step, self.row_tokens) for step in range(len(steps))]
        self.buckets = row_buckets([shape.rows for shape in shapes], settings.shards)
        largest = Shape(*(max(sizes) for sizes in zip(*shapes, strict=True)))
        scored = round_up(largest.scored, SCORED_MULTIPLE)
        self._largest = largest._replace(
            scored=scored,
            labelled=layouts.has_labels(records),
            rated=layouts.has_ratings(records),
        )
        self._rows = [self._bucket(shape.rows) for shape in shapes]

    def __len__(self) -> int:
        return len(self._steps)

    def _measure_steps(self) -> tuple[list[list[Lengths]], list[Lengths]]:
        """Returns the lengths of each step's records, and those that T must hold."""
        if self._join is None:
            every = [layouts.lengths_of(record) for record in self._records]
            return [[every[m] for m in step] for step in self._steps], every
        joined = [
            [layouts.lengths_of(record) for record in self._joined(step)]
            for step in range(len(self))
        ]
        return joined, list(chain.from_iterable(joined))

    def _joined(self, step: int) -> Sequence[Record]:
        own = [self._records[m] for m in self._steps[step]]
        return own if self._join is None else self._join(own)

    def _cheapest_row_tokens(self, lengths: Sequence[Lengths]) -> int:
        """Tries sizes of T on the first steps; takes the one with the least cost."""
        settings, probed = self._settings, range(min(len(self), PROBED_STEPS))

        def cost(tokens: int) -> float:
            counts = [self._shape(step, tokens).rows for step in probed]
            most = round_up(max(counts, default=1), settings.shards)
            return row_cost(most, tokens, settings.even_tokens)

        return min(row_token_choices(settings.layout, lengths), key=cost)

    def _bucket(self, rows: int) -> int:
        return next(bucket for bucket in self.buckets if bucket >= rows)

    def _hands(self, step: int) -> list[list[int]]:
        """Deals a step's records, by their place in it, to the microbatches."""
        sizes = [
            record.prompt + sum(record.responses) for record in self._lengths[step]
        ]
        return deal(sizes, self._settings.microbatches)

    def _plan(
        self, step: int, hand: Sequence[int], row_tokens: int
    ) -> tuple[layouts.Rows, list[Lengths]]:
        lengths = [self._lengths[step][i] for i in hand]
        planner = layouts.LAYOUTS[self._settings.layout]
        return planner(lengths, row_tokens), lengths

    def _shape(self, step: int, row_tokens: int) -> Shape:
        plans = [self._plan(step, hand, row_tokens) for hand in self._hands(step)]
        shapes = [layouts.measure(*plan, row_tokens) for plan in plans]
        return Shape(*(max(sizes) for sizes in zip(*shapes, strict=True)))

    def shape_at(self, step: int) -> Shape:
        """Tells the sizes of a step's microbatches."""
        return self._largest._replace(rows=self._rows[step])

    def compiled_shapes(self) -> Counter[int]:
        """Counts the steps of each number of rows."""
        return Counter(self._rows)

    def facts(self, step: int) -> dict[str, float]:
        """Counts a step's records, tokens, scored tokens, and its share of padding."""
        shape, tokens, scored = self.shape_at(step), 0, 0
        for hand in self._hands(step):
            rows, lengths = self._plan(step, hand, self.row_tokens)
            tokens += sum(layouts.size(d, lengths) for row in rows for d in row)
            scored += sum(sum(record.responses) for record in lengths)
        places = shape.rows * shape.tokens * self._settings.microbatches
        return {
            "pairs": float(len(self._steps[step])),
            "tokens": float(tokens),
            "scored": float(scored),
            "padding_fraction": 1.0 - tokens / places,
        }

    def visible_pairs(self, step: int, window: int) -> int:
        """Counts a step's (query, key) pairs; see `layouts.visible_pairs`."""
        return layouts.visible_pairs(self._settings.layout, self._lengths[step], window)

    def batch_at(self, step: int) -> Batch:
        """Fills this host's rows of a step, with a leading axis of microbatches."""
        shape, records = self.shape_at(step), self._joined(step)
        start, stop = (round(shape.rows * part) for part in self._settings.mine)
        filled = [
            layouts.fill(
                self._plan(step, hand, self.row_tokens)[0],
                [records[i] for i in hand],
                shape,
                slice(start, stop),
            )
            for hand in self._hands(step)
        ]
        return Batch(*map(_stack, zip(*filled, strict=True)))

    def records_at(self, step: int) -> Sequence[Record]:
        """Lists a step's records as they are laid out, joined."""
        return self._joined(step)

    def ids_at(self, step: int) -> list[int]:
        """Lists `Record.index` of a step's records, in order."""
        return [self._records[m].index for m in self._steps[step]]

    def iterate(
        self,
        start: int,
        *,
        threads: int,
        ahead: int,
        then: Callable[[Batch], Batch] = as_it_is,
    ) -> Iterator[Batch]:
        """Yields batches from a step on, filled ahead by threads.

        Args:
          start: the first step.
          threads: that fill batches.
          ahead: batches that wait to be taken.
          then: what the threads do to a batch before it is handed over.
        """
        steps = grain.MapDataset.range(start, len(self)).map(self.batch_at).map(then)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        return iter(steps.to_iter_dataset(options))


def _stack(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Stacks one field of all microbatches, or leaves out one that none has."""
    found = [part for part in parts if part is not None]
    assert len(found) in (0, len(parts))  # all were filled to one shape
    return np.stack(found) if found else None


def _position(order: grain.MapDataset, at: int) -> int:
    found = order[at]
    assert found is not None  # nothing is filtered
    return int(found)


def train_steps(
    size: int, *, pairs: int, steps: int, seed: int, shuffle: bool
) -> list[list[int]]:
    """Lists the records of each step of a run.

    Args:
      size: number of records.
      pairs: n, records a step.
      steps: number of steps.
      seed: of the permutations.
      shuffle: False = in order, epoch after epoch.
    """
    order = epochs(size, seed=seed, shuffle=shuffle)
    flat = (_position(order, at) for at in range(steps * pairs))
    return [list(islice(flat, pairs)) for _ in range(steps)]


def eval_steps(size: int, *, pairs: int) -> list[list[int]]:
    """Lists each record exactly once, in order; the last step may be short."""
    return [list(range(at, min(at + pairs, size))) for at in range(0, size, pairs)]
