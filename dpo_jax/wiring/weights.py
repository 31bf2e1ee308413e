"""The weights of the models of a run: loaded, drawn, merged, or as shapes.

A role may hold all of a model, or what lies beside a base that it shares.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dpo_jax.errors import ConfigError
from dpo_jax.models import hf, lora, peft, scalar
from dpo_jax.models.decoder import abstract_params, init_params
from dpo_jax.models.spec import DecoderSpec
from dpo_jax.roles import LORA, whole
from dpo_jax.sharding import rules
from dpo_jax.types import Frozen, Params
from dpo_jax.wiring.model import Model, stored_spec


def load_params(
    model: Model, mesh: Mesh, *, seed: int, table: rules.Rules = rules.PARAM_RULES
) -> Params:
    """Streams the weights of any role into the mesh's shards, or draws them there.

    Args:
      model: of the role; a scalar head that its folder does not have is drawn.
      mesh: of the run.
      seed: of what is drawn.
      table: rules of where they lie.

    Returns:
      Weights in the dtype that they are held in.
    """
    places = param_places(model.spec, mesh, table)
    stored = None
    if model.folder is None:
        draw = jax.jit(init_params, static_argnums=0, out_shardings=places)
        params = draw(model.spec, jax.random.key(seed))
    else:
        stored = stored_spec(model)
        params = hf.load_params(model.folder, stored, param_places(stored, mesh, table))
        if stored != model.spec:
            params = scalar.from_policy(params, model.spec, jax.random.key(seed))
            params = jax.device_put(params, places)
    if model.scores_zero and stored != model.spec:
        params = params | {"score": jax.tree.map(jnp.zeros_like, params["score"])}
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x.astype(_held(model, path)), params
    )


def _held(model: Model, path: Sequence[Any]) -> jnp.dtype:
    """Says in which dtype a leaf is held: a score beside adapters is a master."""
    trained = model.adapters is not None and rules.path_name(path).startswith("score")
    return jnp.dtype("float32" if trained else model.held)


def own_params(model: Model, mesh: Mesh, *, seed: int) -> Params:
    """Loads what a role has beside a base that it shares, or all of one without.

    Returns:
      Its adapters, {} where it has none; see `roles.whole`.
    """
    if model.adapters is None:
        return {} if model.on_base else load_params(model, mesh, seed=seed)
    adapters, folder = model.adapters, model.adapters.folder
    places = rules.shardings({LORA: lora.abstract(adapters)}, mesh, rules.PARAM_RULES)
    if folder is not None:
        return {LORA: peft.load(folder, adapters, model.spec, places[LORA])}
    drawn = jax.jit(lora.draw, static_argnums=0, out_shardings=places[LORA])
    return {LORA: drawn(adapters, jax.random.key(seed))}


def base_params(model: Model, mesh: Mesh, *, seed: int) -> Frozen:
    """Loads what stands still of a policy with adapters: `base`; {} of one without."""
    if model.adapters is None:
        return {}
    return {"base": load_params(model, mesh, seed=seed)}


def merged(
    model: Model, trained: Params, mesh: Mesh, *, seed: int
) -> tuple[Model, Params]:
    """Adds what was trained to float32 weights.

    Args:
      model: a policy with adapters.
      trained: its part of the train state.
      mesh: of the devices.
      seed: of what is drawn.

    Returns:
      A model without adapters, and its weights.

    Raises:
      ConfigError: if the policy has none.
    """
    adapters, plain = model.adapters, model._replace(adapters=None, held="float32")
    if adapters is None:
        raise ConfigError(
            "--merged is of a run that trained adapters (lora.rank > 0); leave it out"
        )
    both = whole(trained, {"base": load_params(plain, mesh, seed=seed)})
    add = jax.jit(lora.merge, static_argnums=1, donate_argnums=0)
    return plain, jax.device_put(add(both, adapters), param_places(plain.spec, mesh))


def trained_shapes(model: Model) -> Params:
    """Returns the shapes of what is trained of a policy: all, or what lies beside."""
    params = abstract_params(model.spec)
    if model.adapters is None:
        return params
    scores = {"score": params["score"]} if model.spec.scalar else {}
    return {LORA: lora.abstract(model.adapters), **scores}


def param_places(
    spec: DecoderSpec, mesh: Mesh, table: rules.Rules = rules.PARAM_RULES
) -> Any:
    """Gives the sharding of every parameter."""
    return rules.shardings(abstract_params(spec), mesh, table)


def abstract_weights(model: Model, mesh: Mesh) -> Params:
    """Returns parameters as shapes with shardings, in the dtype they are held in."""
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.ShapeDtypeStruct(leaf.shape, _held(model, path)),
        abstract_params(model.spec),
    )
    return rules.with_shardings(params, param_places(model.spec, mesh))


def abstract_own(model: Model, mesh: Mesh) -> Params:
    """Returns as shapes with shardings what `own_params` loads."""
    if model.adapters is None:
        return {} if model.on_base else abstract_weights(model, mesh)
    own = {LORA: lora.abstract(model.adapters)}
    return rules.with_shardings(own, rules.shardings(own, mesh, rules.PARAM_RULES))
