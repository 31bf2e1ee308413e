"""Which keys of a configuration share one compiled step: the program's own text."""

import functools

import jax
import jax.numpy as jnp
import pytest

from dpo_jax import schema
from dpo_jax.data.layouts import Shape
from dpo_jax.losses import LOSSES
from dpo_jax.models.spec import preset
from dpo_jax.sharding import mesh
from dpo_jax.train import annotate
from dpo_jax.wiring import checks, programs, training
from dpo_jax.wiring import model as model_wiring

STEPS = 40
USUAL = {
    "model.preset": "tiny",
    "data.train": "sentiment",
    "model.logits_chunk": 8,
    "loss.name": "dpo+sft",
    "loss.weights": (1.0, 0.5),
    "loss.label_smoothing": 0.1,
    "loss.options.dpo.beta": 0.2,
    "ref.sync_every_steps": 2,
    "ref.sync_mix": 0.5,
    "optimizer.name": "adamw",
    "optimizer.schedule": "cosine",
    "optimizer.warmup_steps": 7,
    "optimizer.weight_decay": 0.1,
    "optimizer.clip": 1.0,
}
ONE_PROGRAM = {  # key -> another value
    "seed": 3,
    "train.steps": 90,
    "loss.beta": 0.3,
    "loss.label_smoothing": 0.2,
    "loss.weights": (0.7, 0.0),
    "loss.options.dpo.beta": 0.5,
    "ref.sync_mix": 1.0,
    "optimizer.lr": 1e-3,
    "optimizer.warmup_steps": 0,
    "optimizer.weight_decay": 0.01,
    "optimizer.clip": 10.0,
    "optimizer.eps": 1e-6,
}
ANOTHER = {  # what is off is not there; moments decay by constants
    "optimizer.weight_decay": 0.0,
    "optimizer.clip": 0.0,
    "optimizer.b1": 0.8,
    "optimizer.b2": 0.99,
    "optimizer.schedule": "linear",
    "ref.sync_every_steps": 3,
    "loss.name": "dpo+simpo",
}


def step_text(key="", value=None):
    """Lowers the step of the usual run, one key changed; says its hyper-parameters."""
    config = schema.with_room(schema.base(), USUAL)
    given = USUAL | ({key: value} if key else {})
    config.update_from_flattened_dict(given)
    losses = checks.check(config, LOSSES)
    alone = mesh.make_mesh(1, 1, 1, devices=jax.devices()[:1])
    with jax.set_mesh(alone):
        spec = preset("tiny", vocab=64, max_positions=32)
        policy = model_wiring.make_model(config.model, None, spec, 32)
        reference = model_wiring.reference_model(policy, config.ref, alone)
        steps = config.train.steps or STEPS
        models = training.Models(policy, reference)
        trainer = training.make_trainer(
            config, losses, models, alone, steps, config.ref
        )
        batch = programs.abstract_batch(Shape(2, 32, 16, 2, 1), 1, alone)
        scored = batch.targets.update(dtype=jnp.float32)
        batch = annotate.with_tokens(batch, {"ref_logps": scored})
        hyper = trainer.hyper()
        lowered = trainer.step.lower(trainer.abstract, trainer.frozen, batch, hyper)
    return lowered.as_text(), {name: float(x) for name, x in hyper.items()}


usual = functools.cache(step_text)


@pytest.mark.parametrize("key", [key for key in ONE_PROGRAM if key != "seed"])
def test_a_sweep_over_a_float_compiles_once(key):
    text, values = step_text(key, ONE_PROGRAM[key])
    assert text == usual()[0]
    assert values != usual()[1]


def test_a_sweep_over_seeds_compiles_once():
    assert step_text("seed", ONE_PROGRAM["seed"])[0] == usual()[0]


@pytest.mark.parametrize("key", ANOTHER)
def test_what_chooses_a_program_makes_another(key):
    assert step_text(key, ANOTHER[key])[0] != usual()[0]
