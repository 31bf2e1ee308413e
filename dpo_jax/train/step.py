"""One optimizer step, the same for every algorithm.

`(state, batch, hyper) -> (state, metrics)`: gradients accumulate over microbatches
exactly, a non-finite loss or gradient leaves the state as it was, and hyper-parameters
are arrays, so a sweep over them compiles once. This room never asks what the objective
is, nor whether a reference exists.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from dpo_jax.train.optimizer import Schedule
from dpo_jax.types import Array, Batch, Objective, Params, Sums, TrainState

Hyper = dict[str, Array]
Metrics = dict[str, Array]
StepFn = Callable[[TrainState, Batch, Hyper], tuple[TrainState, Metrics]]


def init_state(
    params: Params, tx: optax.GradientTransformation, *, seed: int
) -> TrainState:
    """Makes the state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        stats={},
        key=jax.random.key_data(jax.random.key(seed)),
    )


def microbatch_grads(
    objective: Objective,
    params: Params,
    stats: dict[str, Array],
    batch: Batch,
    key: Array,
    hyper: Hyper,
) -> tuple[Params, Sums, dict[str, Array]]:
    """Differentiates one microbatch's loss sum.

    Returns:
      Gradients of the sum (not the mean), the sums and counts, new statistics.
    """

    def total(params: Params) -> tuple[Array, tuple[Sums, dict[str, Array]]]:
        columns = objective.score(params, batch, key)
        sums, new_stats = objective.loss(columns, stats, hyper)
        return sums["loss"][0], (sums, new_stats)

    grads, (sums, new_stats) = jax.grad(total, has_aux=True)(params)
    return grads, sums, new_stats


def accumulate(
    objective: Objective,
    params: Params,
    stats: dict[str, Array],
    batch: Batch,
    key: Array,
    hyper: Hyper,
    *,
    microbatches: int,
) -> tuple[Params, Sums, dict[str, Array]]:
    """Adds gradients, sums and counts over the microbatches.

    The count that divides the loss does not depend on the parameters, so dividing once
    at the end gives the gradient of the global mean, however ragged the parts.

    Args:
      objective: scores and loss.
      params: float32 masters.
      stats: running statistics.
      batch: with a leading axis of microbatches.
      key: of this step; parts fold their number into it.
      hyper: float hyper-parameters.
      microbatches: length of the leading axis.

    Returns:
      (gradients of the mean loss, sums and counts of the step, new statistics).
    """

    def part(index: Array, stats: dict[str, Array], rows: Batch) -> tuple:
        folded = jax.random.fold_in(key, index)
        return microbatch_grads(objective, params, stats, rows, folded, hyper)

    if microbatches == 1:
        rows = jax.tree.map(lambda leaf: leaf[0], batch)
        grads, sums, stats = part(jnp.zeros((), jnp.int32), stats, rows)
    else:
        grads, sums, stats = _scan_parts(part, params, stats, batch, microbatches)
    count = jnp.maximum(sums["loss"][1], 1.0)
    return jax.tree.map(lambda g: g / count, grads), sums, stats


def _scan_parts(
    part: Callable, params: Params, stats: dict[str, Array], batch: Batch, parts: int
) -> tuple[Params, Sums, dict[str, Array]]:
    first = jax.tree.map(lambda leaf: leaf[0], batch)
    shapes = jax.eval_shape(part, jnp.zeros((), jnp.int32), stats, first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[:2])

    def body(carry: tuple, xs: tuple) -> tuple[tuple, None]:
        totals, stats = carry
        *found, stats = part(xs[0], stats, xs[1])
        return (jax.tree.map(jnp.add, totals, tuple(found)), stats), None

    carry, _ = jax.lax.scan(body, (zeros, stats), (jnp.arange(parts), batch))
    (grads, sums), stats = carry
    return grads, sums, stats


def clip(grads: Params, norm: Array, limit: float) -> Params:
    """Scales gradients to a global norm of at most `limit`; 0 = no limit."""
    if not limit:
        return grads
    scale = jnp.minimum(1.0, limit / (norm + 1e-6))
    return jax.tree.map(lambda g: g * scale, grads)


def train_step(
    state: TrainState,
    batch: Batch,
    hyper: Hyper,
    *,
    objective: Objective,
    tx: optax.GradientTransformation,
    lr_factor: Schedule,
    clip_norm: float,
    microbatches: int,
) -> tuple[TrainState, Metrics]:
    """Takes one optimizer step.

    Args:
      state: donated by `compile_step`.
      batch: annotated rows with a leading axis of microbatches.
      hyper: `lr`, and what the objective reads.
      objective: scores and loss.
      tx: direction of descent.
      lr_factor: step -> factor on `hyper['lr']`.
      clip_norm: bound on the global gradient norm; 0 = none.
      microbatches: length of the batch's leading axis.

    Returns:
      The new state, and means over the global batch with `grad_norm` (before
      clipping), `lr` and `ok`. Where `ok` is False, only the step number moved on.
    """
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    grads, sums, stats = accumulate(
        objective,
        state.params,
        state.stats,
        batch,
        key,
        hyper,
        microbatches=microbatches,
    )
    metrics = {name: s / jnp.maximum(n, 1.0) for name, (s, n) in sums.items()}
    norm = optax.global_norm(grads)
    lr = hyper["lr"] * lr_factor(state.step)
    updates, opt_state = tx.update(
        clip(grads, norm, clip_norm), state.opt_state, state.params
    )
    params = jax.tree.map(lambda p, u: p - lr * u, state.params, updates)
    ok = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
    new = (params, opt_state, stats)
    old = (state.params, state.opt_state, state.stats)
    kept = jax.tree.map(lambda n, o: jnp.where(ok, n, o), new, old)
    metrics |= {"grad_norm": norm, "lr": lr, "ok": ok}
    params, opt_state, stats = kept
    return TrainState(state.step + 1, params, opt_state, stats, state.key), metrics


def compile_step(
    step: StepFn, *, state_shardings: object, batch_sharding: object, scalar: object
) -> StepFn:
    """Jits a step over a mesh with explicit shardings, the state donated.

    Args:
      step: `(state, batch, hyper) -> (state, metrics)`.
      state_shardings: tree of `NamedSharding`s like the state.
      batch_sharding: of every leaf of the batch.
      scalar: sharding of hyper-parameters and metrics.
    """
    return jax.jit(
        step,
        in_shardings=(state_shardings, batch_sharding, scalar),
        out_shardings=(state_shardings, scalar),
        donate_argnums=(0,),
    )
