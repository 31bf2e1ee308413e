"""All that a run is made of, in the order in which it can be refused."""

import os
from collections.abc import Sequence
from typing import NamedTuple

from absl import logging
from jax.sharding import Mesh

from dpo_jax import config as config_lib
from dpo_jax.config import Config
from dpo_jax.data.loader import Loader
from dpo_jax.rewards import REWARDS, RewardTable
from dpo_jax.rewards.ask import Reward
from dpo_jax.wiring import agreeing, checks, objective, reference, rewarding, training
from dpo_jax.wiring import data as data_wiring
from dpo_jax.wiring import model as model_wiring
from dpo_jax.wiring.data import Data
from dpo_jax.wiring.model import Ask, Model
from dpo_jax.wiring.objective import Losses, needs_whole_reference
from dpo_jax.wiring.reference import Referred
from dpo_jax.wiring.training import Trainer


class Parts(NamedTuple):
    """All that a run is made of, checked, nothing compiled yet.

    In `config`, what it left open is stated; `ask` scores a batch under the reference.
    """

    config: Config
    mesh: Mesh
    data: Data
    steps: int
    losses: Losses
    model: Model
    reference: Model | None
    ask: Ask | None
    trainer: Trainer
    train: Loader
    eval: Loader | None
    rewards: tuple[Reward, ...]

    def refer(
        self, workdir: os.PathLike | str, *, evaluation_only: bool = False
    ) -> Referred:
        """Loads the reference, or brings its cache up to what the run needs.

        Args:
          workdir: the run folder.
          evaluation_only: whether no step will be trained.
        """
        return reference.refer(
            self.reference,
            self.mesh,
            ref=self.config.ref,
            seed=self.config.seed,
            score=self.ask,
            train=None if evaluation_only else self.train,
            held_out=self.eval,
            workdir=workdir,
        )


def make_parts(
    config: Config,
    losses: Losses,
    mesh: Mesh,
    workdir: os.PathLike | str | None = None,
    splits: Sequence[str] = ("train", "eval"),
    *,
    rewards: RewardTable = REWARDS,
) -> Parts:
    """Reads the data and the model's description, and wires the step."""
    for text in checks.unusual(losses):
        logging.warning("%s", text)
    checks.check_batch(mesh, config.batch.pairs, config.batch.microbatches)
    tokenizer = data_wiring.load_tokenizer(config)
    config = data_wiring.with_clock(config, tokenizer)
    folder, spec = model_wiring.find_model(config, tokenizer)
    model = model_wiring.make_model(config, folder, spec)
    model_wiring.check_loadable(model, mesh)
    ignored = config.model.ignore_attributes
    ref_model = model_wiring.reference_model(model, config.ref, mesh, ignored)
    rated = checks.reads_ratings(losses, config.loss)
    data = data_wiring.load_data(  # the slowest
        config, tokenizer, workdir, splits, reads_ratings=rated
    )
    agreeing.agree_on_rows(data)
    checks.check_data(losses, config.loss, data)
    steps = 1
    if data.train:
        steps = data_wiring.total_steps(
            len(data.train),
            steps=config.train.steps,
            epochs=config.train.epochs,
            pairs=config.batch.pairs,
        )
    join = objective.join_of(losses, config.data.max_tokens)
    train, held_out = data_wiring.make_loaders(config, data, spec, mesh, steps, join)
    config = config_lib.stated(config, {"batch.microbatches": train.microbatches})
    trainer = training.make_trainer(config, losses, model, ref_model, mesh, steps)
    ask = None
    if ref_model is not None:
        chunk, whole = config.model.logits_chunk, needs_whole_reference(losses)
        ask = model_wiring.compile_ask(ref_model, mesh, chunk=chunk, whole=whole)
    return Parts(
        config,
        mesh,
        data,
        steps,
        losses,
        model,
        ref_model,
        ask,
        trainer,
        train,
        held_out,
        rewarding.chosen(config.reward, rewards),
    )
