"""Chosen and rejected responses: pairs of log-probs, and the metrics of the field.

This file knows the shape of pairs and the names that users of the field know, and
nothing of models or losses.
"""

import jax
import jax.numpy as jnp

from dpo_jax.losses.shared import log_ratios, mean_logps
from dpo_jax.objectives import terms
from dpo_jax.objectives.judged import Kind
from dpo_jax.types import Array, Columns, Hyper, PairLogps, Sums


def sides(columns: Columns, values: Array | None) -> tuple[Array, Array]:
    """Takes f32[B, R] of the compared responses side by side.

    Returns:
      f32[B·M] of the chosen and of the rejected; zeros where there is no pair, or where
      `values` is None.
    """
    index = columns.pairs.reshape(-1, 2)
    mask = index[:, 0] >= 0
    if values is None:
        nothing = jnp.zeros(mask.shape, columns.lengths.dtype)
        return nothing, nothing
    first, second = (
        jnp.where(mask, values.reshape(-1)[index[:, which]], 0.0) for which in (0, 1)
    )
    return first, second


def gather_pairs(columns: Columns) -> PairLogps:
    """Takes the compared responses side by side; N = B·M, `mask` says which are.

    Without a reference its log-probs are zeros.
    """
    chosen, rejected = sides(columns, columns.response["logps"])
    ref_chosen, ref_rejected = sides(columns, columns.response.get("ref_logps"))
    chosen_lengths, rejected_lengths = sides(columns, columns.lengths)
    pairs = PairLogps(
        chosen=chosen,
        rejected=rejected,
        ref_chosen=jax.lax.stop_gradient(ref_chosen),
        ref_rejected=jax.lax.stop_gradient(ref_rejected),
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
        mask=columns.pairs.reshape(-1, 2)[:, 0] >= 0,
    )
    if "ratings" in columns.response:
        better, worse = sides(columns, columns.response["ratings"])
        pairs = pairs._replace(chosen_ratings=better, rejected_ratings=worse)
    if "kls" in columns.response:
        better, worse = sides(columns, columns.response["kls"])
        pairs = pairs._replace(chosen_kls=better, rejected_kls=worse)
    if "prompt_logps" in columns.response:
        pairs = pairs._replace(
            chosen_prompt=sides(columns, columns.response["prompt_logps"])[0]
        )
    if "noise" in columns.response:
        pairs = pairs._replace(noise=sides(columns, columns.response["noise"])[0])
    return pairs


def take_pairs(columns: Columns) -> tuple[PairLogps, Array]:
    """Takes the pairs, and which of them count."""
    pairs = gather_pairs(columns)
    return pairs, pairs.mask


def bradley_terry(columns: Columns, pairs: PairLogps) -> tuple[Array, PairLogps]:
    """Says how likely each pair's order is by the rewards, and turns the pairs round.

    Args:
      columns: with the reward of each response, `scores`.
      pairs: gathered from them.

    Returns:
      f32[N] σ(reward of the chosen − of the rejected), and the pairs the other way.
    """
    chosen, rejected = sides(columns, columns.response["scores"])
    turned = pairs._replace(
        chosen=pairs.rejected,
        rejected=pairs.chosen,
        ref_chosen=pairs.ref_rejected,
        ref_rejected=pairs.ref_chosen,
        chosen_lengths=pairs.rejected_lengths,
        rejected_lengths=pairs.chosen_lengths,
        chosen_ratings=pairs.rejected_ratings,
        rejected_ratings=pairs.chosen_ratings,
        chosen_kls=pairs.rejected_kls,
        rejected_kls=pairs.chosen_kls,
    )
    return jax.nn.sigmoid(chosen - rejected), turned


def metrics(columns: Columns, pairs: PairLogps, hyper: Hyper) -> Sums:
    """Averages what the field reports of pairs."""
    sums = terms.token_metrics(columns) | chosen_accuracy(columns)
    sums |= pair_metrics(pairs, hyper.get("beta"))
    known = "ref_logps" in columns.response
    return sums | reference_metrics(pairs) if known else sums


def metrics_of_means(columns: Columns, pairs: PairLogps, hyper: Hyper) -> Sums:
    """Averages the same with `rewards/*` that are β × log-prob per token.

    For losses that compare these, so that accuracy never contradicts the loss.
    """
    chosen, rejected = mean_logps(pairs)
    means = rewards(hyper["beta"] * chosen, hyper["beta"] * rejected)
    sums = metrics(columns, pairs, hyper)
    return sums | terms.masked_means(means, pairs.mask)


def chosen_accuracy(columns: Columns) -> Sums:
    """Says how many chosen tokens are the likeliest; of them alone, as TRL counts."""
    correct, _ = sides(columns, columns.response["correct"])
    tokens, _ = sides(columns, columns.lengths)
    return {"mean_token_accuracy": (correct.sum(), tokens.sum())}


def pair_metrics(pairs: PairLogps, beta: Array | None) -> Sums:
    """Averages what needs no reference, and the implicit rewards where β is known.

    `rewards/*` are β × summed log-ratio; without a reference, β × log-prob.
    """
    means = {
        "logps/chosen": pairs.chosen,
        "logps/rejected": pairs.rejected,
        "lengths/chosen": pairs.chosen_lengths,
        "lengths/rejected": pairs.rejected_lengths,
    }
    if beta is not None:
        means |= rewards(*(beta * ratio for ratio in log_ratios(pairs)))
    return terms.masked_means(means, pairs.mask)


def rewards(chosen: Array, rejected: Array) -> dict[str, Array]:
    """Names the implicit rewards of pairs and what follows from them."""
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": terms.wins(chosen, rejected),
    }


def reference_metrics(pairs: PairLogps) -> Sums:
    """Averages the reference's log-probs and how far the chosen response moved."""
    ratio = pairs.chosen - pairs.ref_chosen
    means = {
        "logps/ref_chosen": pairs.ref_chosen,
        "logps/ref_rejected": pairs.ref_rejected,
        "displacement/chosen": ratio,
        "displacement/chosen_falling": (ratio < 0).astype(jnp.float32),
    }
    return terms.masked_means(means, pairs.mask)


def metrics_of_samples(columns: Columns, pairs: PairLogps, hyper: Hyper) -> Sums:
    """Averages the same, and the KL to the reference over all samples."""
    sums = metrics(columns, pairs, hyper)
    if "ref_logps" not in columns.response:
        return sums
    ratio = columns.response["logps"] - columns.response["ref_logps"]
    return sums | {"kl": terms.masked_mean(ratio, columns.lengths > 0)}


PAIRS = Kind("pairs", "pairs", take_pairs, metrics)
SAMPLED_PAIRS = PAIRS._replace(rows="prompts", metrics=metrics_of_samples)
