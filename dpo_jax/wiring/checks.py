"""A configuration against the tables of losses, optimizers, sources and devices."""

from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from dpo_jax import config as config_lib
from dpo_jax.config import Config
from dpo_jax.data import sources
from dpo_jax.errors import ConfigError, DeviceError, collected, unknown
from dpo_jax.losses import Loss, LossFn, find, options, pairwise
from dpo_jax.sharding import mesh
from dpo_jax.train import optimizer

LossTable = Mapping[str, Loss | LossFn]


def check(config: Config, losses: LossTable) -> Loss:
    """Checks a configuration on its own and finds its loss.

    Raises:
      ConfigError: naming the faults together.
    """
    config_lib.check(config)
    with collected(ConfigError) as complaints:
        if config.loss.name not in losses:
            complaints.append(unknown("loss.name", config.loss.name, losses))
        else:
            complaints += loss_faults(config, find(config.loss.name, losses))
        complaints += optimizer_faults(config)
        if config.eval.rollouts:
            complaints += rollout_faults(config)
    return find(config.loss.name, losses)


def loss_faults(config: Config, row: Loss) -> list[str]:
    """Complains of options that the loss lacks, does not know or does not use."""
    used = {*options(row), "name"}
    if config.ref.mode != "none" or config.objective == "preference":
        used.add("beta")  # of the metrics `rewards/*`
    by = f"loss.name={config.loss.name!r}"
    defaults = default_options(config)["loss"]
    found = config_lib.unused_options("loss", config.loss, defaults, used, by)
    if row.reference and config.ref.mode == "none":
        found.append(f"{by} needs a reference; set ref.mode='live'")
    if "divergence" in used:
        try:
            pairwise.check_choices(
                divergence=config.loss.divergence,
                divergence_alpha=config.loss.divergence_alpha,
                normalize=config.loss.normalize,
            )
        except ConfigError as error:
            found.append(str(error))
    return found


def optimizer_faults(config: Config) -> list[str]:
    """Complains of names that are not known and of options that are not used."""
    found, section = [], config.optimizer
    if section.schedule not in optimizer.SCHEDULES:
        known = optimizer.SCHEDULES
        found.append(unknown("optimizer.schedule", section.schedule, known))
    if section.name not in optimizer.OPTIMIZERS:
        return [*found, unknown("optimizer.name", section.name, optimizer.OPTIMIZERS)]
    always = {"name", "lr", "warmup_steps", "schedule", "clip"}
    return found + config_lib.unused_options(
        "optimizer",
        section,
        default_options(config)["optimizer"],
        always | set(optimizer.options(section.name)),
        f"optimizer.name={section.name!r}",
    )


def default_options(config: Config) -> dict[str, dict[str, Any]]:
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


def rollout_faults(config: Config) -> list[str]:
    """Complains of rollouts without a true reward or without a reference."""
    found = []
    if config.data.eval not in sources.JUDGED:
        known = ", ".join(sources.JUDGED)
        found.append(
            f"eval.rollouts={config.eval.rollouts} needs a data.eval with a true "
            f"reward ({known}), not {config.data.eval!r}"
        )
    if config.ref.mode == "none":
        found.append("eval.rollouts needs a reference; set ref.mode='live' or 0")
    return found


def make_mesh(config: Config) -> Mesh:
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
