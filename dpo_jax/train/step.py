"""One optimizer step, the same for every algorithm.

`(state, frozen, batch, hyper) -> (state, metrics)`: gradients accumulate over
microbatches exactly, a non-finite loss or gradient leaves the state as it was, what is
frozen is read and neither donated nor differentiated, and hyper-parameters are arrays,
so a sweep over them compiles once. This room never asks what the objective is, nor
whether a reference exists.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

from dpo_jax import columns as columns_lib
from dpo_jax.precision import in_products_of
from dpo_jax.train.optimizer import Direction, Schedule
from dpo_jax.types import (
    Array,
    Batch,
    Columns,
    Frozen,
    Hyper,
    Objective,
    Params,
    Reports,
    Stats,
    Sums,
    TrainState,
)

Metrics = dict[str, Array]
StepFn = Callable[[TrainState, Frozen, Batch, Hyper], tuple[TrainState, Metrics]]
Result = TypeVar("Result")
Outcome = tuple[Array, Sums, Stats]  # loss, sums and counts, new statistics


def init_state(
    params: Params,
    tx: optax.GradientTransformation,
    *,
    seed: Array | int,
    stats: Stats | None = None,
    ref: Params | None = None,
) -> TrainState:
    """Makes the state before the first step.

    Args:
      params: float32 masters.
      tx: direction of descent.
      seed: of the run.
      stats: the objective's running statistics before the first step; None = {}.
      ref: a reference that will follow the policy; None where it is frozen.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        stats=stats or {},
        key=jax.random.key_data(jax.random.key(seed)),
        ref=ref,
    )


def accumulate(
    objective: Objective,
    params: Params,
    frozen: Frozen,
    stats: Stats,
    batch: Batch,
    key: Array,
    hyper: Hyper,
) -> tuple[Params, Outcome]:
    """Differentiates the loss of a whole step, microbatch by microbatch.

    What divides the loss is known from the masks beforehand, so the shares of the parts
    add up to the global mean, however ragged they are. Where a loss couples the batch,
    the parts are scored first, and the loss over all of them gives each part the
    cotangents to pull back, those of what its trunk reports among them: two passes, as
    in GradCache (arXiv:2101.06983).

    Args:
      objective: scores and loss.
      params: float32 masters.
      frozen: parameters that get no gradient.
      stats: running statistics.
      batch: with a leading axis of microbatches.
      key: of this step.
      hyper: float hyper-parameters.

    Returns:
      The gradient of the loss; the loss, sums and counts, new statistics.
    """
    counts = jax.tree.map(lambda n: n.sum(0), jax.vmap(objective.counts)(batch))

    def score(params: Params, rows: Batch) -> Scored:
        return objective.score(params, frozen, rows, key, hyper)

    def finish(scored: Scored) -> tuple[Array, Outcome]:
        columns, reports = scored
        new = objective.update(columns, stats, hyper)
        loss, sums = objective.loss(columns, reports, new, hyper, counts)
        return loss, (loss, sums, new)

    grad = jax.grad(lambda params, rows: finish(score(params, rows)), has_aux=True)
    if len(batch.tokens) == 1:
        return grad(params, jax.tree.map(lambda leaf: leaf[0], batch))
    if objective.couples:
        return _in_two_passes(score, finish, params, batch)
    grads, (loss, sums) = _in_parts(grad, params, batch)
    return grads, (loss, sums, stats)


Scored = tuple[Columns, Reports]
Score = Callable[[Params, Batch], Scored]
Finish = Callable[[Scored], tuple[Array, Outcome]]


def _in_parts(
    grad: Callable[[Params, Batch], tuple[Params, Outcome]],
    params: Params,
    batch: Batch,
) -> tuple[Params, tuple[Array, Sums]]:
    """Adds up the parts of a loss that does not couple them."""

    def one(rows: Batch) -> tuple[Params, tuple[Array, Sums]]:
        grads, (loss, sums, _) = grad(params, rows)
        return grads, (loss, sums)

    return added(one, batch)


def _in_two_passes(
    score: Score, finish: Finish, params: Params, batch: Batch
) -> tuple[Params, Outcome]:
    """Scores all parts, takes the loss of them all, pulls back through each."""
    parts = jax.lax.map(lambda rows: score(params, rows), batch)
    values, rest = floats_apart(parts)

    def whole(values: list[Array]) -> tuple[Array, Outcome]:
        columns, reports = rest(values)
        summed = jax.tree.map(lambda part: part.sum(0), reports)
        return finish((columns_lib.flat(columns), summed))

    cotangents, judged = jax.grad(whole, has_aux=True)(values)

    def one(part: tuple[Batch, list[Array]]) -> Params:
        rows, cotangent = part
        again = lambda params: floats_apart(score(params, rows))[0]  # noqa: E731
        return jax.vjp(again, params)[1](cotangent)[0]

    return added(one, (batch, cotangents)), judged


def floats_apart(tree: Any) -> tuple[list[Array], Callable[[list[Array]], Any]]:
    """Takes the float leaves out of a tree; the function puts others in their place."""
    leaves, shape = jax.tree.flatten(tree)
    at = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact)]

    def rest(values: list[Array]) -> Any:
        whole = list(leaves)
        for i, value in zip(at, values, strict=True):
            whole[i] = value
        return jax.tree.unflatten(shape, whole)

    return [leaves[i] for i in at], rest


def added(function: Callable, parts: Any) -> Any:
    """Sums the trees that a function makes of each part, one part at a time."""
    first = jax.tree.map(lambda leaf: leaf[0], parts)
    shapes = jax.eval_shape(function, first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def body(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(part)), None

    return jax.lax.scan(body, zeros, parts)[0]


def clip(grads: Params, norm: Array, limit: Array | None) -> Params:
    """Scales gradients to a global norm of at most `limit`; None = no limit."""
    if limit is None:
        return grads
    scale = jnp.minimum(1.0, limit / (norm + 1e-6))
    return jax.tree.map(lambda g: g * scale, grads)


def train_step(
    state: TrainState,
    frozen: Frozen,
    batch: Batch,
    hyper: Hyper,
    *,
    objective: Objective,
    tx: Direction,
    lr_factor: Schedule,
    sync_every: int = 0,
) -> tuple[TrainState, Metrics]:
    """Takes one optimizer step.

    Args:
      state: all that changes; donated by `compile_step`.
      frozen: role -> parameters that never change.
      batch: annotated rows with a leading axis of microbatches.
      hyper: `lr`, `clip` where the global gradient norm is bounded, `sync_mix` where
        the reference follows, and what the objective, `tx` and `lr_factor` read.
      objective: scores and loss.
      tx: hyper -> direction of descent.
      lr_factor: (step, hyper) -> factor on `hyper['lr']`.
      sync_every: updates between moves of the reference; 0 = it is frozen.

    Returns:
      The new state, and means over the global batch with `grad_norm` (before
      clipping), `lr` and `ok`. Where `ok` is False, only the step number moved on.
    """
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    hyper = at_step(hyper, state.step)
    grads, (loss, sums, stats) = accumulate(
        objective, state.params, frozen, state.stats, batch, key, hyper
    )
    metrics = {name: s / jnp.maximum(n, 1.0) for name, (s, n) in sums.items()}
    norm = optax.global_norm(grads)
    lr = hyper["lr"] * lr_factor(state.step, hyper)
    updates, opt_state = tx(hyper).update(
        clip(grads, norm, hyper.get("clip")), state.opt_state, state.params
    )
    params = jax.tree.map(lambda p, u: p - lr * u, state.params, updates)
    ref = state.ref
    if sync_every:
        mix = hyper["sync_mix"]
        ref = follow(ref, params, state.step + 1, every=sync_every, mix=mix)
    ok = jnp.isfinite(loss) & jnp.isfinite(norm)
    new = (params, opt_state, stats, ref)
    old = (state.params, state.opt_state, state.stats, state.ref)
    kept = jax.tree.map(lambda n, o: jnp.where(ok, n, o), new, old)
    metrics |= {"loss": loss, "grad_norm": norm, "lr": lr, "ok": ok}
    params, opt_state, stats, ref = kept
    return TrainState(state.step + 1, params, opt_state, stats, state.key, ref), metrics


def at_step(hyper: Hyper, step: Array) -> Hyper:
    """Adds `progress`, the share of the run's steps that are taken, if it is known.

    Args:
      hyper: with `step_share`, 1/T of T steps, where the length of the run is known.
      step: i32[] updates taken.
    """
    if "step_share" not in hyper:
        return hyper
    return hyper | {"progress": step * hyper["step_share"]}


def follow(
    ref: Params, policy: Params, step: Array, *, every: int, mix: Array
) -> Params:
    """Moves the reference towards the policy after every so many updates.

    Args:
      ref: float32 parameters of the reference.
      policy: after update number `step`.
      step: i32[] updates taken.
      every: updates between moves.
      mix: ref ← (1 − mix)·ref + mix·policy; 1 copies the policy.

    Source: TR-DPO, arXiv:2404.09656 (soft: mix < 1; hard: mix = 1).
    """
    share = jnp.where(step % every == 0, mix, 0.0)
    return jax.tree.map(lambda r, p: (1 - share) * r + share * p, ref, policy)


def compile_step(
    step: StepFn,
    *,
    state_shardings: object,
    frozen_shardings: object,
    batch_sharding: object,
    scalar: object,
    dtype: str,
) -> StepFn:
    """Jits a step over a mesh with explicit shardings, the state donated.

    Args:
      step: `(state, frozen, batch, hyper) -> (state, metrics)`.
      state_shardings: tree of `NamedSharding`s like the state.
      frozen_shardings: tree of `NamedSharding`s like what is frozen.
      batch_sharding: of every leaf of the batch.
      scalar: sharding of hyper-parameters and metrics.
      dtype: of the model's computation.
    """
    return jax.jit(
        in_products_of(dtype, step),
        in_shardings=(state_shardings, frozen_shardings, batch_sharding, scalar),
        out_shardings=(state_shardings, scalar),
        donate_argnums=(0,),
    )


def without_transfers(function: Callable[..., Result]) -> Callable[..., Result]:
    """Makes a function refuse to copy between host and device, but where it says so.

    A copy that slips in makes the host wait for the device at every step. `--debug`
    looks at every result for NaN, so it lets them pass.
    """
    debugging = jax.config.jax_debug_nans  # pyright: ignore (set when jax is imported)
    level = "allow" if debugging else "disallow"

    def call(*arguments: Any) -> Result:
        with jax.transfer_guard(level):
            return function(*arguments)

    return call
