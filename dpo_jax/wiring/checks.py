"""A configuration against the tables of losses, optimizers, sources and devices."""

from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from dpo_jax import config as config_lib
from dpo_jax.data import sources
from dpo_jax.errors import ConfigError, DeviceError
from dpo_jax.losses import Loss, LossFn, find, options, pairwise
from dpo_jax.sharding import mesh
from dpo_jax.train import optimizer

LossTable = Mapping[str, Loss | LossFn]


def check(config: ConfigDict, losses: LossTable) -> Loss:
    """Checks a configuration on its own and finds its loss.

    Raises:
      ConfigError: naming the faults together.
    """
    config_lib.check(config)
    row = find(config.loss.name, losses)
    defaults = default_options(config)
    used = {*options(row), "name"}
    if config.ref.mode != "none" or config.objective == "preference":
        used.add("beta")  # of the metrics `rewards/*`
    if row.reference and config.ref.mode == "none":
        raise ConfigError(
            f"loss.name={config.loss.name!r} needs a reference; set ref.mode='live'"
        )
    by_loss = f"loss.name={config.loss.name!r}"
    faults = config_lib.unused_options(
        "loss", config.loss, defaults["loss"], used, by_loss
    )
    by = f"optimizer.name={config.optimizer.name!r}"
    always = {"name", "lr", "warmup_steps", "schedule", "clip"}
    faults += config_lib.unused_options(
        "optimizer",
        config.optimizer,
        defaults["optimizer"],
        always | set(optimizer.options(config.optimizer.name)),
        by,
    )
    if faults:
        raise ConfigError(" · ".join(faults))
    if "divergence" in used:
        pairwise.check_choices(
            divergence=config.loss.divergence,
            divergence_alpha=config.loss.divergence_alpha,
            normalize=config.loss.normalize,
        )
    if config.eval.rollouts:
        check_rollouts(config)
    return row


def default_options(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """Returns what each option means when it is off, for those a loss may not use."""
    off = {
        "beta": 0.1,
        "label_smoothing": 0.0,
        "normalize": "sum",
        "divergence": "reverse_kl",
        "divergence_alpha": 1.0,
    }
    loss = {key: off.get(key, config.loss[key]) for key in config.loss}
    optimizer_off = {"weight_decay": 0.0, "b1": 0.9, "b2": 0.999, "decay": 0.99}
    optimizer_off["eps"] = 1e-8
    return {"loss": loss, "optimizer": optimizer_off}


def check_rollouts(config: ConfigDict) -> None:
    """Refuses rollouts without a true reward or without a reference.

    Raises:
      ConfigError: naming the key.
    """
    if config.data.eval not in sources.JUDGED:
        known = ", ".join(sources.JUDGED)
        raise ConfigError(
            f"eval.rollouts={config.eval.rollouts} needs a data.eval with a true "
            f"reward ({known}), not {config.data.eval!r}"
        )
    if config.ref.mode == "none":
        raise ConfigError("eval.rollouts needs a reference; set ref.mode='live' or 0")


def make_mesh(config: ConfigDict) -> Mesh:
    """Lays out the devices and checks that the batch fits them.

    Raises:
      DeviceError: with the numbers and the nearest that fit.
    """
    built = mesh.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    shards, pairs = mesh.row_shards(built), config.batch.pairs
    if pairs % shards:
        near = f"{pairs - pairs % shards} or " if pairs > shards else ""
        raise DeviceError(
            f"batch.pairs={pairs} is not a multiple of the {shards} data shards; use "
            f"{near}{pairs - pairs % shards + shards}"
        )
    if config.batch.microbatches > pairs:
        raise DeviceError(
            f"batch.microbatches={config.batch.microbatches} exceeds "
            f"batch.pairs={pairs}; use at most {pairs}"
        )
    return built
