"""Which samples of a prompt are compared, and which of two is the better one."""

from itertools import combinations

import numpy as np


def pairs_of(rank: str, samples: int) -> int:
    """Counts the comparisons of a prompt at most, M of the dimension key."""
    return samples * (samples - 1) // 2 if rank == "all_pairs" else 1


def comparisons(
    scores: np.ndarray,
    texts: list[list[bytes]],
    *,
    rank: str,
    labels: str,
    draw: np.random.Generator,
) -> np.ndarray:
    """Pairs the samples of each prompt by their rewards.

    Equal rewards have no order, so `order` does not compare them; two samples of the
    same tokens are never compared.

    Args:
      scores: f64[N, n]; NaN = no verdict, and so no comparison.
      texts: N lists of the n samples' tokens.
      rank: `best_worst`, `all_pairs`, or `random`: two samples that differ in reward.
      labels: `order` of the rewards, or `bradley_terry`: the first is drawn to be the
        better with probability σ(its reward − the other's); `soft`: the order, and the
        loss knows that probability.
      draw: of this turn.

    Returns:
      i32[N, M, 2] (chosen, rejected) samples; −1 = none.

    Source: best against worst: arXiv:2402.04792's online DPO draws two; of more than
    two samples, arXiv:2312.16682 and arXiv:2405.07863 take the best and the worst.
    """
    count = pairs_of(rank, scores.shape[1])
    found = np.full((len(scores), count, 2), -1, np.int32)
    for at, (row, tokens) in enumerate(zip(scores, texts, strict=True)):
        chosen = _of_prompt(row, tokens, rank, draw, ties=labels != "order")
        for place, (better, worse) in enumerate(chosen):
            if labels == "bradley_terry":
                sure = 1.0 / (1.0 + np.exp(row[worse] - row[better]))
                if draw.random() >= sure:
                    better, worse = worse, better
            found[at, place] = better, worse
    return found


def _of_prompt(
    scores: np.ndarray,
    tokens: list[bytes],
    rank: str,
    draw: np.random.Generator,
    *,
    ties: bool,
) -> list[tuple[int, int]]:
    """Lists (better, worse) of one prompt."""
    judged = np.flatnonzero(~np.isnan(scores)).tolist()
    ordered = sorted(judged, key=lambda i: -scores[i])  # stable: the first of equals
    telling = [
        (a, b)
        for a, b in combinations(ordered, 2)
        if (ties or scores[a] > scores[b]) and tokens[a] != tokens[b]
    ]
    if rank == "all_pairs" or not telling:
        return telling
    if rank == "random":
        return [telling[draw.integers(len(telling))]]
    return [(a, b) for a, b in telling if (a, b) == (ordered[0], ordered[-1])]
