"""All that a run is made of, in the order in which it can be refused."""

from typing import NamedTuple

from jax.sharding import Mesh

from dpo_jax.config import Config
from dpo_jax.data.loader import Loader
from dpo_jax.losses import Loss
from dpo_jax.wiring import checks, objective, training
from dpo_jax.wiring import data as data_wiring
from dpo_jax.wiring import model as model_wiring
from dpo_jax.wiring.data import Data
from dpo_jax.wiring.model import Model, Reference
from dpo_jax.wiring.training import Trainer


class Parts(NamedTuple):
    """All that a run is made of, checked, nothing compiled yet."""

    mesh: Mesh
    data: Data
    steps: int
    rows: tuple[Loss, ...]
    model: Model
    trainer: Trainer
    train: Loader
    eval: Loader | None

    def reference(self, config: Config) -> Reference | None:
        """Loads the reference, with its head where a loss needs it."""
        whole = objective.needs_whole_reference(self.rows)
        return model_wiring.make_reference(config, self.model, self.mesh, whole=whole)


def prepare(config: Config, rows: tuple[Loss, ...], built: Mesh) -> Parts:
    """Reads the data and the model's description, and wires the step."""
    tokenizer = data_wiring.load_tokenizer(config)
    folder, spec = model_wiring.find_model(config, tokenizer)
    model = model_wiring.make_model(config, folder, spec)
    model_wiring.check_loadable(model, built)
    reference = model_wiring.reference_model(config, model, built)
    data = data_wiring.load_data(config, tokenizer)  # the slowest, so the last
    checks.check_data(config, rows, data)
    steps = data_wiring.total_steps(config, len(data.train))
    join = objective.join_of(config, rows)
    train, held_out = data_wiring.make_loaders(config, data, spec, built, steps, join)
    trainer = training.make_trainer(config, rows, model, reference, built, steps)
    return Parts(built, data, steps, rows, model, trainer, train, held_out)
