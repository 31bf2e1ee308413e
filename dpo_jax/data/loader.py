"""Batches as a function of the step.

Step s takes positions [s·n, (s+1)·n) of the concatenated epoch permutations, whatever
the layout, the mesh or the number of hosts; lengths decide only how those records lie
in rows. `batch_at(step)` has no state, so resuming needs the step number and nothing
else. All sizes are chosen from the plan of the whole run, on every host alike.
"""

import copy
import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, chain
from typing import Any

import numpy as np

from dpo_jax.data import layouts, permutations, planning, sizes
from dpo_jax.data.layouts import Shape
from dpo_jax.data.planning import Documents, Plan, Table
from dpo_jax.data.tokens import SCORED
from dpo_jax.types import Batch, Record

Join = Callable[[Sequence[Record]], Sequence[Record]]

SCORED_MULTIPLE = 16
NEARLY = 1.005  # as cheap as the cheapest
PROBED_RECORDS = 2**14


@dataclasses.dataclass(frozen=True)
class Settings:
    """How records become batches.

    Attributes:
      pairs: records per optimizer step, over the whole mesh.
      microbatches: parts of a step that are run one after the other.
      layout: a name of `planning.LAYOUTS`.
      row_tokens: T; 0 = chosen from the lengths.
      shards: devices that rows are spread over.
      even_tokens: see `sizes.row_cost`; read where T is chosen.
      rows_here: number of a microbatch's rows -> those that this process lays out.
      row_shapes: numbers of rows at most; 0 = see `sizes.row_buckets`.
    """

    pairs: int
    microbatches: int
    layout: str
    row_tokens: int
    shards: int
    even_tokens: float = math.inf
    rows_here: Callable[[int], Sequence[int] | np.ndarray] = range
    row_shapes: int = 0


def microbatches_of(table: Table, counts: Sequence[int], hands: int) -> np.ndarray:
    """Deals each step's records to its microbatches, evenly by tokens.

    Args:
      table: lengths of all steps' records.
      counts: records of each step.
      hands: microbatches of a step.

    Returns:
      i32[N] microbatch of each record, counted over all steps.
    """
    steps = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    tokens = table.prompts + table.responses.sum(1, dtype=np.int32)
    return steps * hands + planning.deal(tokens, steps, hands)


def rows_of_steps(plan: Plan, microbatches: int) -> np.ndarray:
    """Counts the rows that each step's microbatches need: i64[steps]."""
    needed = np.zeros(plan.microbatches.max(initial=-1) // microbatches + 1, np.int64)
    np.maximum.at(needed, plan.microbatches // microbatches, plan.rows + 1)
    return needed


def cheapest_row_tokens(table: Table, groups: np.ndarray, settings: Settings) -> int:
    """Tries sizes of T on the first steps; of those nearly the cheapest, the smallest.

    Args:
      table: lengths of all steps' records.
      groups: i32[N] microbatch of each.
      settings: all but T.
    """
    layout, hands = settings.layout, settings.microbatches
    longest = int(planning.LAYOUTS[layout].split(table).tokens.max(initial=0))
    choices = sizes.row_token_choices(layout, longest)
    if len(choices) == 1:
        return choices[0]
    enough_steps = max(sizes.SHORT_RUN, PROBED_RECORDS // settings.pairs)
    probed = slice(0, enough_steps * settings.pairs)
    part = planning.take(table, probed)

    def cost(tokens: int) -> float:
        plan = planning.plan(layout, part, groups[probed], tokens)
        needed = rows_of_steps(plan, hands)
        rows = sizes.bucketed(
            needed, sizes.row_buckets(needed, settings.shards, settings.row_shapes)
        )
        return sizes.row_cost(int(rows.sum()), tokens, settings.even_tokens)

    costs = [cost(tokens) for tokens in choices]
    enough = NEARLY * min(costs)
    return next(n for n, each in zip(choices, costs, strict=True) if each <= enough)


class Loader:
    """Plans all steps from lengths at construction; fills one when asked.

    Attributes:
      row_tokens: T of every batch.
      buckets: the numbers of rows that occur.
      microbatches: of a step.
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
        self._join, self._columns = join, {}
        self._table = table = self._measure()
        self.microbatches = hands = settings.microbatches
        groups = microbatches_of(table, [len(step) for step in steps], hands)
        chosen = settings.row_tokens or cheapest_row_tokens(table, groups, settings)
        self.row_tokens = chosen
        self._plan = planning.plan(settings.layout, table, groups, chosen)
        needed = rows_of_steps(self._plan, hands)
        self.buckets = sizes.row_buckets(needed, settings.shards, settings.row_shapes)
        self._rows = sizes.bucketed(needed, self.buckets).tolist()
        most = int(table.groups.max(initial=0))
        shape = layouts.shape_of(self._plan, chosen, most)
        alike = records[0]  # they have the same columns
        self._largest = shape._replace(
            scored=sizes.round_up(shape.scored, SCORED_MULTIPLE),
            token=tuple(name for name in alike.token if name != SCORED),
            response=tuple(alike.response),
        )
        # where each step begins, among all steps' records and among their documents
        self._firsts = [0, *accumulate(map(len, steps))]
        owners = self._plan.documents.records
        self._parts = np.searchsorted(owners, self._firsts).tolist()

    @property
    def places(self) -> int:
        """Counts the tokens, padding included, of all steps' rows."""
        return sum(self._rows) * self.microbatches * self.row_tokens

    @property
    def most_tokens(self) -> int:
        """Counts the tokens of the fullest microbatch, without padding."""
        planned = self._plan
        tokens = np.bincount(planned.microbatches, planned.documents.tokens)
        return int(tokens.max(initial=0))

    def __len__(self) -> int:
        return len(self._steps)

    def _measure(self) -> Table:
        """Returns the lengths of all steps' records, in order."""
        if self._join is None:
            order = np.fromiter(chain.from_iterable(self._steps), np.int64)
            return planning.take(layouts.measure(self._records), order)
        joined = chain.from_iterable(map(self.records_at, range(len(self))))
        return layouts.measure(list(joined))

    def _planned(self, step: int) -> Plan:
        """Cuts the plan of a step's microbatches out of that of the run."""
        part = slice(*self._parts[step : step + 2])
        return Plan(
            Documents(*(column[part] for column in self._plan.documents)),
            self._plan.microbatches[part] - step * self._settings.microbatches,
            self._plan.rows[part],
        )

    def shape_at(self, step: int) -> Shape:
        """Tells the sizes of a step's microbatches."""
        return self._largest._replace(rows=self._rows[step])

    def compiled_shapes(self) -> Counter[int]:
        """Counts the steps of each number of rows."""
        return Counter(self._rows)

    def new_shapes(self, first: int) -> set[int]:
        """Lists the steps (from 1) whose shape no step had since step `first`."""
        rows = self._rows[first:]
        return {first + 1 + rows.index(number) for number in set(rows)}

    def facts(self, step: int) -> dict[str, float]:
        """Counts a step's records, tokens and scored tokens, and what is padding.

        `padding_fraction` is the share of the places for tokens, B·T of all
        microbatches, that hold none; `scored_padding_fraction` likewise of B·C.
        """
        shape, documents = self.shape_at(step), self._planned(step).documents
        tokens, scored = int(documents.tokens.sum()), int(documents.scored.sum())
        rows = shape.rows * self._settings.microbatches
        return {
            "pairs": float(len(self._steps[step])),
            "tokens": float(tokens),
            "scored": float(scored),
            "padding_fraction": 1.0 - tokens / (rows * shape.tokens),
            "scored_padding_fraction": 1.0 - scored / (rows * shape.scored),
        }

    def visible_pairs(self, step: int, window: int) -> int:
        """Counts a step's (query, key) pairs; see `planning.visible_pairs`."""
        documents = self._planned(step).documents
        return planning.visible_pairs(self._table, documents, window)

    def batch_at(self, step: int) -> Batch:
        """Fills this process's rows of a step, behind an axis of microbatches."""
        shape = self.shape_at(step)
        records = [self._filled(record) for record in self.records_at(step)]
        plan, first = self._planned(step), self._firsts[step]
        here, filled = self._settings.rows_here(shape.rows), []
        for hand in range(self._settings.microbatches):
            rows = layouts.rows_of(plan, hand, first)
            filled.append(layouts.fill(rows, records, shape, here))
        return stacked(filled)

    def with_tokens(
        self, name: str, values: Callable[[Record], tuple[np.ndarray, ...]]
    ) -> "Loader":
        """Returns a loader of the same batches with one more column of tokens.

        Args:
          name: of the column.
          values: record -> f32[scored tokens] of each response.
        """
        more = copy.copy(self)
        more._columns = {**self._columns, name: values}
        token = (*self._largest.token, name)
        more._largest = self._largest._replace(token=token)
        return more

    def _filled(self, record: Record) -> Record:
        """Writes the loader's columns into a record."""
        more = {name: values(record) for name, values in self._columns.items()}
        return record._replace(token={**record.token, **more}) if more else record

    def responses_at(self, step: int) -> Iterator[tuple[Record, int, tuple]]:
        """Lists a step's responses and where the whole batch scores them.

        Yields:
          A record, which of its responses, and the index of that response's places in
          an array [microbatches, B, C].
        """
        records, plan = self.records_at(step), self._planned(step)
        for hand in range(self._settings.microbatches):
            rows = layouts.rows_of(plan, hand, self._firsts[step])
            for row, documents in enumerate(rows):
                entry = 0
                for document in documents:
                    record = records[document.record]
                    for which in document.responses:
                        end = entry + int(layouts.scored_of(record)[which].sum())
                        yield record, which, (hand, row, slice(entry, end))
                        entry = end

    def records_at(self, step: int) -> Sequence[Record]:
        """Lists a step's records as they are laid out, joined."""
        records = [self._records[m] for m in self._steps[step]]
        return records if self._join is None else self._join(records)

    def ids_at(self, step: int) -> list[int]:
        """Lists `Record.index` of a step's records, in order."""
        return [self._records[m].index for m in self._steps[step]]

    def iterate(self, start: int, *, threads: int, ahead: int) -> Iterator[Batch]:
        """Yields batches from a step on, filled ahead by threads.

        Args:
          start: the first step.
          threads: that fill batches.
          ahead: batches that wait to be taken.
        """
        import grain  # it imports jax

        steps = grain.MapDataset.range(start, len(self)).map(self.batch_at)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        return iter(steps.to_iter_dataset(options))


def stacked(parts: Sequence[Batch]) -> Batch:
    """Lays the microbatches of a step behind each other, field by field."""

    def stack(values: Sequence[Any]) -> Any:
        if isinstance(values[0], dict):
            return {name: stack([each[name] for each in values]) for name in values[0]}
        return None if values[0] is None else np.stack(values)

    return Batch(*(stack(values) for values in zip(*parts, strict=True)))


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
    count = -(-steps * pairs // size)
    if shuffle:
        order = permutations.epochs(size, count, seed)
    else:
        order = np.tile(np.arange(size), count)
    return order[: steps * pairs].reshape(steps, pairs).tolist()


def eval_steps(size: int, *, pairs: int) -> list[list[int]]:
    """Lists each record exactly once, in order; the last step may be short."""
    return [list(range(at, min(at + pairs, size))) for at in range(0, size, pairs)]
