"""Responses judged one by one as desirable or not.

A response labelled 0 belongs to another prompt; it is there for KTO's estimate of the
KL and enters no mean.
"""

import jax
import jax.numpy as jnp

from dpo_jax.objectives import terms
from dpo_jax.objectives.judged import Kind
from dpo_jax.types import Array, Columns, Hyper, SingleLogps, Sums


def take_singles(columns: Columns) -> tuple[SingleLogps, Array]:
    """Takes the responses of a batch one by one; N = B·R. Judged ones count."""
    mask = columns.lengths.reshape(-1) > 0
    at = lambda name: jnp.where(mask, columns.response[name].reshape(-1), 0)  # noqa: E731
    record = SingleLogps(
        logps=at("logps"),
        ref_logps=jax.lax.stop_gradient(at("ref_logps")),
        labels=at("labels").astype(jnp.int32),
        mask=mask,
    )
    return record, mask & (record.labels != 0)


def metrics(columns: Columns, record: SingleLogps, hyper: Hyper) -> Sums:
    """Averages by label; chosen = desirable, rejected = undesirable."""
    judged = record.mask & (record.labels != 0)
    lengths = columns.lengths.reshape(-1)
    of_judged = {
        name: jnp.where(judged, columns.response[name].reshape(-1), 0.0)
        for name in ("entropy", "correct")
    }
    sums = terms.token_metrics(
        columns._replace(lengths=jnp.where(judged, lengths, 0.0), response=of_judged)
    )
    for name, label in (("chosen", 1), ("rejected", -1)):
        mask = record.mask & (record.labels == label)
        ratio = record.logps - record.ref_logps
        means = {
            f"logps/{name}": record.logps,
            f"logps/ref_{name}": record.ref_logps,
            f"rewards/{name}": hyper["beta"] * ratio,
            f"lengths/{name}": lengths,
        }
        sums |= terms.masked_means(means, mask)
    ratio = record.logps - record.ref_logps
    borrowed = record.mask & (record.labels == 0)
    return sums | {"mismatched_kl": terms.masked_mean(ratio, borrowed)}


SINGLES = Kind("singles", "singles", take_singles, metrics)
