"""The programs of a run: what it runs, with arguments that are shapes and nothing else.

The parts of a run are built as `train` builds them; `compiling` compiles what is listed
here.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dpo_jax import roles
from dpo_jax.data import layouts
from dpo_jax.models import blockwise
from dpo_jax.sampling import batches
from dpo_jax.sampling.rollout import abstract_prompts, abstract_samples
from dpo_jax.sharding import arrays, rules
from dpo_jax.sharding import mesh as mesh_lib
from dpo_jax.train import annotate
from dpo_jax.types import Batch, Params
from dpo_jax.wiring import weights
from dpo_jax.wiring.compiling import Asked, Loops, Program, compiled
from dpo_jax.wiring.parts import Parts
from dpo_jax.wiring.turns import Turn


def loops_of(parts: Parts, *, scored: int, tokens: int) -> Loops:
    """Counts the loops of rows of so many tokens, C and T of the dimension key."""
    chunks = -(-scored // parts.config.model.logits_chunk)
    return Loops(parts.model.spec.rows, chunks, -(-tokens // blockwise.BLOCK))


def of_step(parts: Parts, shape: layouts.Shape | None = None) -> list[Asked]:
    """Lists what a step of `train` runs, without an on-policy run's turns.

    Args:
      parts: of the run.
      shape: of a microbatch over the whole mesh; None = the largest of the plan.

    Returns:
      The pass of a live reference, if there is one, and the train step.
    """
    assert parts.train is not None
    loads = parts.train
    most = max(range(len(loads)), key=lambda step: loads.shape_at(step).rows)
    shape = shape or loads.shape_at(most)
    batch = abstract_batch(shape, loads.microbatches, parts.mesh)
    loops = loops_of(parts, scored=shape.scored, tokens=shape.tokens)
    asked, batch = with_reference(parts, batch, loops)
    given = {**state_of(parts), "batch": batch, "hyper": hyper_of(parts)}
    return [*asked, Asked(parts.updates, parts.trainer.step, given, loops=loops)]


def state_of(parts: Parts) -> dict[str, Any]:
    """Returns what trains and what is frozen, as shapes."""
    return {"state": parts.trainer.abstract, "frozen": parts.trainer.frozen}


def hyper_of(parts: Parts) -> Any:
    """Returns the float hyper-parameters, as shapes."""
    hyper = jax.eval_shape(parts.trainer.hyper)
    return rules.with_shardings(
        hyper, dict.fromkeys(hyper, arrays.replicated(parts.mesh))
    )


def with_reference(
    parts: Parts, batch: Batch, loops: Loops
) -> tuple[list[Asked], Batch]:
    """Lists the reference's pass, if one runs, and adds the columns that it gives."""
    if parts.ask is None:
        return [], batch
    reference, mesh = parts.reference, parts.mesh
    assert reference is not None
    own, frozen = parts.trainer.abstract.ref, parts.trainer.frozen
    if own is None:
        own = weights.abstract_own(reference, mesh)
    params = roles.whole(own, frozen)
    if parts.ref["mode"] == "cached":  # it does not run beside the step
        return [], annotated(parts.ask, params, batch, mesh)
    pass_ = Asked("reference", parts.ask, {"ref": params, "batch": batch}, loops=loops)
    return [pass_], annotated(parts.ask, params, batch, mesh)


def abstract_batch(shape: layouts.Shape, microbatches: int, mesh: Mesh) -> Batch:
    """Returns the step's batch as shapes, before anything is annotated."""
    place = arrays.row_sharding(mesh, leading=1)

    def one(leaf: Any) -> jax.ShapeDtypeStruct:
        full = (microbatches, shape.rows, *leaf.shape[1:])
        return jax.ShapeDtypeStruct(full, leaf.dtype, sharding=place)

    return jax.tree.map(one, layouts.empty(shape._replace(rows=1)))


def annotated(ask: Any, params: Params, batch: Batch, mesh: Mesh) -> Batch:
    """Adds the columns that a reference would give."""
    columns = jax.eval_shape(ask, params, batch)
    place = arrays.row_sharding(mesh, leading=1)
    places = dict.fromkeys(columns, place)
    return annotate.with_tokens(batch, rules.with_shardings(columns, places))


def of_turn(parts: Parts) -> list[Asked]:
    """Lists what a turn of an on-policy run runs, but for sampling, see `sampling`.

    Returns:
      The reward model's pass, the reference's, and the turn's updates.
    """
    turns, mesh = parts.turns, parts.mesh
    assert turns is not None
    sizes, spread = turns.sizes, arrays.row_sharding(mesh)
    new = sizes.samples * sizes.new_tokens
    loops = loops_of(parts, scored=new, tokens=sizes.width + new)
    asked = []
    if parts.scorer is not None:
        part = shares_of(parts)[0]
        given = {
            "reward": parts.trainer.frozen["reward"],
            "prompts": abstract_prompts(part.size, part.width, spread),
            "samples": abstract_samples(part.size, part.n, sizes.new_tokens, spread),
        }
        often = len(shares_of(parts))
        asked.append(
            Asked("reward model", parts.scorer.score, given, loops=loops, times=often)
        )
    passes, batch = with_reference(parts, turns.abstract(), loops)
    order = (sizes.updates, sizes.microbatches, sizes.rows)
    turn = Turn(batch, arrays.shaped(order, jnp.int32, arrays.replicated(mesh)))
    given = {**state_of(parts), "batch": turn, "hyper": hyper_of(parts)}
    step = Asked(parts.updates, parts.trainer.step, given, loops=loops)
    return [*asked, *passes, step]


def shares_of(parts: Parts) -> list[batches.Part]:
    """Lists what is drawn together, as `batches.rollouts` shares prompts out."""
    turns = parts.turns
    assert turns is not None
    sizes, shards = turns.sizes, mesh_lib.row_shards(parts.mesh)
    each = parts.config.rollout.batch * shards
    lengths = [sizes.width] * sizes.prompts
    return list(batches.plan(lengths, sizes.samples, batch=each, shards=shards))


def sampling(parts: Parts, tell: Callable[[str], None]) -> list[Program]:
    """Compiles what draws the samples of a turn: each part's result is the next's.

    Args:
      parts: of an on-policy run.
      tell: is told what is compiled next.
    """
    turns, mesh = parts.turns, parts.mesh
    assert turns is not None
    sampler, shares = turns.sampler, shares_of(parts)
    part, new = shares[0], sampler.max_new_tokens
    token_by_token = Loops(0, new, 2 * new - 1)
    abstract, frozen = parts.trainer.abstract, parts.trainer.frozen
    params = turns.drawing(abstract, frozen)
    found = []

    def run(asked: Asked) -> Any:
        tell(asked.name)
        found.append(compiled(asked, mesh.size))
        return found[-1].outputs

    ready = run(Asked("weights to decode", sampler.ready, {"params": params}))
    spread, alone = arrays.row_sharding(mesh), arrays.replicated(mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    given = {
        "params": params,
        "prompts": abstract_prompts(part.size, part.width, spread),
        "key": arrays.shaped(key.shape, key.dtype, alone),
        "first": np.int32(0),
    }
    often = len(shares)
    state = run(Asked("prefill", sampler.start, given, (part.n,), times=often))
    if ready is not None and state is not None:
        rows = part.size * part.n
        given = {
            "weights": ready,
            "state": state,
            "until": np.int32(0),
            "kept": arrays.shaped((rows,), jnp.int32, spread),
        }
        run(
            Asked(
                "decode",
                sampler.advance,
                given,
                loops=token_by_token,
                times=often,
                reads=new,
            )
        )
    return found
