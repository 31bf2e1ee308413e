"""A reward model in the loop: a frozen scalar decoder that scores what was sampled.

It reads the very ids that were sampled, behind those of their prompt, in rows like
those that train: so its vocabulary has to be the policy's. A score is read where
transformers reads it. Every process takes part, before the reward functions are asked.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from dpo_jax.data import tokenize
from dpo_jax.errors import ConfigError, ModelError, collected
from dpo_jax.models import files, scalar
from dpo_jax.models.decoder import Decoder
from dpo_jax.precision import in_products_of
from dpo_jax.rewards.standard import Moments
from dpo_jax.sampling import batches
from dpo_jax.sampling.batches import Part
from dpo_jax.sampling.rollout import Prompts, rows_of
from dpo_jax.schema import Section
from dpo_jax.sharding import arrays
from dpo_jax.sharding import mesh as mesh_lib
from dpo_jax.train import watchdog
from dpo_jax.types import Array, Frozen, Params, Samples
from dpo_jax.wiring import model as model_wiring
from dpo_jax.wiring.model import Model
from dpo_jax.wiring.turns import Ids, Score, no_scores


class Scorer(NamedTuple):
    """A reward model on a mesh.

    Attributes:
      model: what it computes, and where its weights come from.
      mesh: of the run.
      score: jitted (parameters, prompts, samples) -> f32[N, n] on every device.
      batch: samples of a data shard that are scored together, at most.
    """

    model: Model
    mesh: Mesh
    score: Callable[[Params, Prompts, Samples], Array]
    batch: int

    def __call__(
        self,
        params: Params,
        prompts: Sequence[np.ndarray],
        ids: Sequence[Sequence[Sequence[int]]],
        *,
        width: int,
    ) -> np.ndarray:
        """Scores n samples of each of N prompts.

        Args:
          params: of the reward model.
          prompts: N arrays of ids.
          ids: N lists of n lists of ids, the one that ended a sample included.
          width: tokens of a sample that rows have room for: one width, one program.

        Returns:
          f32[N, n], on every process.
        """
        n, shards = len(ids[0]), mesh_lib.row_shards(self.mesh)
        lengths, place = [len(ids) for ids in prompts], arrays.row_sharding(self.mesh)
        scores = []
        for part in batches.plan(lengths, n, batch=self.batch * shards, shards=shards):
            watchdog.beat()
            host = batches.lay_out(prompts, part), laid(ids, part, width)
            scores.append((part, self.score(params, *arrays.spread(host, place))))
        read = ((part, jax.device_get(said)) for part, said in scores)
        return batches.gather(read, len(prompts), n)


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
    check: model_wiring.Check = model_wiring.check_loadable,
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
      ignored: see `model_wiring.find_folder`.
      check: what is refused before it is loaded.

    Raises:
      ModelError: if it cannot be used.
      ConfigError: if the texts of the run do not fit its learned positions.
      DeviceError: if its heads do not divide over the mesh.
    """
    folder, spec = model_wiring.find_folder(path, "", is_scalar=True, ignored=ignored)
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
    spec = model_wiring.with_rows(spec, like.spec.vocab_multiple)
    of = jnp.dtype(dtype or like.dtype)
    decoder = like.clone(spec=spec, dtype=of, shared=True)
    model = model_wiring.assemble(decoder, folder, held or of.name)
    model = model._replace(scores_zero=True)
    check(model, mesh)
    return model


def laid(ids: Sequence[Sequence[Sequence[int]]], part: Part, width: int) -> Samples:
    """Lays the samples of a part out as arrays [N, n, width] of the host."""
    shape = (part.size, part.n, width)
    tokens, mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
    for row, i in enumerate(part.ids):
        of_part = ids[i][part.first : part.first + part.n]
        for number, sample in enumerate(of_part):
            tokens[row, number, : len(sample)] = sample
            mask[row, number, : len(sample)] = True
    return Samples(tokens, mask, np.zeros(shape, np.float32), mask.any(-1))


def lone_decoder(path: str, given: Section, length: int) -> tuple[Path, Decoder]:
    """Builds what computes a reward model where there is no policy to compute like.

    Args:
      path: `reward.path`.
      given: `config.model`, which says how.
      length: `data.max_tokens`.

    Returns:
      Its folder, and the decoder for `make_scorer`.

    Raises:
      ModelError: if the folder cannot be used.
    """
    ignored = given["ignore_attributes"]
    folder, spec = model_wiring.find_folder(path, "", is_scalar=True, ignored=ignored)
    return folder, model_wiring.make_decoder(given, spec, length)


def make_scorer(
    like: Decoder,
    given: Mapping[str, Any],
    mesh: Mesh,
    *,
    batch: int,
    vocab: int,
    longest: int,
    tokenizers: Sequence[Any],
    ignored: Sequence[str] = (),
    check: model_wiring.Check = model_wiring.check_loadable,
) -> Scorer | None:
    """Builds the reward model of `reward.path`; None without one. Loads no weights.

    Args:
      like: it computes as this does, but for what its folder and `reward.dtype` say.
      given: `config.reward`.
      mesh: of the run.
      batch: see `Scorer`.
      vocab: ids that may be sampled.
      longest: tokens of the longest prompt with a sample.
      tokenizers: of the policies that are sampled.
      ignored: see `model_wiring.find_folder`.
      check: see `scalar_model`.

    Raises:
      ModelError: if it cannot be used, or reads other words than are sampled.
      ConfigError: as `scalar_model`.
      DeviceError: likewise.
    """
    if not given["path"]:
        return None
    field = f"reward.path={given['path']!r}"
    model = scalar_model(
        like,
        "reward.path",
        given["path"],
        mesh,
        dtype=given["dtype"],
        longest=longest,
        trained=True,
        ignored=ignored,
        check=check,
    )
    check_words(field, model, vocab, tokenizers)
    assert model.folder is not None
    pad = scalar.pad_id(files.read_config(model.folder))

    def score(params: Params, prompts: Prompts, samples: Samples) -> Array:
        rows = rows_of(prompts, samples)
        hidden, head, _ = model.apply(params, rows)
        return scalar.scores(hidden, head, scalar.read_at(rows, pad))

    compiled = jax.jit(
        in_products_of(model.decoder.dtype.name, score),
        out_shardings=arrays.replicated(mesh),
    )
    return Scorer(model, mesh, compiled, batch)


def of_frozen(scorer: Scorer | None, *, width: int) -> Score:
    """Makes a scorer find its parameters among what is frozen, and its moments there.

    Args:
      scorer: None without a reward model.
      width: tokens of a sample, at most.
    """
    if scorer is None:
        return no_scores

    def score(frozen: Frozen, prompts: Sequence[np.ndarray], ids: Ids) -> np.ndarray:
        scores = scorer(frozen["reward"], prompts, ids, width=width)
        if "standard" not in frozen:
            return scores
        return Moments(*jax.device_get(frozen["standard"])).standardized(scores)

    return score


def value_model(
    path: str,
    policy: Model,
    tokenizers: Sequence[Any],
    mesh: Mesh,
    *,
    longest: int,
    ignored: Sequence[str],
    check: model_wiring.Check,
) -> Model | None:
    """Builds the critic of `value.path`, in float32 masters; None without one.

    Args:
      path: `value.path`.
      policy: it computes as this does, but for what its folder says.
      tokenizers: whose words it must share.
      mesh: of the run.
      longest: tokens of the longest text.
      ignored: see `model_wiring.find_folder`.
      check: see `scalar_model`.

    Raises:
      UserError: as `make_scorer`.
    """
    if not path:
        return None
    model = scalar_model(
        policy.decoder,
        "value.path",
        path,
        mesh,
        dtype="",
        held=policy.held,
        longest=longest,
        trained=False,
        ignored=ignored,
        check=check,
    )
    check_words(f"value.path={path!r}", model, policy.spec.vocab, tokenizers)
    return model


def check_words(
    field: str, model: Model, vocab: int, tokenizers: Sequence[Any]
) -> None:
    """Refuses a model to which the ids of policies mean other words, or none.

    Args:
      field: the model, for the message.
      model: with a folder.
      vocab: ids that may be sampled.
      tokenizers: of the policies.

    Raises:
      ModelError: so, or if its tokenizer cannot be read.
    """
    assert model.folder is not None
    with collected(ModelError) as complaints:
        if vocab > model.spec.vocab:
            complaints.append(
                f"{field} knows {model.spec.vocab} ids, and {vocab} may be sampled; "
                "give a model of the policy's vocabulary"
            )
        complaints += word_faults(field, model.folder, tokenizers)


def word_faults(field: str, folder: Path, tokenizers: Sequence[Any]) -> list[str]:
    """Complains of policies whose ids mean other words to the reward model.

    Args:
      field: the reward model, for the message.
      folder: its own.
      tokenizers: of the policies.

    Raises:
      ModelError: if its tokenizer cannot be read.
    """
    if not any(any(folder.glob(name)) for name in ("tokenizer*", "vocab*")):
        logging.warning(
            "%s has no tokenizer: its ids are taken for the policy's", field
        )
        return []
    known, faults = tokenize.load_tokenizer(str(folder)).get_vocab(), []
    for tokenizer in tokenizers:
        mine = tokenizer.get_vocab().items()
        wrong = sorted((i, word) for word, i in mine if known.get(word) != i)
        if wrong:
            i, word = wrong[0]
            faults.append(
                f"{field} has another vocabulary than the policy: {len(wrong)} tokens "
                f"differ, first {word!r}, id {i} of the policy and "
                f"{known.get(word, 'none')} of its own tokenizer; give a model of "
                "the policy's tokenizer"
            )
    return faults
