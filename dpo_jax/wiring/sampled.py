"""Several policies on the same prompts: whose they are, and what each one says."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dpo_jax.config import Config
from dpo_jax.data import tokenize
from dpo_jax.data.records import Text
from dpo_jax.models import files, hf
from dpo_jax.sampling.complete import Completion
from dpo_jax.sharding import mesh
from dpo_jax.wiring import data as data_wiring
from dpo_jax.wiring import generation, restoring
from dpo_jax.wiring import model as model_wiring
from dpo_jax.wiring.generation import Request


class Policy(NamedTuple):
    """A model that is sampled.

    Attributes:
      name: as the user gave it.
      config: whose model, tokenizer and chat template it has.
      workdir: the run whose newest checkpoint it is; None = the weights of model.path.
    """

    name: str
    config: Config
    workdir: os.PathLike | str | None


class Answers(NamedTuple):
    """What the policies made of the prompts.

    Attributes:
      prompts: texts or chats.
      completions: by name, n completions of each prompt.
    """

    prompts: list[Text]
    completions: dict[str, list[list[Completion]]]


def policy_of_run(config: Config, workdir: str) -> Policy:
    """Describes the policy of a run, on the mesh of `config`.

    Raises:
      RunFolderError: if there is no run.
    """
    own: Config = ConfigDict(restoring.run_config(workdir).to_dict())
    own.mesh = config.mesh
    return Policy(workdir, own.lock(), workdir)


def policy_of_folder(config: Config, path: str) -> Policy:
    """Describes the model of an HF folder or hub id."""
    own: Config = ConfigDict(config.to_dict())
    own.model.path, own.model.preset = path, ""
    return Policy(path, own.lock(), None)


def sample(config: Config, request: Request, policies: Sequence[Policy]) -> Answers:
    """Continues the same prompts with each policy, one after the other.

    Args:
      config: gives the mesh, and data.eval where the request names no prompts.
      request: what is asked for.
      policies: with names of their own.

    Raises:
      UserError: what a user can mend, before anything compiles.
    """
    built = mesh.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    generation.check(request, built)
    prompts = generation.read_prompts(config, request)
    with jax.set_mesh(built):
        completions = {
            policy.name: _answers(policy, prompts, request, built)
            for policy in policies
        }
    return Answers(prompts, completions)


def _answers(
    policy: Policy, prompts: Sequence[Text], request: Request, built: Mesh
) -> list[list[Completion]]:
    config = policy.config
    tokenizer = data_wiring.load_tokenizer(config)
    encoded = [generation.encode(config, tokenizer, prompt) for prompt in prompts]
    if policy.workdir is None:
        folder = files.resolve(config.model.path, config.model.revision)
        spec = hf.spec_of(files.read_config(folder))
        tokenize.check_ids(tokenize.max_token_id(tokenizer), spec.vocab)
    else:
        folder, spec = model_wiring.find_model(config, tokenizer)
    longest = max(map(len, encoded))
    generation.check_lengths(spec, longest, request)
    model = model_wiring.make_model(config, folder, spec)
    model_wiring.check_loadable(model, built)
    engine = generation.make_engine(
        config,
        spec,
        built,
        request,
        longest=longest,
        stops=generation.stop_ids(tokenizer, folder, request.stop),
    )
    if policy.workdir is None:
        params = model_wiring.load_params(model, built, "float32", seed=config.seed)
    else:
        _, params = restoring.trained_params(policy.workdir, model, built)
    return generation.run(engine, params, encoded, tokenizer, request)
