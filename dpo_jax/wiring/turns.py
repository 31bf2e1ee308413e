"""The turns of an on-policy run: prompts drawn, continued, judged and laid out.

A turn is a function of (seed, number of the turn, state): prompts follow from the
number, samples from (seed, turn, place of the prompt in the turn, sample). So a resumed
run needs the state alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dpo_jax.rewards.ask import Verdicts, means
from dpo_jax.sampling import batches, compare
from dpo_jax.sampling.batches import Sampler
from dpo_jax.sampling.rollout import (
    Prompts,
    abstract_prompts,
    abstract_samples,
    rows_of,
)
from dpo_jax.sharding import arrays
from dpo_jax.sharding import mesh as mesh_lib
from dpo_jax.train import turn as turn_lib
from dpo_jax.train.annotate import Annotate
from dpo_jax.types import (
    Array,
    Batch,
    Frozen,
    Hyper,
    Params,
    Record,
    Samples,
    TrainState,
)

WHICH = 2  # stream of a turn's random numbers that labels are drawn from


class Turn(NamedTuple):
    """What the updates of a turn are made of.

    Attributes:
      rollout: rows [parts, B, …] of one prompt with its samples each; the numbers of
        `pairs` are samples of their row.
      order: i32[updates, microbatches, rows]; see `train.turn`.
    """

    rollout: Batch
    order: Any


class Sizes(NamedTuple):
    """How large a turn is.

    Attributes:
      prompts: of a turn.
      samples: of each prompt.
      new_tokens: of a sample, at most.
      width: tokens of the longest prompt of the run.
      epochs: passes over the rollout.
      minibatches: updates of a pass.
      microbatches: parts of an update.
    """

    prompts: int
    samples: int
    new_tokens: int
    width: int
    epochs: int
    minibatches: int
    microbatches: int

    @property
    def updates(self) -> int:
        """Updates of a turn."""
        return self.epochs * self.minibatches

    @property
    def rows(self) -> int:
        """Rows of a microbatch."""
        return self.prompts // (self.minibatches * self.microbatches)


class Comparing(NamedTuple):
    """How samples become pairs; see `sampling.compare`."""

    rank: str
    labels: str


def of_rollouts(annotate: Annotate) -> Annotate:
    """Makes an annotator of rows one of turns."""

    def whole(
        state: TrainState, frozen: Frozen, turn: Any, key: Array, hyper: Hyper
    ) -> Any:
        rows = annotate(state, frozen, turn.rollout, key, hyper)
        return turn._replace(rollout=rows)

    return whole


Ids = list[list[list[int]]]  # of n samples of each of N prompts
# (places of the prompts, texts of samples by prompt, ids by prompt, scores [N, n] by
# the reward model) -> verdicts [N·n]
Judge = Callable[[Sequence[int], list[list[str]], Ids, np.ndarray | None], Verdicts]
# (frozen, prompts, ids of their samples) -> f32[N, n]; None without a reward model
Score = Callable[[Frozen, Sequence[np.ndarray], Ids], np.ndarray | None]


def no_scores(frozen: Frozen, prompts: Sequence[np.ndarray], ids: Ids) -> None:
    """Says nothing: the run has no reward model."""


class Turns:
    """Makes the rollout of the turn that a state stands before.

    Attributes:
      sizes: of a turn.
      sampler: of whoever draws.
      drawing: (state, frozen) -> its parameters.
    """

    def __init__(
        self,
        records: Sequence[Record],
        order: Sequence[Sequence[int]],
        sizes: Sizes,
        *,
        sampler: Sampler,
        drawing: Callable[[TrainState, Frozen], Params],
        judge: Judge,
        decode: Callable[[Sequence[int]], str],
        mesh: Mesh,
        seed: int,
        batch: int,
        comparing: Comparing | None = None,
        score: Score = no_scores,
    ):
        """Draws nothing yet.

        Args:
          records: prompts.
          order: positions in `records` of each turn's prompts.
          sizes: of a turn.
          sampler: of whoever draws.
          drawing: (state, frozen) -> its parameters.
          judge: tells how good samples are, on every process alike.
          decode: ids -> text, special tokens left out.
          mesh: of the run.
          seed: of all that is drawn.
          batch: samples of a data shard that are drawn together, at most.
          comparing: how samples become pairs; None = they stay single.
          score: what the reward model says.
        """
        self._records, self._order, self.sizes = records, order, sizes
        self.sampler, self.drawing, self._judge = sampler, drawing, judge
        self._decode, self._mesh, self._seed = decode, mesh, seed
        self._batch, self._comparing, self._score = batch, comparing, score
        self._facts: dict[int, dict[str, float]] = {}
        self._since = 0.0  # when the updates of the last turn began
        place = arrays.row_sharding(mesh, leading=1)
        self._lay = jax.jit(self._rows, out_shardings=place)

    def __len__(self) -> int:
        return len(self._order)

    def next_batch(
        self, state: TrainState, frozen: Frozen, now: Callable[[], float]
    ) -> Turn:
        """Samples, judges and lays out the next turn.

        Args:
          state: that it stands before.
          frozen: what does not change.
          now: tells the time in seconds.
        """
        taken = int(state.step)  # once the updates of the turn before are made
        begun, number = now(), taken // self.sizes.updates
        self._end(taken, begun)
        places = self._order[number]
        prompts = [self._records[at].prompt for at in places]
        samples = self._drawn(self.drawing(state, frozen), prompts, number)
        drawn = now()
        ids = samples.ids()
        texts = [[self._decode(each) for each in row] for row in ids]
        scores = self._score(frozen, prompts, ids)
        verdicts = self._judge(places, texts, ids, scores)
        judged = now()
        batch = self._laid(prompts, samples, verdicts, ids, number)
        order = turn_lib.rows_of_updates(
            self._seed,
            number,
            rows=self.sizes.prompts,
            epochs=self.sizes.epochs,
            minibatches=self.sizes.minibatches,
            microbatches=self.sizes.microbatches,
        )
        self._facts[taken + self.sizes.updates] = {
            "turn": number + 1.0,
            "rollout_seconds": drawn - begun,
            "reward_seconds": judged - drawn,
            **told(samples, verdicts, prompts),
        }
        self._since = now()
        return Turn(batch, arrays.spread(order, arrays.replicated(self._mesh)))

    def facts(self, step: int, now: float) -> dict[str, float]:
        """Tells what is known of the turn that ended with a step, once."""
        self._end(step, now)
        return self._facts.pop(step)

    def _end(self, step: int, now: float) -> None:
        """Takes the time of a turn's updates, when they are first known to be made."""
        if step in self._facts:
            self._facts[step].setdefault("update_seconds", now - self._since)

    def ids_at(self, step: int) -> list[int]:
        """Lists `Record.index` of the prompts of the turn that holds an update."""
        places = self._order[step // self.sizes.updates]
        return [self._records[at].index for at in places]

    def _drawn(
        self, params: Params, prompts: Sequence[np.ndarray], number: int
    ) -> Samples:
        """Continues the prompts; every process gets all samples."""
        key = jax.random.fold_in(jax.random.key(self._seed), number)
        parts = batches.rollouts(
            params,
            prompts,
            key,
            sampler=self.sampler,
            n=self.sizes.samples,
            batch=self._batch * mesh_lib.row_shards(self._mesh),
        )
        on_host = ((part, self.sampler.read(samples)) for part, _, samples in parts)
        return batches.gather(on_host, len(prompts), self.sizes.samples)

    def _laid(
        self,
        prompts: Sequence[np.ndarray],
        samples: Samples,
        verdicts: Verdicts,
        ids: list[list[list[int]]],
        number: int,
    ) -> Batch:
        """Lays samples out as rows, with what was said of them as columns."""
        shape = samples.ended.shape
        totals, known = (x.reshape(shape) for x in (verdicts.total, verdicts.judged))
        columns = {
            "scores": np.where(known, totals, 0.0).astype(np.float32),
            "present": known.astype(np.float32),
            "ended": samples.ended.astype(np.float32),
        }
        pairs = np.full((len(prompts), 0, 2), -1, np.int32)
        if self._comparing is not None:
            pairs = compare.comparisons(
                totals,
                [[np.array(one).tobytes() for one in row] for row in ids],
                rank=self._comparing.rank,
                labels=self._comparing.labels,
                draw=np.random.default_rng([self._seed, number, WHICH]),
            )
        tokens, lengths = padded(prompts, self.sizes.width)
        numbers = np.arange(len(prompts), dtype=np.int32)
        host = Prompts(tokens, lengths, numbers), samples, columns, pairs
        host = jax.tree.map(np.asarray, host)
        place = arrays.row_sharding(self._mesh)
        return self._lay(*arrays.spread(host, place))

    def abstract(self) -> Batch:
        """Describes the rows of a turn, before anything is annotated."""
        sizes, place = self.sizes, arrays.row_sharding(self._mesh)
        samples = abstract_samples(
            sizes.prompts, sizes.samples, sizes.new_tokens, place
        )
        column = arrays.shaped(samples.ended.shape, np.float32, place)
        columns = dict.fromkeys(("scores", "present", "ended"), column)
        made = self._comparing
        count = 0 if made is None else compare.pairs_of(made.rank, sizes.samples)
        pairs = arrays.shaped((sizes.prompts, count, 2), np.int32, place)
        prompts = abstract_prompts(sizes.prompts, sizes.width, place)
        rows = jax.eval_shape(self._lay, prompts, samples, columns, pairs)
        place = arrays.row_sharding(self._mesh, leading=1)
        return jax.tree.map(lambda x: arrays.shaped(x.shape, x.dtype, place), rows)

    def _rows(
        self,
        prompts: Prompts,
        samples: Samples,
        columns: Mapping[str, Any],
        pairs: Any,
    ) -> Batch:
        """Makes the rows, in parts of a microbatch's size."""
        rows = rows_of(prompts, samples)._replace(response=columns, pairs=pairs)
        parts = len(rows.tokens) // self.sizes.rows
        return jax.tree.map(
            lambda leaf: leaf.reshape(parts, self.sizes.rows, *leaf.shape[1:]), rows
        )


def told(
    samples: Samples, verdicts: Verdicts, prompts: Sequence[np.ndarray]
) -> dict[str, float]:
    """Says what the host knows of a rollout, as metrics.

    `reward_std` is the mean over prompts of the deviation within a prompt's samples,
    as TRL's GRPO has it; that of one sample is 0.
    """
    totals = verdicts.total.reshape(samples.ended.shape)
    spread = [row[~np.isnan(row)] for row in totals]
    deviations = [row.std(ddof=1) if len(row) > 1 else 0.0 for row in spread]
    tokens = samples.mask.sum()
    return {
        **means(verdicts),
        "reward_std": float(np.mean(deviations)),
        "completions/mean_length": float(samples.mask.sum(-1).mean()),
        "completions/clipped_ratio": float(1.0 - samples.ended.mean()),
        "tokens": float(tokens + sum(map(len, prompts))),
        "scored": float(tokens),
        "visible": float(visible_pairs(samples, prompts)),
        "pairs": float(samples.ended.size),
    }


def visible_pairs(samples: Samples, prompts: Sequence[np.ndarray]) -> int:
    """Counts the (query, key) pairs of a rollout's rows in a layer without a window."""
    lengths = samples.mask.sum(-1)
    before = np.array([len(ids) for ids in prompts])
    alone = (before * (before + 1) // 2).sum()
    return int(alone + (lengths * before[:, None] + lengths * (lengths + 1) // 2).sum())


def padded(prompts: Sequence[np.ndarray], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Lays prompts out left-aligned: i32[N, width] and their lengths i32[N]."""
    tokens = np.zeros((len(prompts), width), np.int32)
    for row, ids in zip(tokens, prompts, strict=True):
        row[: len(ids)] = ids
    return tokens, np.array([len(ids) for ids in prompts], np.int32)
