"""Losses as numbers to draw: value and gradient where one pair is moved about.

A pair's log-ratios a (chosen) and b (rejected) are laid on a grid, and the functions of
the table are evaluated there, with their own gradients, at the usual setting. What else
a loss reads stands still; `Scene` says where. This room draws nothing.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import schema
from dpo_jax.losses import LOSSES, Loss, LossTable, find, keywords, options
from dpo_jax.losses.loss import default_of
from dpo_jax.losses.tokens import WEIGHTS
from dpo_jax.types import (
    Array,
    ListLogps,
    PairLogps,
    PairScores,
    SingleLogps,
    TokenPlaces,
)

Evaluate = Callable[[Array], tuple[Array, Array]]

POINTS = 161  # of a curve
SIDE = 33  # of a map
REF_LOGP = -2.0  # nats a token, of the reference
LENGTH = 40.0  # tokens of a response
KLS = (2.0, 6.0)  # nats, of the chosen and the rejected response
RATINGS = (5.0, 3.0)
MIDDLE_RATING = 4.0  # in a list of three
OTHER_MARGINS = (-24.0, -12.0, -6.0, 4.0, 8.0, 16.0, 28.0)  # nats, of a batch's others
OTHER_REF_MARGINS = (10.0, -14.0, 4.0, -6.0, 18.0, -10.0, -2.0)


class LossCurve(NamedTuple):
    """A loss about a = b = 0, to be drawn; NumPy arrays of float64.

    a and b are the chosen and the rejected log-ratio (scores, of a reward model) of the
    pair that moves; Δ = a − b.

    Attributes:
      setting: its options, name -> value.
      unit: of a, b and Δ.
      notes: what stands still, a sentence each.
      beta: β of the DPO in `dpo_loss` and `dpo_slope`.
      delta: [P] Δ, with a = Δ/2 and b = −Δ/2.
      loss: [P] its value along Δ.
      to_chosen: [P] ∂L/∂a along Δ, with the loss's own stop-gradients.
      to_rejected: [P] ∂L/∂b.
      dpo_loss: [P] DPO's value along Δ.
      dpo_slope: [P] DPO's dL/dΔ.
      side: [S] a or b along a side of the map.
      map: [S, S] its value at (b, a).
      map_to_chosen: [S, S] ∂L/∂a at (b, a).
      map_to_rejected: [S, S] ∂L/∂b at (b, a).
    """

    setting: dict[str, Any]
    unit: str
    notes: tuple[str, ...]
    beta: float
    delta: np.ndarray
    loss: np.ndarray
    to_chosen: np.ndarray
    to_rejected: np.ndarray
    dpo_loss: np.ndarray
    dpo_slope: np.ndarray
    side: np.ndarray
    map: np.ndarray
    map_to_chosen: np.ndarray
    map_to_rejected: np.ndarray


class Scene(NamedTuple):
    """What stands still while a pair moves.

    Attributes:
      beta: β of the DPO that a loss is compared with.
      span: Δ runs from −span to span nats; 0 = 4/β of that DPO.
      lengths: tokens of the chosen and the rejected response.
      unit: of a and b.
    """

    beta: float
    span: float = 0.0
    lengths: tuple[float, float] = (LENGTH, LENGTH)
    unit: str = "nats"


SCENES: dict[str, Scene] = {  # where it is not the loss's own β, on sums of nats
    "ipo": Scene(0.1, span=24.0),
    "r_dpo": Scene(0.1, lengths=(50.0, 30.0)),
    "sampo": Scene(0.1, lengths=(50.0, 30.0)),
    "chi_po": Scene(0.1, span=6.0),
    "alpha_dpo": Scene(2.5 / LENGTH),
    "simpo": Scene(2.0 / LENGTH),
    "alpha_po": Scene(2.0 / LENGTH),
    "orpo": Scene(1.0 / LENGTH, span=80.0),
    "slic_hf": Scene(1.0, span=8.0),
    "bradley_terry": Scene(1.0, span=8.0, unit="units of the score"),
}


def curve(name: str, table: LossTable = LOSSES) -> LossCurve:
    """Evaluates a loss at its usual setting.

    Args:
      name: of the table.
      table: of losses.

    Raises:
      ConfigError: if the table has no such name.
    """
    row = find(name, table)
    scene, chosen = scene_of(name, row), usual(row)
    span = scene.span or 4.0 / scene.beta
    delta, side = np.linspace(-span, span, POINTS), np.linspace(-span, span, SIDE) / 2
    along = np.stack([delta / 2, -delta / 2], axis=-1)
    rejected, grid = np.meshgrid(side, side, indexing="ij")
    over = np.stack([grid, rejected], axis=-1).reshape(-1, 2)
    values, grads = evaluate(row, chosen, scene, np.concatenate([along, over]))
    dpo_values, dpo_grads = _numbers(_unit_dpo(), scene.beta * along)
    square = (SIDE, SIDE)
    return LossCurve(
        setting=chosen,
        beta=scene.beta,
        unit=scene.unit,
        delta=delta,
        loss=values[:POINTS],
        to_chosen=grads[:POINTS, 0],
        to_rejected=grads[:POINTS, 1],
        dpo_loss=dpo_values,
        dpo_slope=scene.beta * dpo_grads[:, 0],
        side=side,
        map=values[POINTS:].reshape(square),
        map_to_chosen=grads[POINTS:, 0].reshape(square),
        map_to_rejected=grads[POINTS:, 1].reshape(square),
        notes=notes(row, scene),
    )


def usual(row: Loss) -> dict[str, Any]:
    """Returns the options of a loss at the usual setting, name -> value."""
    defaults = {name: key.default for name, key in schema.section("loss").items()}
    own = {name: default_of(row, name) for name in options(row)}
    at = {**own, **defaults, **row.usual}
    return {name: at[name] for name in options(row)}


def scene_of(name: str, row: Loss) -> Scene:
    """Finds where a loss is drawn: beside the DPO of its own β unless listed."""
    return SCENES.get(name) or Scene(usual(row).get("beta", 0.1))


def evaluate(
    row: Loss, chosen: Mapping[str, Any], scene: Scene, points: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Computes a loss and its gradient at points.

    Args:
      row: of the table.
      chosen: its options.
      scene: what stands still.
      points: [P, 2] of (a, b).

    Returns:
      [P] values and [P, 2] gradients, float64 (computed in float32).
    """
    return _numbers(_compiled(row, chosen, scene), points)


def _compiled(row: Loss, chosen: Mapping[str, Any], scene: Scene) -> Evaluate:
    """Builds f32[P, 2] -> (values f32[P], gradients f32[P, 2])."""

    def value(point: Array) -> Array:
        stats = resting_stats(row, chosen, scene)
        moved = point * token_weights(row, chosen, scene)
        losses = row(record(row, scene, moved), {**chosen, **stats})
        return losses.sum() if shares(row) else losses[0]

    quick = {"xla_backend_optimization_level": 0}  # the compiler takes all the time
    return jax.jit(jax.vmap(jax.value_and_grad(value)), compiler_options=quick)


@functools.cache
def _unit_dpo() -> Evaluate:
    """Builds DPO at β = 1; at another β its value is that at (βa, βb).

    Of responses of one token: lengths are nothing to it, and log-probs near 0 keep more
    of a and b in float32 than those near −80.
    """
    row = find("dpo", LOSSES)
    return _compiled(row, usual(row) | {"beta": 1.0}, Scene(1.0, lengths=(1.0, 1.0)))


def _numbers(both: Evaluate, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found = jax.device_get(both(jnp.asarray(points, jnp.float32)))
    return found[0].astype(np.float64), found[1].astype(np.float64)


def shares(row: Loss) -> bool:
    """Says whether what is drawn is a sum over a record and not its first element."""
    return row.couples or row.takes != "pairs"


def has_others(row: Loss) -> bool:
    """Says whether a pair is drawn among others of its batch."""
    return row.takes == "pairs" and (row.couples or follows(row))


def follows(row: Loss) -> bool:
    """Says whether running statistics are read at the usual setting."""
    return row.running is not None and usual(row).get("baseline") != "none"


def resting_stats(row: Loss, chosen: Mapping[str, Any], scene: Scene) -> dict[str, Any]:
    """Computes the running statistics that the loss takes, with the pair at 0."""
    if row.running is None:
        return {}
    start = {name: jnp.float32(value) for name, value in row.running.start.items()}
    own = {name: chosen[name] for name in keywords(row.running.update)}
    still = record(row, scene, jnp.zeros(2, jnp.float32))
    moved = row.running.update(still, start, **own)
    return {name: moved[name] for name in keywords(row.fn) if name in moved}


def token_weights(row: Loss, chosen: Mapping[str, Any], scene: Scene) -> Array:
    """Returns by what a and b count where each token moves by the same, f32[2]."""
    if not row.token_weights:
        return jnp.ones(2, jnp.float32)
    function = WEIGHTS[row.token_weights]
    length = jnp.asarray(scene.lengths, jnp.float32)[:, None]  # [2, 1]
    places = jnp.arange(int(max(scene.lengths)))[None]  # [1, C]
    index = jnp.broadcast_to(places, (2, places.size))
    own = {name: chosen[name] for name in keywords(function)}
    weights = function(TokenPlaces(index, index, length, length[::-1]), **own)
    return jnp.where(index < length, weights, 0.0).sum(-1) / length[:, 0]


def record(row: Loss, scene: Scene, point: Array) -> Any:
    """Builds what a loss takes where the moving pair stands at (a, b)."""
    return RECORDS[row.takes](row, scene, point)


def pairs(row: Loss, scene: Scene, point: Array) -> PairLogps:
    """Builds the pair, and the others of its batch behind it where they matter."""
    margins = jnp.asarray(OTHER_MARGINS if has_others(row) else (), jnp.float32)
    shifts = jnp.asarray(OTHER_REF_MARGINS if has_others(row) else (), jnp.float32)
    shifts = jnp.concatenate([jnp.zeros(1), shifts])
    ratios = [
        jnp.concatenate([point[side, None], sign * margins / 2])
        for side, sign in ((0, 1), (1, -1))
    ]
    one = jnp.ones_like(shifts)
    lengths = [length * one for length in scene.lengths]
    refs = [REF_LOGP * lengths[0] + shifts / 2, REF_LOGP * lengths[1] - shifts / 2]
    found = PairLogps(refs[0] + ratios[0], refs[1] + ratios[1], *refs, *lengths)
    if "kls" in row.columns:
        found = found._replace(chosen_kls=KLS[0] * one, rejected_kls=KLS[1] * one)
    if "ratings" in row.columns:
        better, worse = RATINGS
        found = found._replace(
            chosen_ratings=better * one, rejected_ratings=worse * one
        )
    return found


def singles(row: Loss, scene: Scene, point: Array) -> SingleLogps:
    """Builds a desirable response at a, an undesirable at b, two mismatched at 0."""
    del row
    refs = REF_LOGP * jnp.asarray(scene.lengths + scene.lengths, jnp.float32)
    ratios = jnp.concatenate([point, jnp.zeros(2)])
    labels = jnp.asarray([1, -1, 0, 0])
    return SingleLogps(refs + ratios, refs, labels, jnp.ones(4, bool))


def lists(row: Loss, scene: Scene, point: Array) -> ListLogps:
    """Builds a ranking of three: the best at a, the worst at b, the middle at 0."""
    del row, scene
    ratios = jnp.stack([point[0], jnp.zeros(()), point[1]])[None]
    ratings = jnp.asarray([[RATINGS[0], MIDDLE_RATING, RATINGS[1]]], jnp.float32)
    return ListLogps(ratios, jnp.ones((1, 3), bool), ratings)


def scores(row: Loss, scene: Scene, point: Array) -> PairScores:
    """Builds the scores a and b of a pair, no margin demanded."""
    del row, scene
    return PairScores(point[:1], point[1:], jnp.zeros(1))


RECORDS: dict[str, Callable[[Loss, Scene, Array], Any]] = {
    "pairs": pairs,
    "singles": singles,
    "lists": lists,
    "scores": scores,
}


def notes(row: Loss, scene: Scene) -> tuple[str, ...]:
    """Says what stands still while the pair moves."""
    found = []
    if has_others(row):
        margins = ", ".join(f"{m:g}".replace("-", "−") for m in OTHER_MARGINS)
        found.append(
            f"One pair moves in a batch of {len(OTHER_MARGINS) + 1}; the others stay "
            f"at Δ = {margins} nats."
        )
    if row.couples and row.takes == "pairs":
        found.append("Drawn is the sum over the batch.")
    if follows(row) and row.takes == "pairs":
        found.append("Running statistics are those of this batch at a = b = 0.")
    return (*found, *KIND_NOTES[row.takes], *column_notes(row, scene))


def column_notes(row: Loss, scene: Scene) -> list[str]:
    """Says what the columns hold that not every loss reads."""
    lengths, found = scene.lengths, []
    if not row.reference and row.takes == "pairs":
        found.append(
            f"Both responses have {LENGTH:g} tokens and start at {abs(REF_LOGP):g} "
            "nats a token; a and b count from there."
        )
    if lengths[0] != lengths[1]:
        found.append(f"nw = {lengths[0]:g} and nl = {lengths[1]:g} tokens.")
    if row.token_weights:
        found.append("Each token of a response moves by the same.")
    if row.takes == "singles" and row.running is not None:
        found.append("The running mean stays at 0.")
    if "mismatched" in row.columns:
        found.append("Responses of other prompts stay at 0: z₀ = 0.")
    if "kls" in row.columns:
        found.append(f"D_w = {KLS[0]:g} and D_l = {KLS[1]:g} nats.")
    if "ratings" in row.columns:
        found.append(f"The data's ratings are {RATINGS[0]:g} and {RATINGS[1]:g}.")
    return found


KIND_NOTES: dict[str, tuple[str, ...]] = {
    "pairs": (),
    "singles": (
        "A desirable response at a and an undesirable one at b; drawn is their sum.",
    ),
    "lists": ("A ranking of three: the best at a, the middle at 0, the worst at b.",),
    "scores": ("a and b are the scores of the chosen and the rejected response.",),
}
