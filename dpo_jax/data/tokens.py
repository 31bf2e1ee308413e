"""Tokenized records in flat arrays: the ids, and a few numbers beside them.

A `Record` is made when one is asked for; lengths are read off the arrays. Knows
neither text nor tokenizers, and no jax.
"""

import dataclasses
import hashlib
from array import array
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from dpo_jax.data.planning import Table, tabulate
from dpo_jax.types import Record

SCORED = "scored"  # the column of tokens that says which of them count
PLAIN = [((), (), (), False), ((), (), ((0, 1),), False)]  # judged by order alone


@dataclasses.dataclass(frozen=True)
class Records(Sequence[Record]):
    """Records in their order. A part is a prompt or a response.

    Attributes:
      ids: i32[…] ids of all parts.
      starts: i64[P] where each part begins in `ids`.
      lengths: i32[P] its tokens.
      firsts: i64[N + 1] which part is the prompt of each record; the parts up to the
        next record's are its responses. The last is P.
      indices: i64[N] `Record.index`.
      response: name -> f64[P − N] what is known of each response.
      token: name -> of each of the ids, those of prompts included; see `Record`.
      ranked: whether the responses of a record are a ranking.
    """

    ids: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    firsts: np.ndarray
    indices: np.ndarray
    response: dict[str, np.ndarray]
    ranked: bool = False
    token: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, at: Any) -> Any:
        """Makes a record; a list of them of a slice."""
        if isinstance(at, slice):
            return [self[n] for n in range(len(self))[at]]
        at = range(len(self))[at]
        first, end = int(self.firsts[at]), int(self.firsts[at + 1])
        starts, lengths = self.starts[first:end], self.lengths[first:end]
        spans = [slice(*both) for both in zip(starts, starts + lengths, strict=True)]
        prompt, *responses = (self.ids[span] for span in spans)
        known = slice(first - at, end - at - 1)
        return Record(
            int(self.indices[at]),
            prompt,
            tuple(responses),
            comparisons=tuple(combinations(range(len(responses)), 2)),
            ranked=self.ranked,
            token={n: tuple(c[s] for s in spans[1:]) for n, c in self.token.items()},
            response={n: tuple(c[known].tolist()) for n, c in self.response.items()},
        )

    def table(self) -> Table:
        """Returns the lengths, for planning."""
        counts = np.diff(self.firsts).astype(np.int32) - 1
        responses = scored = np.delete(self.lengths, self.firsts[:-1])
        if SCORED in self.token:
            before = np.append(0, np.cumsum(self.token[SCORED]))
            within = before[self.starts + self.lengths] - before[self.starts]
            scored = np.delete(within, self.firsts[:-1])
        return tabulate(
            prompts=self.lengths[self.firsts[:-1]],
            counts=counts,
            responses=responses,
            scored=scored,
            comparisons=counts * (counts - 1) // 2,
            groups=counts * self.ranked,
        )

    def prompts(self) -> list[bytes]:
        """Returns the ids of each record's prompt as bytes, to be compared."""
        firsts = self.firsts[:-1]
        spans = zip(self.starts[firsts], self.lengths[firsts], strict=True)
        return [self.ids[at : at + length].tobytes() for at, length in spans]

    def only(self, kept: np.ndarray) -> "Records":
        """Keeps some of the records: bool[N]."""
        counts = np.diff(self.firsts)
        parts = np.repeat(kept, counts)
        responses = np.delete(parts, self.firsts[:-1])
        return dataclasses.replace(
            self,
            starts=self.starts[parts],
            lengths=self.lengths[parts],
            firsts=np.append(0, np.cumsum(counts[kept])),
            indices=self.indices[kept],
            response={name: x[responses] for name, x in self.response.items()},
        )

    def apart(self) -> "Records":
        """Makes a record of each response, with the prompt and index of its record."""
        counts = np.diff(self.firsts) - 1
        responses = np.delete(np.arange(len(self.starts)), self.firsts[:-1])
        prompts = np.repeat(self.firsts[:-1], counts)
        parts = np.stack([prompts, responses], axis=1).reshape(-1)
        return dataclasses.replace(
            self,
            starts=self.starts[parts],
            lengths=self.lengths[parts],
            firsts=np.arange(len(responses) + 1) * 2,
            indices=np.repeat(self.indices, counts),
        )


def joined(parts: Sequence[Records], starts: Sequence[int]) -> Records:
    """Lays records end to end.

    Args:
      parts: of one kind.
      starts: what is added to `Record.index` of each part's.

    Returns:
      Records with the columns of responses that all parts have, and with a mask of the
      tokens that count where any has one.
    """
    counts = [len(part.lengths) for part in parts]
    ids = np.concatenate([part.ids for part in parts])
    before = np.cumsum([0, *(len(part.ids) for part in parts[:-1])])
    parts_before = np.cumsum([0, *counts[:-1]])
    shifted = zip(parts, before, parts_before, starts, strict=True)
    moved = [
        (part.starts + ids_at, part.firsts[:-1] + part_at, part.indices + start)
        for part, ids_at, part_at, start in shifted
    ]
    starts_at, firsts, indices = map(np.concatenate, zip(*moved, strict=True))
    shared = set.intersection(*(set(part.response) for part in parts))
    masks = [part.token.get(SCORED, np.ones(len(part.ids), bool)) for part in parts]
    masked = any(SCORED in part.token for part in parts)
    return Records(
        ids,
        starts_at,
        np.concatenate([part.lengths for part in parts]),
        np.append(firsts, sum(counts)),
        indices,
        {n: np.concatenate([p.response[n] for p in parts]) for n in sorted(shared)},
        parts[0].ranked,
        {SCORED: np.concatenate(masks)} if masked else {},
    )


class Gathered:
    """Records as they are gathered, one after the other."""

    def __init__(self) -> None:
        self._ids, self._lengths = array("i"), array("i")
        self._scored = bytearray()  # of each id; not grown where all count
        self._firsts, self._indices = array("q", [0]), array("q")
        self._columns: dict[str, array[float]] = {}
        self._ranked = False

    def __len__(self) -> int:
        return len(self._indices)

    def add(
        self,
        index: int,
        parts: Sequence[Sequence[int]],
        judged: dict[str, Sequence[float]],
        *,
        ranked: bool,
        scored: Sequence[Sequence[bool]] = (),
    ) -> None:
        """Adds a record.

        Args:
          index: `Record.index`.
          parts: ids of the prompt, then of each response.
          judged: name -> of each response, or () of none; for all records alike.
          ranked: likewise.
          scored: which tokens of each response count; () = all.
        """
        if scored and not self._scored:
            self._scored.extend(b"\1" * len(self._ids))
        for ids in parts:
            self._ids.extend(ids)
            self._lengths.append(len(ids))
        if self._scored or scored:
            masks = scored or [[True] * len(ids) for ids in parts[1:]]
            for mask in ([False] * len(parts[0]), *masks):
                self._scored.extend(mask)
        self._firsts.append(len(self._lengths))
        self._indices.append(index)
        for name, values in judged.items():
            self._columns.setdefault(name, array("d")).extend(values)
        self._ranked = ranked

    def records(self) -> Records:
        """Returns what was gathered."""
        lengths = np.frombuffer(self._lengths, np.int32)
        columns = {n: np.frombuffer(c) for n, c in self._columns.items() if c}
        known = {n: c for n, c in columns.items() if not np.isnan(c).all()}
        return Records(
            np.frombuffer(self._ids, np.int32),
            np.cumsum(lengths, dtype=np.int64) - lengths,
            lengths,
            np.frombuffer(self._firsts, np.int64),
            np.frombuffer(self._indices, np.int64),
            known,
            self._ranked,
            {SCORED: np.frombuffer(self._scored, bool)} if self._scored else {},
        )


def fingerprint(records: Sequence[Record]) -> str:
    """Returns 16 hex digits of all ids and judgements, with places and boundaries."""
    digest = hashlib.sha256()
    for record in records:
        parts = (record.prompt, *record.responses)
        sizes = [record.index, *map(len, parts)]
        digest.update(np.array(sizes, np.int64).tobytes())
        for ids in parts:
            digest.update(np.asarray(ids, np.int32).tobytes())
        for mask in record.token.get(SCORED, ()):
            digest.update(np.packbits(mask).tobytes())
        labels = tuple(int(label) for label in record.response.get("labels", ()))
        ratings = record.response.get("ratings", ())
        judged = (labels, ratings, record.comparisons, record.ranked)
        if judged not in PLAIN:
            digest.update(repr(judged).encode())
    return digest.hexdigest()[:16]
