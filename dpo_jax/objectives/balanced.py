"""An objective of a model whose routers report: their loads, and a loss of them.

The load-balancing loss is taken over all layers and tokens of the step, so it couples
the batch; without it the routers are only looked at.
"""

import dataclasses
from collections.abc import Callable

from dpo_jax.types import (
    Array,
    Batch,
    Columns,
    Counts,
    Frozen,
    Hyper,
    Objective,
    Params,
    Reports,
    Stats,
    Sums,
)

COEF = "router_aux_coef"


@dataclasses.dataclass(frozen=True, eq=False)
class Balanced:
    """Another objective, and what its policy's routers do.

    Attributes:
      inner: the other.
      balance: reports -> the load-balancing loss.
      largest_load: reports -> tokens of the busiest expert of a layer, 1 = even.
      tokens: the name of the number of tokens that reports are sums over.
      weighted: whether the loss counts, by `hyper['router_aux_coef']`.
    """

    inner: Objective
    balance: Callable[[Reports], Array]
    largest_load: Callable[[Reports], Array]
    tokens: str
    weighted: bool

    @property
    def couples(self) -> bool:
        """Whether the loss can only be taken over the whole batch at once."""
        return self.weighted or self.inner.couples

    def counts(self, batch: Batch) -> Counts:
        """Counts what the other counts."""
        return self.inner.counts(batch)

    def score(
        self, params: Params, frozen: Frozen, batch: Batch, key: Array, hyper: Hyper
    ) -> tuple[Columns, Reports]:
        """Scores as the other does."""
        return self.inner.score(params, frozen, batch, key, hyper)

    def update(self, columns: Columns, stats: Stats, hyper: Hyper) -> Stats:
        """Updates as the other does."""
        return self.inner.update(columns, stats, hyper)

    def of_set(self, whole: Columns) -> dict[str, Array]:
        """Finds what the other finds."""
        return self.inner.of_set(whole)

    def loss(
        self,
        columns: Columns,
        reports: Reports,
        stats: Stats,
        hyper: Hyper,
        counts: Counts,
    ) -> tuple[Array, Sums]:
        """Adds the routers' loss, and `router/*` to the metrics.

        Where nothing couples the batch, those are means over the microbatches.
        """
        share, sums = self.inner.loss(columns, reports, stats, hyper, counts)
        aux, tokens = self.balance(reports), reports[self.tokens]
        if self.weighted:
            share = share + hyper[COEF] * aux
        load = self.largest_load(reports)
        return share, sums | {
            "router/aux_loss": (aux * tokens, tokens),
            "router/largest_load": (load * tokens, tokens),
        }
