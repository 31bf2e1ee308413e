"""The turns of an on-policy run: prompts drawn, continued, judged and laid out.

A turn is a function of (seed, number of the turn, state): prompts follow from the
number, samples from (seed, turn, place of the prompt in the turn, sample). So a resumed
run needs the state alone.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dpo_jax.rewards.ask import Verdicts, means
from dpo_jax.sampling import batches, compare
from dpo_jax.sampling.batches import Sampler
from dpo_jax.sampling.rollout import Prompts, rows_of
from dpo_jax.sharding import arrays
from dpo_jax.sharding import mesh as mesh_lib
from dpo_jax.train import turn as turn_lib
from dpo_jax.types import Batch, Params, Record, Samples, TrainState
from dpo_jax.wiring import prompts as prompts_lib

WHO, WHICH, WHAT = 1, 2, 3  # streams of a turn's random numbers


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


# (places of the prompts, texts of samples by prompt, ids by prompt) -> verdicts [N·n]
Judge = Callable[[Sequence[int], list[list[str]], list[list[list[int]]]], Verdicts]


class Turns:
    """Makes the rollout of the turn that a state stands before."""

    def __init__(
        self,
        records: Sequence[Record],
        order: Sequence[Sequence[int]],
        sizes: Sizes,
        *,
        sampler: Sampler,
        drawing: Callable[[TrainState], Params],
        judge: Judge,
        decode: Callable[[Sequence[int]], str],
        mesh: Mesh,
        seed: int,
        batch: int,
        comparing: Comparing | None = None,
    ):
        """Draws nothing yet.

        Args:
          records: prompts.
          order: positions in `records` of each turn's prompts.
          sizes: of a turn.
          sampler: of whoever draws.
          drawing: state -> its parameters.
          judge: tells how good samples are, on every process alike.
          decode: ids -> text, special tokens left out.
          mesh: of the run.
          seed: of all that is drawn.
          batch: samples of a data shard that are drawn together, at most.
          comparing: how samples become pairs; None = they stay single.
        """
        self._records, self._order, self._sizes = records, order, sizes
        self._sampler, self._drawing, self._judge = sampler, drawing, judge
        self._decode, self._mesh, self._seed = decode, mesh, seed
        self._batch, self._comparing = batch, comparing
        self._facts: dict[int, dict[str, float]] = {}
        place = arrays.row_sharding(mesh, leading=1)
        self._lay = jax.jit(self._rows, out_shardings=place)

    def __len__(self) -> int:
        return len(self._order)

    def next_batch(self, state: TrainState) -> Turn:
        """Samples, judges and lays out the next turn."""
        number = int(state.step) // self._sizes.updates
        places = self._order[number]
        prompts = [self._records[at].prompt for at in places]
        begun = time.monotonic()
        samples = self._drawn(state, prompts, number)
        drawn = time.monotonic()
        ids = [
            [sample[mask].tolist() for sample, mask in zip(*both, strict=True)]
            for both in zip(samples.tokens, samples.mask, strict=True)
        ]
        texts = [[self._decode(each) for each in row] for row in ids]
        verdicts = self._judge(places, texts, ids)
        judged = time.monotonic()
        batch = self._laid(prompts, samples, verdicts, ids, number)
        order = turn_lib.rows_of_updates(
            self._seed,
            number,
            rows=self._sizes.prompts,
            epochs=self._sizes.epochs,
            minibatches=self._sizes.minibatches,
            microbatches=self._sizes.microbatches,
        )
        step = int(state.step) + self._sizes.updates
        self._facts[step] = {
            "turn": number + 1.0,
            "rollout_seconds": drawn - begun,
            "reward_seconds": judged - drawn,
            **told(samples, verdicts, prompts),
        }
        return Turn(batch, arrays.spread(order, arrays.replicated(self._mesh)))

    def facts(self, step: int) -> dict[str, float]:
        """Tells what is known of the turn that ended with a step, once."""
        return self._facts.pop(step)

    def ids_at(self, step: int) -> list[int]:
        """Lists `Record.index` of the prompts of the turn that holds an update."""
        places = self._order[step // self._sizes.updates]
        return [self._records[at].index for at in places]

    def _drawn(
        self, state: TrainState, prompts: Sequence[np.ndarray], number: int
    ) -> Samples:
        """Continues the prompts; every process gets all samples."""
        key = jax.random.fold_in(jax.random.key(self._seed), number)
        parts = batches.rollouts(
            self._drawing(state),
            prompts,
            key,
            sampler=self._sampler,
            n=self._sizes.samples,
            batch=self._batch * mesh_lib.row_shards(self._mesh),
        )
        on_host = ((part, self._sampler.read(samples)) for part, _, samples in parts)
        return batches.gather(on_host, len(prompts), self._sizes.samples)

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
        tokens, lengths = prompts_lib.padded(prompts, self._sizes.width)
        numbers = np.arange(len(prompts), dtype=np.int32)
        host = Prompts(tokens, lengths, numbers), samples, columns, pairs
        host = jax.tree.map(np.asarray, host)
        place = arrays.row_sharding(self._mesh)
        return self._lay(*arrays.spread(host, place))

    def _rows(
        self,
        prompts: Prompts,
        samples: Samples,
        columns: Mapping[str, Any],
        pairs: Any,
    ) -> Batch:
        """Makes the rows, in parts of a microbatch's size."""
        rows = rows_of(prompts, samples)._replace(response=columns, pairs=pairs)
        size = self._sizes.rows
        return jax.tree.map(lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), rows)


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
        "pairs": float(samples.ended.size),
    }
