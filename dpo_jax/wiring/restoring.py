"""What a run folder holds already: its configuration, its state, its parameters."""

import json
import os

from absl import logging
from etils import epath
from jax.sharding import Mesh

from dpo_jax import config as config_lib
from dpo_jax.config import Config, from_json
from dpo_jax.errors import ModelError, RunFolderError
from dpo_jax.models.decoder import abstract_params
from dpo_jax.sharding import rules
from dpo_jax.train import runfolder
from dpo_jax.train.checkpoint import Checkpoints
from dpo_jax.types import Params, TrainState
from dpo_jax.wiring.data import rows_kept, total_steps
from dpo_jax.wiring.model import Model
from dpo_jax.wiring.parts import Parts
from dpo_jax.wiring.summary import Summary


def finished(workdir: os.PathLike | str, config: Config) -> Summary | None:
    """Tells what a finished run ended with, from its files; None of an unfinished one.

    Args:
      workdir: the run folder.
      config: that of the folder but for what a relaunch may change.
    """
    done = runfolder.read_json(workdir, "results.json")
    report = runfolder.read_json(workdir, "data.json")
    if not runfolder.is_whole(workdir) or "train" not in report:
        return None
    steps = total_steps(config, rows_kept(report["train"]))
    if done.get("step") != steps:
        return None
    return Summary(steps, steps, True, done.get("values", {}), done, report)


def first_step(checkpoints: Checkpoints, parts: Parts) -> int:
    """Finds the newest verified step; 0 = start over, and says so.

    Raises:
      ModelError: if steps were committed and none is sound.
      RunFolderError: if it lies behind the end of the run.
    """
    newest = checkpoints.newest_verified()
    if newest is None:
        logging.warning("no checkpoint was committed here: starting from step 0")
        return 0
    if newest > parts.steps:
        raise RunFolderError(
            f"the newest checkpoint is of step {newest}, beyond the last step "
            f"{parts.steps} of this configuration; raise train.steps or choose "
            "another --workdir"
        )
    return newest


def relaunched(config: Config, workdir: os.PathLike | str, *, fork: bool) -> Config:
    """Keeps what the folder's first launch chose where a key leaves it open.

    Raises:
      RunFolderError: if the folder was started with another configuration.
    """
    runfolder.check_same(workdir, json.loads(config_lib.to_json(config)), fork=fork)
    old = config_lib.flat(runfolder.read_config(workdir) or {})
    if fork or config.batch.microbatches:
        return config
    key = "batch.microbatches"
    return config_lib.stated(config, {key: old.get(key, 0)})


def resume(
    checkpoints: Checkpoints, parts: Parts, first: int, *, fork: bool
) -> TrainState:
    """Restores the state after `first` steps, from `first_step`.

    Raises:
      RunFolderError: if the data are not those that the run was trained on.
    """
    if not first:
        return parts.trainer.init()
    state, meta = checkpoints.restore(first, parts.trainer.abstract)
    if meta["data"] != parts.data.fingerprint and not fork:
        raise RunFolderError(
            f"data.train changed since step {first} of this run (its tokens' "
            f"fingerprint was {meta['data']}, is {parts.data.fingerprint}); restore "
            "the data, choose another --workdir, or --fork to go on with the new rows"
        )
    here = dict(parts.mesh.shape)
    if meta["mesh"] != here:
        logging.warning("mesh changed: %s → %s", meta["mesh"], here)
    logging.info("resumed from step %d", first)
    return state


def run_config(workdir: os.PathLike | str) -> Config:
    """Reads the configuration of a run folder.

    Raises:
      RunFolderError: if it has none.
    """
    found = runfolder.read_config(workdir)
    if found is None:
        raise RunFolderError(f"{workdir} holds no run: config.json is missing")
    return from_json(found)


def trained_state(workdir: os.PathLike | str, parts: Parts) -> TrainState:
    """Restores the newest verified state of a run.

    Raises:
      ModelError: if the run has no checkpoint.
    """
    checkpoints, newest = _newest(workdir)
    return checkpoints.restore(newest, parts.trainer.abstract)[0]


def _newest(workdir: os.PathLike | str) -> tuple[Checkpoints, int]:
    folder = epath.Path(workdir) / "checkpoints"
    checkpoints = Checkpoints(folder, every_steps=0, keep=1)
    newest = checkpoints.newest_verified()
    if newest is None:
        raise ModelError(f"{workdir} has no committed checkpoint; train first")
    return checkpoints, newest


def trained_params(
    workdir: os.PathLike | str, model: Model, built: Mesh
) -> tuple[int, Params]:
    """Restores the newest verified parameters of a run.

    Raises:
      ModelError: if the run has no checkpoint.
    """
    checkpoints, newest = _newest(workdir)
    abstract = abstract_params(model.spec)
    places = rules.shardings(abstract, built, rules.PARAM_RULES)
    wanted = rules.with_shardings(abstract, places)
    return newest, checkpoints.restore_params(newest, wanted)
