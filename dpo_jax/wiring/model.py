"""The models of a run: which folder, which spec, where their weights lie.

A role (policy, reference, reward, value) is a folder with its spec, the dtype that its
weights are held in and the rules of where they lie; one function loads them all.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh

from dpo_jax.config import Config
from dpo_jax.data import tokenize
from dpo_jax.errors import ConfigError, DeviceError, ModelError
from dpo_jax.models import attention, files, hf, lora, peft, scalar, sites
from dpo_jax.models.decoder import Decoder, abstract_params, init_params
from dpo_jax.models.families import described
from dpo_jax.models.lora import Adapters
from dpo_jax.models.spec import DecoderSpec, preset
from dpo_jax.objectives import OBJECTIVES
from dpo_jax.precision import in_products_of
from dpo_jax.roles import LORA, whole
from dpo_jax.sharding import arrays, rules
from dpo_jax.sharding import mesh as mesh_lib
from dpo_jax.train import annotate
from dpo_jax.types import ApplyFn, Array, Batch, Frozen, Head, Params, Reports

PEFT_FILES = (files.ADAPTER, files.ADAPTER_WEIGHTS)
Ask = Callable[[Params, Batch], annotate.TokenColumns]  # jitted, of a reference


class Model(NamedTuple):
    """A decoder on a mesh.

    Attributes:
      spec: what it computes.
      folder: where its weights come from; None = drawn from the seed.
      held: dtype of its weights.
      apply: with activations spread by rows.
      decoder: that computes it.
      head: parameters -> the map from hidden states to logits.
      scores_zero: whether a scalar head that its folder does not have starts at 0.
      adapters: that it has beside its kernels; None without.
      on_base: whether its kernels are those of the policy's base, held once.
      source: the folder or hub id, and its revision, as they were given.
    """

    spec: DecoderSpec
    folder: Path | None
    held: str
    apply: ApplyFn
    decoder: Decoder
    head: Callable[[Params], Head]
    scores_zero: bool = False
    adapters: Adapters | None = None
    on_base: bool = False
    source: tuple[str, str] = ("", "")

    @property
    def passes(self) -> float:
        """Forward passes that a step is worth: kernels that stand get no gradient."""
        return 3.0 if self.adapters is None else 2.0


def find_model(config: Config, tokenizer: Any) -> tuple[Path | None, DecoderSpec]:
    """Finds the policy's folder and spec, or draws them up from a preset.

    Raises:
      ModelError: if the folder cannot be used, or the tokenizer does not fit it.
    """
    largest = tokenize.max_token_id(tokenizer)
    is_scalar = OBJECTIVES[config.objective].scalar
    if config.model.preset:
        if ignored := config.model.ignore_attributes:
            raise ConfigError(
                f"model.ignore_attributes={ignored} is of a config.json; "
                "model.preset has none"
            )
        longest = config.data.max_tokens
        spec = preset(config.model.preset, vocab=largest + 1, max_positions=longest)
        spec = with_rows(spec, config.model.vocab_multiple)
        return None, scalar.scalar_spec(spec) if is_scalar else spec
    path, revision = config.model.path, config.model.revision
    ignored = config.model.ignore_attributes
    folder, spec = find_folder(path, revision, is_scalar=is_scalar, ignored=ignored)
    unused = [name for name in ignored if name not in files.read_config(folder)]
    if unused:
        raise ConfigError(
            f"model.ignore_attributes={unused}: {folder}/config.json has no such "
            "attribute; leave them out"
        )
    start = config.model.score_start
    if start != "normal" and scalar.is_classifier(files.read_config(folder)):
        raise ConfigError(
            f"model.score_start={start!r} is of a new scalar head; {folder} has one"
        )
    tokenize.check_ids(largest, spec.vocab)
    if spec.learned_positions and config.data.max_tokens > spec.max_positions:
        raise ConfigError(
            f"data.max_tokens={config.data.max_tokens} exceeds the "
            f"{spec.max_positions} learned positions of {folder}"
        )
    return folder, with_rows(spec, config.model.vocab_multiple)


def with_rows(spec: DecoderSpec, multiple: int) -> DecoderSpec:
    """Gives a table a multiple of so many rows; see `models.vocabulary`."""
    return dataclasses.replace(spec, vocab_multiple=multiple)


def find_folder(
    path: str, revision: str, *, is_scalar: bool, ignored: Collection[str] = ()
) -> tuple[Path, DecoderSpec]:
    """Finds the folder of a role and what its model computes.

    Args:
      path: a folder or a hub id.
      revision: of the hub's.
      is_scalar: whether a scalar head is wanted: of a reward or value model.
      ignored: attributes of its `config.json` that nothing need know.

    Raises:
      ModelError: if the folder cannot be used.
    """
    folder = files.resolve(path, revision)
    read = hf.scalar_spec_of if is_scalar else hf.spec_of
    declared = files.read_config(folder)
    spec = read(declared, ignored)
    if left := described(declared, ignored)[1]:
        logging.info("%s/config.json: nothing reads %s", folder, ", ".join(left))
    return folder, spec


def make_model(config: Config, folder: Path | None, spec: DecoderSpec) -> Model:
    """Builds a policy for the devices in `jax.set_mesh`; its weights come later.

    Args:
      config: of the run.
      folder: where the weights will come from; None = drawn.
      spec: what to build.

    Raises:
      ConfigError: as `assemble`.
    """
    decoder = Decoder(
        spec,
        dtype=jnp.dtype(config.model.dtype),
        remat=config.model.remat,
        attention=config.model.attention,
        length=config.data.max_tokens,
        shared=config.data.layout == "prefix_shared",
        constrain=arrays.constrain_rows,
    )
    zero, held = config.model.score_start == "zero", "float32"
    adapters = adapters_of(config.lora, config.model.adapter, spec)
    if adapters is not None:  # the weights beside them stand still
        held = config.model.dtype
        decoder = decoder.clone(scales=adapters.scales)
    model = assemble(decoder, folder, held)
    source = (config.model.path, config.model.revision)
    return model._replace(scores_zero=zero, adapters=adapters, source=source)


def adapters_of(
    given: Mapping[str, Any], start: str, spec: DecoderSpec
) -> Adapters | None:
    """Says which adapters a run trains; None where it trains all weights.

    Args:
      given: `config.lora`.
      start: `model.adapter`, the folder that they start from; '' = they are fresh.
      spec: of the policy.

    Raises:
      ConfigError: if a target names nothing, or the two contradict each other.
      ModelError: if the folder cannot be used.
    """
    if start:
        return sites.agreeing(_adapter(start, spec), spec, given, start)
    if not given["rank"]:
        return None
    return sites.fresh(spec, **given)


def assemble(decoder: Decoder, folder: Path | None, held: str) -> Model:
    """Makes a model of a decoder.

    Raises:
      ConfigError: if its attention is not known, or is a kernel that cannot run this
        model on these devices.
    """
    spec = decoder.spec
    attention.check(
        decoder.attention,
        mesh_lib.platform(),
        dtype=decoder.dtype,
        head_dim=spec.head_dim,
        softcap=spec.attn_softcap,
    )

    def apply(params: Params, batch: Batch) -> tuple[Array, Head, Reports]:
        keep = lambda kept: None  # noqa: E731
        hidden, head, _, reports = decoder.forward(params, batch, keep=keep)
        return hidden, head, reports

    return Model(spec, folder, held, apply, decoder, decoder.head)


def check_heads(model: Model, mesh: Mesh) -> None:
    """Refuses a model whose heads do not divide over the mesh.

    Raises:
      DeviceError: naming the sizes that do.
    """
    tensor, spec = mesh.shape["tensor"], model.spec
    shared = math.gcd(spec.heads, spec.kv_heads)
    if shared % tensor:
        fits = [str(n) for n in range(1, shared + 1) if shared % n == 0]
        raise DeviceError(
            f"mesh.tensor={tensor} does not divide {spec.heads} heads and "
            f"{spec.kv_heads} kv heads; use {' or '.join(fits)}"
        )


def check_loadable(model: Model, mesh: Mesh) -> None:
    """Refuses a model that the mesh or its own folder cannot give, before loading it.

    Raises:
      DeviceError: as `check_heads`.
      ModelError: if weights cannot be read, or are not those of its `config.json`.
    """
    check_heads(model, mesh)
    if model.folder is not None:
        hf.check_weights(model.folder, stored_spec(model))


Check = Callable[[Model, Mesh], None]


def stored_spec(model: Model) -> DecoderSpec:
    """Says what the folder of a model holds: a language model may lack its score."""
    assert model.folder is not None
    declared = files.read_config(model.folder)
    is_scalar = model.spec.scalar and scalar.is_classifier(declared)
    return dataclasses.replace(model.spec, scalar=is_scalar)


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


def reference_model(
    policy: Model,
    ref: Mapping[str, Any],
    mesh: Mesh,
    ignored: Collection[str] = (),
    check: Check = check_loadable,
) -> Model | None:
    """Builds the reference's decoder; its weights come later. None without one.

    Args:
      policy: it computes as this does, but for what `ref` says.
      ref: `config.ref`. One that moves is held as the policy is: as float32 masters.
      mesh: of the run.
      ignored: see `find_folder`.
      check: what is refused before it is loaded.

    Raises:
      ModelError: if it cannot be used, or its table does not fit the policy's.
      DeviceError: if its heads do not divide over the mesh.
    """
    if ref["mode"] == "none":
        return None
    if policy.adapters is not None and not ref["path"]:
        return _on_base_of(policy, ref)
    folder, spec = policy.folder, policy.spec
    if ref["path"]:
        folder, spec = find_folder(
            ref["path"], ref["revision"], is_scalar=False, ignored=ignored
        )
        tokenize.check_ids(policy.spec.vocab - 1, spec.vocab)
        spec = with_rows(spec, policy.spec.vocab_multiple)
    dtype = jnp.dtype(ref["dtype"] or policy.decoder.dtype)
    decoder = policy.decoder.clone(spec=spec, dtype=dtype)
    held = policy.held if ref["sync_every_steps"] else dtype.name
    model = assemble(decoder, folder, held)
    check(model, mesh)
    return model


def _adapter(path: str, spec: DecoderSpec) -> Adapters:
    """Finds an adapter's folder, and says what it holds for a decoder."""
    return peft.read(files.resolve(path, wanted=PEFT_FILES), spec)


def _on_base_of(policy: Model, ref: Mapping[str, Any]) -> Model:
    """Builds the reference that stands on the base of a policy with adapters."""
    assert policy.adapters is not None
    if ref["adapter"] == "base":
        return policy._replace(adapters=None, on_base=True)
    if ref["adapter"]:
        adapters = _adapter(ref["adapter"], policy.spec)
        model = assemble(
            policy.decoder.clone(scales=adapters.scales), policy.folder, policy.held
        )
        return model._replace(adapters=adapters, on_base=True)
    moves = bool(ref["sync_every_steps"])
    starts = policy.adapters if moves or policy.adapters.folder else None
    return policy._replace(adapters=starts, on_base=True)


def scalar_model(
    like: Decoder,
    field: str,
    path: str,
    mesh: Mesh,
    *,
    dtype: str,
    held: str = "",
    longest: int,
    trained: bool,
    ignored: Collection[str] = (),
    check: Check = check_loadable,
) -> Model:
    """Builds a model with a scalar head of a folder; its weights come later.

    Args:
      like: computes as this does, but for what its folder and `dtype` say.
      field: that names the folder.
      path: a folder or a hub id.
      mesh: of the run.
      dtype: of its computation; '' = that of `like`.
      held: of its weights; '' = that of its computation.
      longest: tokens of the longest text.
      trained: whether its head must be in the folder; else a language model gets one
        that says 0 of everything.
      ignored: see `find_folder`.
      check: what is refused before it is loaded.

    Raises:
      ModelError: if it cannot be used.
      ConfigError: if the texts of the run do not fit its learned positions.
      DeviceError: if its heads do not divide over the mesh.
    """
    folder, spec = find_folder(path, "", is_scalar=True, ignored=ignored)
    if trained and not scalar.is_classifier(files.read_config(folder)):
        raise ModelError(
            f"{field}={path!r} is a language model, without a score; give an export of "
            "objective='reward', or a …ForSequenceClassification with num_labels=1"
        )
    if spec.learned_positions and longest > spec.max_positions:
        raise ConfigError(
            f"{field}={path!r} has {spec.max_positions} learned positions, and texts "
            f"may have {longest} tokens"
        )
    spec = with_rows(spec, like.spec.vocab_multiple)
    of = jnp.dtype(dtype or like.dtype)
    decoder = like.clone(spec=spec, dtype=of, shared=True)
    model = assemble(decoder, folder, held or of.name)._replace(scores_zero=True)
    check(model, mesh)
    return model


def compile_ask(
    model: Model, mesh: Mesh, *, chunk: int, whole: bool, temperature: float = 1.0
) -> Ask:
    """Jits what a reference is asked for.

    Args:
      model: of the reference.
      mesh: of the run.
      chunk: scored tokens per row whose logits are held at a time.
      whole: whether a loss needs its whole distribution.
      temperature: that its log-probs are taken at; 1 of the whole distribution.
    """
    tempered = {} if whole else {"temperature": temperature}
    score = functools.partial(
        annotate.ref_logps_and_states if whole else annotate.ref_logps,
        apply=model.apply,
        chunk=chunk,
        **tempered,
    )
    return jax.jit(
        in_products_of(model.decoder.dtype.name, score),
        out_shardings=arrays.row_sharding(mesh, leading=1),
    )
