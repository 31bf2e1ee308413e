"""The policy and the reference: which folder, which spec, where their weights lie."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dpo_jax.data import tokenize
from dpo_jax.errors import ConfigError, DeviceError
from dpo_jax.models import files, hf
from dpo_jax.models.decoder import Decoder, abstract_params, init_params
from dpo_jax.models.spec import DecoderSpec, preset
from dpo_jax.sharding import arrays, rules
from dpo_jax.train import annotate
from dpo_jax.types import ApplyFn, Array, Params


class Model(NamedTuple):
    """A decoder on a mesh.

    Attributes:
      spec: what it computes.
      folder: where its weights come from; None = drawn from the seed.
      apply: with activations spread by rows.
      apply_anywhere: without, for batches that no mesh divides.
    """

    spec: DecoderSpec
    folder: Path | None
    apply: ApplyFn
    apply_anywhere: ApplyFn


def find_model(config: ConfigDict, tokenizer: Any) -> tuple[Path | None, DecoderSpec]:
    """Finds the policy's folder and spec, or draws them up from a preset.

    Raises:
      ModelError: if the folder cannot be used, or the tokenizer does not fit it.
    """
    largest = tokenize.max_token_id(tokenizer)
    if config.model.preset:
        longest = config.data.max_tokens
        spec = preset(config.model.preset, vocab=largest + 1, max_positions=longest)
        return None, spec
    folder = files.resolve(config.model.path, config.model.revision)
    spec = hf.spec_of(files.read_config(folder))
    tokenize.check_ids(largest, spec.vocab)
    if spec.learned_positions and config.data.max_tokens > spec.max_positions:
        raise ConfigError(
            f"data.max_tokens={config.data.max_tokens} exceeds the "
            f"{spec.max_positions} learned positions of {folder}"
        )
    return folder, spec


def make_model(
    config: ConfigDict, folder: Path | None, spec: DecoderSpec, *, dtype: str = ""
) -> Model:
    """Builds a decoder; its weights come later.

    Args:
      config: of the run.
      folder: where the weights will come from; None = drawn.
      spec: what to build.
      dtype: of the computation; '' = model.dtype.

    Raises:
      DeviceError: if heads do not divide over the mesh.
    """
    tensor = config.mesh.tensor
    if tensor > 1 and (spec.heads % tensor or spec.kv_heads % tensor):
        raise DeviceError(
            f"mesh.tensor={tensor} does not divide {spec.heads} heads and "
            f"{spec.kv_heads} kv heads; use a common divisor of both"
        )

    def decoder(constrain: Callable[[Array], Array]) -> ApplyFn:
        module = Decoder(
            spec,
            dtype=jnp.dtype(dtype or config.model.dtype),
            remat=config.model.remat,
            attention=config.model.attention,
            constrain=constrain,
        )
        return lambda params, batch: module.apply({"params": params}, batch)

    return Model(spec, folder, decoder(arrays.constrain_rows), decoder(lambda x: x))


def load_params(model: Model, built: Mesh, dtype: str, *, seed: int) -> Params:
    """Streams weights into the mesh's shards, or draws them there."""
    abstract = abstract_params(model.spec)
    places = rules.shardings(abstract, built, rules.PARAM_RULES)
    if model.folder is None:
        draw = jax.jit(init_params, static_argnums=0, out_shardings=places)
        params = draw(model.spec, jax.random.key(seed))
    else:
        params = hf.load_params(model.folder, model.spec, places)
    return jax.tree.map(lambda x: x.astype(dtype), params)


class Reference(NamedTuple):
    """The frozen reference and the annotator that asks it."""

    model: Model
    params: Params
    annotate: annotate.Annotate


def make_reference(config: ConfigDict, policy: Model, built: Mesh) -> Reference | None:
    """Loads the reference, in its own arrays and dtype; None without one.

    Raises:
      ModelError: if its table does not fit the policy's.
    """
    if config.ref.mode == "none":
        return None
    folder, spec = policy.folder, policy.spec
    if config.ref.path:
        folder = files.resolve(config.ref.path, config.ref.revision)
        spec = hf.spec_of(files.read_config(folder))
        tokenize.check_ids(policy.spec.vocab - 1, spec.vocab)
    dtype = config.ref.dtype or config.model.dtype
    model = make_model(config, folder, spec, dtype=dtype)
    params = load_params(model, built, dtype, seed=config.seed)
    score = functools.partial(
        annotate.ref_token_logps, apply=model.apply, chunk=config.model.logits_chunk
    )
    compiled = jax.jit(score, out_shardings=arrays.row_sharding(built, leading=1))
    return Reference(model, params, annotate.reference(compiled, params))
