"""All that a run is made of, in the order in which it can be refused."""

import os
from collections.abc import Sequence
from typing import NamedTuple

from jax.sharding import Mesh

from dpo_jax import config as config_lib
from dpo_jax.config import Config
from dpo_jax.data.loader import Loader
from dpo_jax.wiring import agreeing, checks, objective, reference, training
from dpo_jax.wiring import data as data_wiring
from dpo_jax.wiring import model as model_wiring
from dpo_jax.wiring.data import Data
from dpo_jax.wiring.model import Model
from dpo_jax.wiring.objective import Losses
from dpo_jax.wiring.reference import Referred
from dpo_jax.wiring.training import Trainer


class Parts(NamedTuple):
    """All that a run is made of, checked, nothing compiled yet.

    In `config`, what it left open is stated.
    """

    config: Config
    mesh: Mesh
    data: Data
    steps: int
    losses: Losses
    model: Model
    reference: Model | None
    trainer: Trainer
    train: Loader
    eval: Loader | None

    def refer(
        self,
        workdir: os.PathLike | str,
        *,
        evaluation_only: bool = False,
    ) -> Referred:
        """Loads the reference, or brings its cache up to what the run needs.

        Args:
          workdir: the run folder.
          evaluation_only: whether no step will be trained.
        """
        return reference.refer(
            self.config,
            self.reference,
            self.mesh,
            whole=objective.needs_whole_reference(self.losses),
            train=None if evaluation_only else self.train,
            held_out=self.eval,
            workdir=workdir,
        )


def prepare(
    config: Config,
    losses: Losses,
    mesh: Mesh,
    workdir: os.PathLike | str | None = None,
    splits: Sequence[str] = ("train", "eval"),
) -> Parts:
    """Reads the data and the model's description, and wires the step."""
    tokenizer = data_wiring.load_tokenizer(config)
    folder, spec = model_wiring.find_model(config, tokenizer)
    model = model_wiring.make_model(config, folder, spec)
    model_wiring.check_loadable(model, mesh)
    ref_model = model_wiring.reference_model(config, model, mesh)
    data = data_wiring.load_data(config, tokenizer, workdir, splits)  # the slowest
    agreeing.agree_on_rows(data)
    checks.check_data(config, losses, data)
    steps = data_wiring.total_steps(config, len(data.train)) if data.train else 1
    join = objective.join_of(config, losses)
    train, held_out = data_wiring.make_loaders(config, data, spec, mesh, steps, join)
    config = config_lib.stated(config, {"batch.microbatches": train.microbatches})
    trainer = training.make_trainer(config, losses, model, ref_model, mesh, steps)
    return Parts(
        config, mesh, data, steps, losses, model, ref_model, trainer, train, held_out
    )
