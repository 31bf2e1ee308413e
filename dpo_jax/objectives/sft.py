"""Maximum likelihood of every response: SFT on completions, preferred-FT on chosen."""

import dataclasses

import jax.numpy as jnp

from dpo_jax.objectives import terms
from dpo_jax.types import ApplyFn, Array, Batch, Columns, Params, Sums


@dataclasses.dataclass(frozen=True)
class Sft:
    """Token-mean cross-entropy of all responses of the batch.

    Attributes:
      apply: the policy.
      chunk: scored tokens per row whose logits are held at a time.
    """

    apply: ApplyFn
    chunk: int

    def score(self, params: Params, batch: Batch, key: Array) -> Columns:
        """Scores a microbatch's responses."""
        del key
        return terms.score(self.apply, params, batch, self.chunk)

    def loss(
        self, columns: Columns, stats: dict[str, Array], hyper: dict[str, Array]
    ) -> tuple[Sums, dict[str, Array]]:
        """Returns `loss` over tokens, and means over responses."""
        del hyper
        filled = columns.lengths > 0
        tokens = columns.lengths.sum()
        sums: Sums = {
            "loss": (-columns.logps.sum(), tokens),
            "logps/chosen": terms.masked_mean(columns.logps, filled),
            "lengths/chosen": (tokens, filled.sum().astype(jnp.float32)),
            **terms.entropy(columns),
        }
        return sums, stats
