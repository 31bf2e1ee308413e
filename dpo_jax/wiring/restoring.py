"""What a run folder holds already: its configuration, its state, its parameters."""

import json
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
from absl import logging
from etils import epath
from jax.sharding import Mesh

from dpo_jax import __version__
from dpo_jax import config as config_lib
from dpo_jax.config import Config
from dpo_jax.config_files import from_json
from dpo_jax.errors import ModelError, RunFolderError
from dpo_jax.files import AnyPath
from dpo_jax.lines import Seal
from dpo_jax.roles import whole
from dpo_jax.schema import Section
from dpo_jax.sharding import rules
from dpo_jax.train import runfolder
from dpo_jax.train.checkpoint import Checkpoints
from dpo_jax.train.manifest import PARAMS, given_up
from dpo_jax.types import Frozen, Params, TrainState
from dpo_jax.wiring.model import Model
from dpo_jax.wiring.parts import Parts
from dpo_jax.wiring.weights import own_params, trained_shapes

T = TypeVar("T")
MEASURING = (*config_lib.RELAUNCH, "data.eval", "ref.mode", "ref.cache_dir")


class Start(NamedTuple):
    """Where a launch begins.

    Attributes:
      first: updates taken.
      state: after them.
      measured: whether the evaluations due after them were made; a run that is told to
        stop leaves them to the next launch.
      seal: what the checkpoint says of the lines of metrics.jsonl; None if there is no
        checkpoint, or one of a version that did not say.
    """

    first: int
    state: TrainState
    measured: bool
    seal: Seal | None


def checkpoints_of(workdir: AnyPath, kept: Section, attempt: int = 0) -> Checkpoints:
    """Opens the checkpoints of a run; touches nothing.

    Args:
      workdir: the run folder.
      kept: `config.checkpoint`.
      attempt: number of the run's lease on gs://; 0 = on a disk, or to read.
    """
    return Checkpoints(
        epath.Path(workdir) / "checkpoints",
        every_steps=kept["every_steps"],
        keep=kept["keep"],
        keep_best=kept["keep_best"],
        after=kept["after"],
        attempt=attempt,
    )


def first_step(
    checkpoints: Checkpoints,
    last: int,
    workdir: AnyPath,
    attempt: int,
    *,
    forks: bool,
) -> int:
    """Finds the newest verified step; 0 = start over, and says so.

    Args:
      checkpoints: of the run folder.
      last: step of the run.
      workdir: the run folder.
      attempt: number of this launch; that the first finds nothing is no news.
      forks: whether the run goes on with another configuration than it had.

    Raises:
      ModelError: if steps were committed and none is sound.
      RunFolderError: if it lies behind the end of the run, or at the end of a run whose
        configuration changed: its results would be told of a training that never was;
        or if the run was done once and kept none.
    """
    newest = checkpoints.newest_verified()
    if newest is None and (kept := given_up(epath.Path(workdir) / "checkpoints")):
        raise RunFolderError(
            f"{workdir} was done and gave up its checkpoints (checkpoint.after="
            f"{kept!r}), so nothing goes on from them; its policy is in "
            f"{workdir}/export: choose another --workdir"
        )
    if newest is None:
        say = logging.warning if attempt > 1 else logging.info
        say("no checkpoint was committed here: starting from step 0")
        return 0
    if newest > last:
        raise RunFolderError(
            f"the newest checkpoint is of step {newest}, beyond the last step {last} "
            "of this configuration; raise train.steps or choose another --workdir"
        )
    if newest == last and forks:
        raise RunFolderError(
            f"{workdir} is trained to step {newest}, the last of this configuration; "
            "--fork would train nothing; raise train.steps, or choose another --workdir"
        )
    return newest


def relaunched(config: Config, workdir: AnyPath, *, fork: bool) -> tuple[Config, bool]:
    """Keeps what the folder's first launch chose where a key leaves it open.

    Returns:
      The configuration, and whether the run goes on with another than it had.

    Raises:
      RunFolderError: if the folder was started with another configuration.
    """
    runfolder.check_files(workdir)
    old = config_lib.flat(runfolder.read_json(workdir, "config.json") or {})
    now = config.data.now or old.get("data.now", "")  # the clock of the first launch
    config = config_lib.stated(config, {"data.now": now})
    runfolder.check_same(workdir, json.loads(config_lib.to_json(config)), fork=fork)
    forks = bool(old) and bool(config_lib.changes(old, config.to_dict()))
    key = "batch.microbatches"
    if fork or config.batch.microbatches or not old.get(key):
        return config, forks
    return config_lib.stated(config, {key: old[key]}), forks


def resume(
    checkpoints: Checkpoints, parts: Parts, frozen: Frozen, first: int, *, fork: bool
) -> Start:
    """Restores the state after `first` steps, from `first_step`.

    Returns:
      (state, what the checkpoint says of the lines of metrics.jsonl; None if it is of a
      version that did not say, or there is none).

    Raises:
      RunFolderError: if the data are not those that the run was trained on.
    """
    if not first:
        return Start(0, parts.trainer.init(frozen), measured=False, seal=None)
    state, meta = checkpoints.restore(first, parts.trainer.abstract)
    if meta["data"] != parts.data.fingerprint and not fork:
        raise RunFolderError(
            f"data.train changed since step {first} of this run (its tokens' "
            f"fingerprint was {meta['data']} in version {meta['version']}, is "
            f"{parts.data.fingerprint} in {__version__}); restore the data, choose "
            "another --workdir, or --fork to go on with the new rows"
        )
    here = dict(parts.mesh.shape)
    if meta["mesh"] != here:
        logging.warning("mesh changed: %s → %s", meta["mesh"], here)
    logging.info("resumed from step %d", first)
    sealed = meta.get("lines")
    seal = None if sealed is None else Seal(**sealed)
    return Start(first, state, meta.get("measured", True), seal)


def run_config(workdir: AnyPath) -> Config:
    """Reads the configuration of a run folder.

    Raises:
      RunFolderError: if it has none.
    """
    runfolder.check_files(workdir)
    saved = runfolder.read_json(workdir, "config.json")
    if saved is None:
        raise RunFolderError(f"{workdir} holds no run: config.json is missing")
    return from_json(saved)


def measured_config(given: Config, workdir: AnyPath) -> Config:
    """Returns a run's configuration, to be measured where and on what `given` says.

    What a run is stands in its folder: model, tokenizer, loss, training data. `given`
    says which machine it is measured on, and the evaluation (`MEASURING`).

    Raises:
      RunFolderError: if `given` says another thing of what the run is.
    """
    own = run_config(workdir)
    old = config_lib.flat(own)
    now = given.data.now or old.get("data.now", "")
    given = config_lib.stated(given, {"data.now": now})
    new = config_lib.flat(given)
    free = {key: value for key, value in new.items() if key.startswith(MEASURING)}
    differing = config_lib.changes({**old, **free}, new)
    if differing:
        raise RunFolderError(
            f"{workdir} was trained with something else: {'; '.join(differing)}; what "
            "a run is is read from its folder: leave these out"
        )
    return config_lib.stated(own, {key: config_lib.at(given, key) for key in free})


def trained_state(workdir: AnyPath, parts: Parts) -> TrainState:
    """Restores the newest verified state of a run.

    Raises:
      ModelError: if the run has no checkpoint.
    """
    abstract = parts.trainer.abstract
    folder = epath.Path(workdir) / "checkpoints"
    restore = lambda saved, step: saved.restore(step, abstract)  # noqa: E731
    return _newest(workdir, restore, folder)[1][0]


def trained_params(workdir: AnyPath, model: Model, mesh: Mesh) -> tuple[int, Params]:
    """Restores the newest verified parameters of a run: what was trained of the policy.

    Raises:
      ModelError: if the run has no checkpoint.
    """
    abstract = trained_shapes(model)
    places = rules.shardings(abstract, mesh, rules.PARAM_RULES)
    wanted = rules.with_shardings(abstract, places)
    folder = epath.Path(workdir) / "checkpoints"
    apart = given_up(folder) == "params"
    return _newest(
        workdir,
        lambda saved, step: saved.restore_params(step, wanted),
        folder / PARAMS if apart else folder,
    )


def policy_params(
    workdir: AnyPath | None, model: Model, mesh: Mesh, frozen: Frozen, *, seed: int
) -> Params:
    """Loads all that a run's policy computes with, at its newest verified step.

    Args:
      workdir: the run folder; None = before the first step.
      model: the policy.
      mesh: of the devices.
      frozen: of `base_params`.
      seed: of what is drawn.

    Raises:
      ModelError: as `trained_params`.
    """
    if workdir is None:
        return whole(own_params(model, mesh, seed=seed), frozen)
    return whole(trained_params(workdir, model, mesh)[1], frozen)


def _newest(
    workdir: AnyPath, restore: Callable[[Checkpoints, int], T], folder: epath.Path
) -> tuple[int, T]:
    """Restores the newest verified step; the next where a living run deletes it."""
    checkpoints = Checkpoints(folder, every_steps=0, keep=1)
    while True:
        step = checkpoints.newest_verified(rename=False)
        try:
            if step is not None:
                return step, restore(checkpoints, step)
        except ModelError:
            if jax.process_count() > 1 or step in checkpoints.committed_steps():
                raise
            logging.info("step %d was deleted while it was read", step)
        if not checkpoints.committed_steps():
            if kept := given_up(folder):
                raise ModelError(
                    f"{workdir} kept no train state when it was done (checkpoint.after="
                    f"{kept!r}); its policy is {workdir}/export"
                )
            raise ModelError(f"{workdir} has no committed checkpoint; train first")
