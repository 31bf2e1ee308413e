"""The models of a run: which folder, which spec, and what computes them.

A role (policy, reference, reward, value) is a folder with its spec and the dtype that
its weights are held in; `weights` loads them all.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh

from dpo_jax.config import Config
from dpo_jax.data import tokenize
from dpo_jax.errors import ConfigError, DeviceError
from dpo_jax.models import attention, files, hf, peft, scalar, sites
from dpo_jax.models.decoder import Decoder
from dpo_jax.models.families import described
from dpo_jax.models.lora import Adapters
from dpo_jax.models.spec import DecoderSpec, preset
from dpo_jax.objectives import OBJECTIVES
from dpo_jax.precision import in_products_of
from dpo_jax.schema import Section
from dpo_jax.sharding import arrays
from dpo_jax.sharding import mesh as mesh_lib
from dpo_jax.train import annotate
from dpo_jax.types import ApplyFn, Array, Batch, Head, Params, Reports

PEFT_FILES = (files.ADAPTER, files.ADAPTER_WEIGHTS)
Ask = Callable[[Params, Batch], annotate.TokenColumns]  # jitted, of a reference
Find = Callable[..., tuple[Path | None, DecoderSpec]]  # see `find_model`


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


def find_model(
    given: Section, tokenizer: Any, *, is_scalar: bool, max_tokens: int
) -> tuple[Path | None, DecoderSpec]:
    """Finds the policy's folder and spec, or draws them up from a preset.

    Args:
      given: `config.model`.
      tokenizer: of the policy.
      is_scalar: whether the objective trains a scalar head.
      max_tokens: of a text.

    Raises:
      ModelError: if the folder cannot be used, or the tokenizer does not fit it.
    """
    largest, ignored = tokenize.max_token_id(tokenizer), given["ignore_attributes"]
    if given["preset"]:
        if ignored:
            raise ConfigError(
                f"model.ignore_attributes={ignored} is of a config.json; "
                "model.preset has none"
            )
        spec = preset(given["preset"], vocab=largest + 1, max_positions=max_tokens)
        spec = with_rows(spec, given["vocab_multiple"])
        return None, scalar.scalar_spec(spec) if is_scalar else spec
    path, revision = given["path"], given["revision"]
    folder, spec = find_folder(path, revision, is_scalar=is_scalar, ignored=ignored)
    declared, start = files.read_config(folder), given["score_start"]
    if unused := [name for name in ignored if name not in declared]:
        raise ConfigError(
            f"model.ignore_attributes={unused}: {folder}/config.json has no such "
            "attribute; leave them out"
        )
    if start != "normal" and scalar.is_classifier(declared):
        raise ConfigError(
            f"model.score_start={start!r} is of a new scalar head; {folder} has one"
        )
    tokenize.check_ids(largest, spec.vocab)
    if spec.learned_positions and max_tokens > spec.max_positions:
        raise ConfigError(
            f"data.max_tokens={max_tokens} exceeds the "
            f"{spec.max_positions} learned positions of {folder}"
        )
    return folder, with_rows(spec, given["vocab_multiple"])


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


def make_policy(config: Config, tokenizer: Any, find: Find = find_model) -> Model:
    """Builds the policy of a configuration; its weights come later.

    Args:
      config: of the run.
      tokenizer: of the policy.
      find: finds its folder and spec, as `find_model` does.

    Raises:
      ModelError: as `find`.
      ConfigError: as `adapters_of` and `assemble`.
    """
    given, length = config.model, config.data.max_tokens
    is_scalar = OBJECTIVES[config.objective].scalar
    folder, spec = find(given, tokenizer, is_scalar=is_scalar, max_tokens=length)
    adapters = adapters_of(config.lora, given.adapter, spec)
    shared = config.data.layout == "prefix_shared"
    return make_model(given, folder, spec, length, shared=shared, adapters=adapters)


def make_model(
    given: Section,
    folder: Path | None,
    spec: DecoderSpec,
    length: int,
    *,
    shared: bool = True,
    adapters: Adapters | None = None,
) -> Model:
    """Builds a policy for the devices in `jax.set_mesh`; its weights come later.

    Args:
      given: `config.model`.
      folder: where the weights will come from; None = drawn.
      spec: what to build.
      length: tokens of a text, at most.
      shared: whether a row may hold branches of a prompt.
      adapters: beside its weights, which then stand still.

    Raises:
      ConfigError: as `assemble`.
    """
    decoder, held = make_decoder(given, spec, length, shared=shared), "float32"
    if adapters is not None:
        held = given["dtype"]
        decoder = decoder.clone(scales=adapters.scales)
    return assemble(decoder, folder, held)._replace(
        scores_zero=given["score_start"] == "zero",
        adapters=adapters,
        source=(given["path"], given["revision"]),
    )


def make_decoder(
    given: Section, spec: DecoderSpec, length: int, *, shared: bool = True
) -> Decoder:
    """Builds what computes a model; arguments are those of `make_model`."""
    return Decoder(
        spec,
        dtype=jnp.dtype(given["dtype"]),
        remat=given["remat"],
        attention=given["attention"],
        length=length,
        shared=shared,
        constrain=arrays.constrain_rows,
    )


def adapters_of(given: Section, start: str, spec: DecoderSpec) -> Adapters | None:
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


def reference_model(
    policy: Model,
    ref: Section,
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


def _on_base_of(policy: Model, ref: Section) -> Model:
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
