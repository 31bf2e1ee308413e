"""Builds all that a run is made of, in the order in which it can be refused."""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

from absl import logging
from jax.sharding import Mesh

from dpo_jax import config as config_lib
from dpo_jax import roles
from dpo_jax.config import Config
from dpo_jax.data import mixture
from dpo_jax.models.decoder import Decoder
from dpo_jax.objectives import OBJECTIVES, ON_POLICY
from dpo_jax.rewards import REWARDS, RewardTable
from dpo_jax.sampling import batches, pick
from dpo_jax.sampling.batches import Sampler
from dpo_jax.types import Frozen, Params, TrainState
from dpo_jax.wiring import (
    agreeing,
    checks,
    generation,
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
from dpo_jax.wiring.model import Model
from dpo_jax.wiring.objective import Losses, needs_whole_reference
from dpo_jax.wiring.parts import Parts
from dpo_jax.wiring.scoring import Scorer
from dpo_jax.wiring.standard import Standard
from dpo_jax.wiring.supply import FROM_FILES, Supply
from dpo_jax.wiring.turns import Comparing, Turns

DRAWN = ("temperature", "max_new_tokens", "cache_dtype")  # of `config.rollout`


def total_steps(config: Config) -> Callable[[int], int]:
    """Returns what counts the updates of a run from its records."""
    steps, epochs = config.train.steps, config.train.epochs
    if config.objective not in ON_POLICY:
        pairs = config.batch.pairs
        count = data_wiring.total_steps
        return functools.partial(count, steps=steps, epochs=epochs, pairs=pairs)
    sizes = on_policy.sizes_of(
        config.objective,
        config[config.objective],
        config.rollout,
        pairs=config.batch.pairs,
        width=0,
    )
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
    for text in checks.unusual(losses):
        logging.warning("%s", text)
    microbatches.check(mesh, config.batch.pairs, config.batch.microbatches)
    tokenizer = supply.tokenizer(config)
    config = data_wiring.with_clock(config, tokenizer)
    folder, spec = supply.model(config, tokenizer)
    model = model_wiring.make_model(config, folder, spec)
    model_wiring.check_loadable(model, mesh)
    ignored = config.model.ignore_attributes
    scorer = scoring.make_scorer(
        model.decoder,
        config.reward,
        mesh,
        batch=config.rollout.batch,
        vocab=spec.vocab,
        longest=config.data.max_tokens,
        tokenizers=supply.speakers(tokenizer),
        ignored=ignored,
        check=supply.check,
    )
    if config.objective in ON_POLICY:
        return of_samples(
            config, losses, mesh, tokenizer, model, scorer, rewards, supply
        )
    ref_model = model_wiring.reference_model(
        model, config.ref, mesh, ignored, supply.check
    )
    rated = checks.reads_ratings(losses, config.loss)
    data = supply.rows(  # the slowest
        config, tokenizer, workdir, splits, reads_ratings=rated
    )
    agreeing.agree_on_rows(data)
    checks.check_data(losses, config.loss, data)
    steps = 1
    if data.train:
        steps = total_steps(config)(len(data.train))
    join = objective.join_of(losses, config.data.max_tokens)
    train, held_out = data_wiring.make_loaders(
        config, data, spec, mesh, steps, join, model.adapters
    )
    config = config_lib.stated(config, {"batch.microbatches": train.microbatches})
    asked = ref_model if OBJECTIVES[config.objective].reference else None
    trainer = training.make_trainer(
        config, losses, model, asked, mesh, steps, scorer=scorer
    )
    ask = None
    if asked is not None:
        chunk, whole = config.model.logits_chunk, needs_whole_reference(losses)
        ask = model_wiring.compile_ask(asked, mesh, chunk=chunk, whole=whole)
    return Parts(
        config=config,
        mesh=mesh,
        data=data,
        steps=steps,
        losses=losses,
        model=model,
        reference=ref_model,
        ask=ask,
        trainer=trainer,
        train=train,
        eval=held_out,
        ref=config.ref,
        rewards=rewarding.chosen(config.reward, rewards),
        scorer=scorer,
    )


def of_samples(
    config: Config,
    losses: Losses,
    mesh: Mesh,
    tokenizer: Any,
    model: Model,
    scorer: Scorer | None,
    rewards: RewardTable,
    supply: Supply,
) -> Parts:
    """Wires the turns of an on-policy run; arguments are those of `make_parts`."""
    name, given = config.objective, config[config.objective]
    value = scoring.value_model(
        config, model, supply.speakers(tokenizer), mesh, supply.check
    )
    judges = rewarding.chosen(config.reward, rewards)
    data, asked = supply.prompts(config, tokenizer)
    agreeing.agree_on_rows(data)
    width = max(len(record.prompt) for record in data.train)
    sizes = on_policy.in_microbatches(
        on_policy.sizes_of(
            name, given, config.rollout, pairs=config.batch.pairs, width=width
        ),
        config.batch.microbatches,
        model.spec,
        mesh,
        remat=config.model.remat,
        dtype=config.model.dtype,
        chunk=config.model.logits_chunk,
        beside=None if value is None else value.spec,
        adapters=model.adapters,
    )
    config = config_lib.stated(config, {"batch.microbatches": sizes.microbatches})
    steps = total_steps(config)(len(data.train))
    ref = on_policy.moving(name, given, config.ref, sizes.updates)
    ignored = config.model.ignore_attributes
    ref_model = model_wiring.reference_model(model, ref, mesh, ignored, supply.check)
    trainer = training.make_trainer(
        config, losses, model, ref_model, mesh, steps, sizes, scorer, value
    )
    ask = None
    if ref_model is not None:
        ask = model_wiring.compile_ask(
            ref_model,
            mesh,
            chunk=config.model.logits_chunk,
            whole=needs_whole_reference(losses) and name == "online",
            temperature=config.rollout.temperature,
        )
    by_ref = name == "awr" and given["sampler"] == "ref"
    drawer = ref_model if by_ref else model
    assert drawer is not None, "`checks.on_policy_faults`"
    asker = rewarding.make_asker(
        judges, name="turns", seconds=config.reward.timeout_seconds
    )
    how = {key: config.rollout[key] for key in DRAWN}
    how["stops"] = generation.stop_ids(tokenizer, model.folder, ())
    sampler, standard = make_sampler(drawer.decoder, mesh, **how), None
    if count := config.reward.standardize:
        assert ref_model is not None and scorer is not None, "`rewarding.faults`"
        same, records = ref_model.decoder == drawer.decoder, data.train
        standard = Standard(
            [records[number % len(records)].prompt for number in range(count)],
            sampler if same else make_sampler(ref_model.decoder, mesh, **how),
            ref_model,
            scorer,
            config.rollout.batch,
            how,
        )
    turns = Turns(
        data.train,
        mixture.train_steps(
            data.sources_of("train"),
            pairs=sizes.prompts,
            steps=steps // sizes.updates,
            seed=reading.order_seed(config.seed, config.data.seed),
            shuffle=config.data.shuffle,
        ),
        sizes,
        sampler=sampler,
        drawing=roles.reference if by_ref else _policy,
        judge=functools.partial(rewarding.of_samples, asker, asked),
        decode=functools.partial(tokenizer.decode, skip_special_tokens=True),
        mesh=mesh,
        seed=config.seed,
        batch=config.rollout.batch,
        comparing=Comparing(given["rank"], given["labels"])
        if name == "online"
        else None,
        score=scoring.of_frozen(scorer, width=sizes.new_tokens),
    )
    return Parts(
        config=config,
        mesh=mesh,
        data=data,
        steps=steps,
        losses=losses,
        model=model,
        reference=ref_model,
        ask=ask,
        trainer=trainer,
        train=None,
        eval=None,
        ref=ref,
        rewards=judges,
        scorer=scorer,
        turns=turns,
        value=value,
        standard=standard,
    )


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
