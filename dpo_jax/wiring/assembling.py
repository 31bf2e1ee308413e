"""Builds all that a run is made of, in the order in which it can be refused."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging
from jax.sharding import Mesh

from dpo_jax import config as config_lib
from dpo_jax import roles
from dpo_jax.config import Config
from dpo_jax.data import mixture
from dpo_jax.data.prepare import Questions
from dpo_jax.models.decoder import Decoder
from dpo_jax.objectives import OBJECTIVES, ON_POLICY
from dpo_jax.objectives.judged import Kind
from dpo_jax.rewards import REWARDS, RewardTable
from dpo_jax.rewards.ask import Reward
from dpo_jax.sampling import batches, pick
from dpo_jax.sampling.batches import Sampler
from dpo_jax.schema import Section
from dpo_jax.types import Frozen, Params, TrainState
from dpo_jax.wiring import (
    agreeing,
    generation,
    loss_checks,
    microbatches,
    objective,
    on_policy,
    reading,
    rewarding,
    scoring,
    training,
)
from dpo_jax.wiring import data as data_wiring
from dpo_jax.wiring import model as model_wiring
from dpo_jax.wiring.data import Data
from dpo_jax.wiring.model import Model
from dpo_jax.wiring.objective import Losses, needs_whole_reference
from dpo_jax.wiring.parts import Parts
from dpo_jax.wiring.reading import DataRequest
from dpo_jax.wiring.standard import Standard
from dpo_jax.wiring.supply import FROM_FILES, Supply
from dpo_jax.wiring.training import Models
from dpo_jax.wiring.turns import Comparing, Sizes, Turns

DRAWN = ("temperature", "max_new_tokens", "cache_dtype")  # of `config.rollout`


def sizes_of(config: Config, width: int) -> Sizes:
    """Counts what a turn is made of; `width` are the tokens of the longest prompt."""
    name = config.objective
    return on_policy.sizes_of(
        name, config[name], config.rollout, pairs=config.batch.pairs, width=width
    )


def total_steps(config: Config) -> Callable[[int], int]:
    """Returns what counts the updates of a run from its records."""
    steps, epochs = config.train.steps, config.train.epochs
    if config.objective not in ON_POLICY:
        pairs = config.batch.pairs
        count = data_wiring.total_steps
        return functools.partial(count, steps=steps, epochs=epochs, pairs=pairs)
    sizes = sizes_of(config, 0)
    return functools.partial(
        on_policy.turn_steps,
        steps=steps,
        epochs=epochs,
        prompts=sizes.prompts,
        updates=sizes.updates,
    )


def make_parts(
    config: Config,
    losses: Losses,
    mesh: Mesh,
    workdir: os.PathLike | str | None = None,
    splits: Sequence[str] = ("train", "eval"),
    rewards: RewardTable = REWARDS,
    supply: Supply = FROM_FILES,
) -> Parts:
    """Reads the data and the model's description, and wires the step.

    Args:
      config: of the run.
      losses: of the run.
      mesh: of the run; of any devices, if nothing is to be run.
      workdir: the run folder; None = tokens are kept in data.cache_dir or nowhere.
      splits: of the data that are read.
      rewards: the table that `reward.name` is looked up in.
      supply: where tokenizer, model and rows come from.
    """
    for text in loss_checks.unusual(losses):
        logging.warning("%s", text)
    microbatches.check(mesh, config.batch.pairs, config.batch.microbatches)
    model, seconds = config.model, config.distributed.timeout_seconds
    tokenizer = supply.tokenizer(config.tokenizer.path, model, config.data.train)
    now = data_wiring.launch_time(config.data, tokenizer, seconds=seconds)
    config = config_lib.stated(config, {"data.now": now})
    policy = model_wiring.make_policy(config, tokenizer, supply.model)
    model_wiring.check_loadable(policy, mesh)
    scorer = scoring.make_scorer(
        policy.decoder,
        config.reward,
        mesh,
        batch=config.rollout.batch,
        vocab=policy.spec.vocab,
        longest=config.data.max_tokens,
        tokenizers=supply.speakers(tokenizer),
        ignored=model.ignore_attributes,
        check=supply.check,
    )
    models = Models(policy, None, scorer)
    judges = rewarding.chosen(config.reward, rewards)
    if config.objective in ON_POLICY:
        return of_samples(config, losses, models, mesh, tokenizer, judges, supply)
    read = lambda request: supply.rows(request, tokenizer, workdir, splits)  # noqa: E731
    return of_rows(config, losses, models, mesh, read, judges, supply.check)


def of_rows(
    config: Config,
    losses: Losses,
    models: Models,
    mesh: Mesh,
    read: Callable[[DataRequest], Data],
    judges: tuple[Reward, ...],
    check: model_wiring.Check,
) -> Parts:
    """Wires a run over rows, which `read` reads; other arguments as of `wired`."""
    policy, ignored = models.policy, config.model.ignore_attributes
    reference = model_wiring.reference_model(policy, config.ref, mesh, ignored, check)
    rated = loss_checks.reads_ratings(losses, config.loss)
    request = reading.request_of(config, reads_ratings=rated)
    data = read(request)
    agreeing.agree_on_rows(data)
    loss_checks.check_data(losses, config.loss, data)
    steps = total_steps(config)(len(data.train)) if data.train else 1
    join = objective.join_of(losses, config.data.max_tokens)
    train, held_out = data_wiring.make_loaders(
        request,
        data,
        policy.spec,
        mesh,
        steps,
        join,
        model=config.model,
        microbatches=config.batch.microbatches,
    )
    config = config_lib.stated(config, {"batch.microbatches": train.microbatches})
    models = models._replace(reference=reference)
    parts = wired(config, losses, models, mesh, data, steps, config.ref)
    return parts._replace(train=train, eval=held_out, rewards=judges)


def of_samples(
    config: Config,
    losses: Losses,
    models: Models,
    mesh: Mesh,
    tokenizer: Any,
    judges: tuple[Reward, ...],
    supply: Supply,
) -> Parts:
    """Wires the turns of an on-policy run; arguments as of `wired`."""
    policy, ignored = models.policy, config.model.ignore_attributes
    speakers = supply.speakers(tokenizer)
    value = scoring.value_model(
        config.value.path,
        policy,
        speakers,
        mesh,
        longest=config.data.max_tokens,
        ignored=ignored,
        check=supply.check,
    )
    request = reading.request_of(config, reads_ratings=False)
    data, asked = supply.prompts(request, tokenizer)
    agreeing.agree_on_rows(data)
    width = max(len(record.prompt) for record in data.train)
    sizes = on_policy.in_microbatches(
        sizes_of(config, width),
        config.batch.microbatches,
        policy.spec,
        mesh,
        remat=config.model.remat,
        dtype=config.model.dtype,
        chunk=config.model.logits_chunk,
        beside=None if value is None else value.spec,
    )
    config = config_lib.stated(config, {"batch.microbatches": sizes.microbatches})
    steps = total_steps(config)(len(data.train))
    given = config[config.objective]
    ref = on_policy.moving(config.objective, given, config.ref, sizes.updates)
    reference = model_wiring.reference_model(policy, ref, mesh, ignored, supply.check)
    models = models._replace(reference=reference, value=value)
    parts = wired(config, losses, models, mesh, data, steps, ref, sizes)
    return _with_turns(parts._replace(rewards=judges), sizes, asked)


def wired(
    config: Config,
    losses: Losses,
    models: Models,
    mesh: Mesh,
    data: Data,
    steps: int,
    ref: Section,
    sizes: Sizes | None = None,
) -> Parts:
    """Wires the step of a run, and what its reference is asked for.

    Args:
      config: of the run.
      losses: of the run.
      models: of the run.
      mesh: of the run.
      data: of the run.
      steps: updates of the run.
      ref: how the reference moves, as `config.ref` has it.
      sizes: of a turn, of an on-policy run.
    """
    kind, ask = OBJECTIVES[config.objective], None
    asked = models.reference if kind.reference else None
    trainer = training.make_trainer(
        config, losses, models._replace(reference=asked), mesh, steps, ref, sizes
    )
    if asked is not None:
        ask = model_wiring.compile_ask(
            asked,
            mesh,
            chunk=config.model.logits_chunk,
            whole=isinstance(kind, Kind) and needs_whole_reference(losses),
            temperature=config.rollout.temperature,
        )
    return Parts(
        config=config,
        mesh=mesh,
        data=data,
        steps=steps,
        losses=losses,
        model=models.policy,
        reference=models.reference,
        ask=ask,
        trainer=trainer,
        train=None,
        eval=None,
        ref=ref,
        scorer=models.scorer,
        value=models.value,
    )


def _with_turns(parts: Parts, sizes: Sizes, asked: Questions) -> Parts:
    """Adds what draws the samples of an on-policy run, and judges them."""
    config, data, mesh = parts.config, parts.data, parts.mesh
    name, given = config.objective, config[config.objective]
    by_ref = name == "awr" and given["sampler"] == "ref"
    drawer = parts.reference if by_ref else parts.model
    assert drawer is not None, "`checks.on_policy_faults`"
    drawn = {key: config.rollout[key] for key in DRAWN}
    drawn["stops"] = generation.stop_ids(data.tokenizer, parts.model.folder, ())
    sampler = make_sampler(drawer.decoder, mesh, **drawn)
    asker = rewarding.make_asker(
        parts.rewards, name="turns", seconds=config.reward.timeout_seconds
    )
    order = mixture.train_steps(
        data.sources_of("train"),
        pairs=sizes.prompts,
        steps=parts.steps // sizes.updates,
        seed=reading.request_of(config).seed,
        shuffle=config.data.shuffle,
    )
    comparing = None
    if name == "online":
        comparing = Comparing(given["rank"], given["labels"])
    turns = Turns(
        data.train,
        order,
        sizes,
        sampler=sampler,
        drawing=roles.reference if by_ref else _policy,
        judge=functools.partial(rewarding.of_samples, asker, asked),
        decode=functools.partial(data.tokenizer.decode, skip_special_tokens=True),
        mesh=mesh,
        seed=config.seed,
        batch=config.rollout.batch,
        comparing=comparing,
        score=scoring.of_frozen(parts.scorer, width=sizes.new_tokens),
    )
    standard = _make_standard(parts, drawer, sampler, drawn)
    return parts._replace(turns=turns, standard=standard)


def _make_standard(
    parts: Parts, drawer: Model, sampler: Sampler, drawn: Mapping[str, Any]
) -> Standard | None:
    """Prepares what measures the moments of scores; None where they stay raw.

    The reference draws as turns are drawn: by `sampler`, where it computes like its
    model, the `drawer`.
    """
    count, records = parts.config.reward.standardize, parts.data.train
    if not count:
        return None
    reference, scorer = parts.reference, parts.scorer
    assert reference is not None and scorer is not None, "`rewarding.faults`"
    if reference.decoder != drawer.decoder:
        sampler = make_sampler(reference.decoder, parts.mesh, **drawn)
    prompts = [records[number % len(records)].prompt for number in range(count)]
    batch = parts.config.rollout.batch
    return Standard(prompts, sampler, reference, scorer, batch, drawn)


def make_sampler(
    decoder: Decoder,
    mesh: Mesh,
    *,
    temperature: float,
    max_new_tokens: int,
    cache_dtype: str,
    stops: Sequence[int],
) -> Sampler:
    """Makes what draws the samples of turns.

    Args:
      decoder: of who draws.
      mesh: of the run.
      temperature: of `config.rollout`.
      max_new_tokens: likewise.
      cache_dtype: likewise.
      stops: ids that end a sample.
    """
    return batches.make_sampler(
        generation.make_decoding(decoder, cache_dtype),
        pick=pick.sampler(temperature=temperature),
        stops=stops,
        max_new_tokens=max_new_tokens,
        mesh=mesh,
    )


def _policy(state: TrainState, frozen: Frozen) -> Params:
    """Returns the policy's parameters."""
    return roles.policy(state.params, frozen)
