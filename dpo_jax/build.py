"""The order of events of a run: check, build, resume, train, export, report.

The parts come from `wiring/`; this file says which is needed when. All that can be
refused is refused before the run folder is touched or anything compiles.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from absl import logging
from etils import epath

from dpo_jax import __version__
from dpo_jax.config import Config, flat
from dpo_jax.losses import LOSSES
from dpo_jax.models.scalar import policy_of
from dpo_jax.rewards import REWARDS, RewardTable
from dpo_jax.sharding.mesh import make_mesh
from dpo_jax.train import compile_cache, loop, signals, throughput, watchdog
from dpo_jax.train.checkpoint import Checkpoints
from dpo_jax.train.clock import Clock
from dpo_jax.train.metrics import MetricsLog
from dpo_jax.train.step import Metrics, without_transfers
from dpo_jax.types import Batch, TrainState
from dpo_jax.wiring import (
    agreeing,
    checks,
    evaluation,
    exporting,
    outputs,
    owning,
    restoring,
    weights,
)
from dpo_jax.wiring import data as data_wiring
from dpo_jax.wiring.assembling import make_parts, total_steps
from dpo_jax.wiring.digests import told
from dpo_jax.wiring.model import make_policy
from dpo_jax.wiring.outputs import Summary
from dpo_jax.wiring.parts import Parts
from dpo_jax.wiring.reference import Referred
from dpo_jax.wiring.sampled_results import before_and_after

Progress = Callable[[int, int, dict[str, float]], None]


def quiet(step: int, last: int, values: dict[str, float]) -> None:
    """Shows no progress."""


def run(
    config: Config,
    workdir: os.PathLike | str,
    *,
    losses: checks.LossTable = LOSSES,
    rewards: RewardTable = REWARDS,
    fork: bool = False,
    progress: Progress = quiet,
    attempt: int = 0,
) -> Summary:
    """Trains, or goes on training, in a run folder.

    Args:
      config: as `get_config` returns it.
      workdir: the run folder; may be `gs://…`.
      losses: the table that `loss.name` is looked up in.
      rewards: that of `reward.name`.
      fork: go on from the folder's checkpoint although the configuration changed.
      progress: called with (step, last step, values) on every process.
      attempt: number of the lease on gs:// that a worker holds for this run; 0 = none.

    Raises:
      UserError: what a user can mend, before anything compiles.
      Preempted: after a signal, with the state committed.
    """
    compile_cache.use()
    agreeing.agree_on_start(flat(config), workdir, config.distributed.timeout_seconds)
    clock, bound = Clock(), checks.check(config, losses, rewards)
    mesh = make_mesh(**config.mesh)
    exporting.check_own_target(workdir)
    config, forks = restoring.relaunched(config, workdir, fork=fork)
    ended = outputs.finished(workdir, total_steps(config))
    if ended is not None and not forks:
        restoring.checkpoints_of(workdir, config.checkpoint).finish(ended.step, None)
        return ended
    with clock, jax.set_mesh(mesh), signals.stop_requests() as stop:
        with clock.bucket("setup"):
            parts = make_parts(config, bound, mesh, workdir, rewards=rewards)
        launch = Launch(workdir, parts, stop, progress, fork, forks, losses, clock)
        with owning.owned(workdir, attempt=attempt) as owned:
            return _train(launch, owned)


class Launch(NamedTuple):
    """One launch of a run: what was asked for, and who is to be asked or told.

    `fork` says that the configuration may differ from the folder's, `forks` that it
    does.
    """

    workdir: os.PathLike | str
    parts: Parts
    stop: signals.Stop
    progress: Progress
    fork: bool
    forks: bool
    losses: checks.LossTable
    clock: Clock


def _train(launch: Launch, owned: owning.Owned) -> Summary:
    """Resumes or starts, runs the loop, and writes what a finished run leaves."""
    workdir, parts, config = launch.workdir, launch.parts, launch.parts.config
    clock = launch.clock
    kept = config.checkpoint
    with restoring.checkpoints_of(workdir, kept, owned.attempt) as checkpoints:
        first = restoring.first_step(
            checkpoints, parts.steps, workdir, owned.attempt, forks=launch.forks
        )
        launch.stop.rest(first)
        with clock.bucket("setup"):
            peak = throughput.peak(config.model.dtype)
            # before the state, so that a cached reference is never held beside it
            referred = parts.refer(workdir)
            with clock.bucket("eval"):
                measures = evaluation.make_measures(parts, referred, workdir)
            start = restoring.resume(
                checkpoints, parts, referred.frozen, first, fork=launch.fork
            )
        report = parts.data.report
        log = outputs.begin(workdir, config, report, first, start.seal, owned.attempt)
        for split, account in report.items():
            logging.info("data.%s: %s", split, account["summary"])
        logging.info("mfu is a share of %.4g FLOP/s: %s", *peak)
        with watchdog.Watchdog(config.train.watchdog_seconds, workdir):
            state, values = _loop(launch, checkpoints, referred, measures, start, log)
        launch.stop.rest(parts.steps)
    sampled = None if measures.rollouts is None else measures.rollouts.last
    owned.check()
    with clock.bucket("export"):
        exporting.export(
            parts.model,
            policy_of(state.params),
            parts.data.tokenizer,
            epath.Path(workdir) / "export",
            card=outputs.model_card(config, parts.steps, launch.losses),
            own_tokenizer=bool(config.tokenizer.path),
        )
    with clock.bucket("report"):
        results = {} if sampled is None else before_and_after(sampled)
        owned.check()
        if jax.process_index() == 0:
            outputs.leave_behind(workdir, parts.steps, values, results, sampled)
    known = values, results, report, clock.seconds(), peak, clock.programs
    ended = Summary(parts.steps, first, False, *known)
    if jax.process_index() == 0:
        outputs.write_timing(workdir, ended)
    checkpoints.finish(parts.steps, state.params)
    return ended


def _loop(
    launch: Launch,
    checkpoints: Checkpoints,
    referred: Referred,
    measures: evaluation.Measures,
    start: restoring.Start,
    log: MetricsLog | None,
) -> tuple[TrainState, dict[str, float]]:
    """Hands the loop its functions; returns the last state and the last values."""
    workdir, parts, config = launch.workdir, launch.parts, launch.parts.config

    def save(step: int, state: TrainState, values: dict[str, float]) -> None:
        meta = {
            "mesh": dict(parts.mesh.shape),
            "version": __version__,
            "data": parts.data.fingerprint,
            "measured": bool(values),
            "lines": None if log is None else log.seal()._asdict(),
        }
        checkpoints.save(step, state, meta, values)

    timed, clock = launch.clock.timed, launch.clock.working
    feed = parts.feed(referred, start.first, clock)
    functions = loop.Functions(
        next_batch=timed("data", feed.next_batch),
        step=timed("step", _step(parts, referred, workdir)),
        facts=feed.facts,
        compiles=feed.compiles,
        now=clock,
        evaluators={
            name: each._replace(measure=timed("eval", _whole(each.measure)))
            for name, each in measures.evaluators.items()
        },
        save=timed("checkpoint", save),
        wait=timed("checkpoint", checkpoints.wait),
        log=_nowhere if log is None else log.write,
        progress=lambda step, values: launch.progress(step, parts.steps, values),
        on_bad=lambda n: outputs.bad_batch(workdir, n, feed.ids_at(n - 1)),
        to_host=timed("step", jax.device_get),
        stop=launch.stop,
    )
    try:
        return loop.run(
            start.state,
            functions,
            first=start.first,
            last=parts.steps,
            cadence=loop.Cadence(
                config.log.every_steps, config.checkpoint.every_steps, feed.updates
            ),
            skip_nonfinite=config.train.on_nonfinite == "skip",
            measured=start.measured,
            at_start=config.eval.at_start,
        )
    finally:
        if log is not None:
            log.close()


def _step(
    parts: Parts, referred: Referred, workdir: os.PathLike | str
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Builds the loop's step: the reference's columns, then the update."""
    frozen, hyper = referred.frozen, parts.trainer.hyper()
    step = told(parts.updates, parts.trainer.step, workdir)

    def take(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        batch = referred.annotate(state, frozen, batch, state.key, hyper)
        return step(state, frozen, batch, hyper)

    return without_transfers(take)


def _whole(measure: Callable[..., Iterator]) -> Callable[..., Iterator]:
    """Makes an evaluator measure all before it yields, so that a clock can time it."""
    return lambda state: iter(list(measure(state)))


def _nowhere(step: int, split: str, values: dict[str, Any]) -> None:
    """Takes the metrics of processes that write none."""


def evaluate(
    config: Config,
    workdir: os.PathLike | str,
    *,
    losses: checks.LossTable = LOSSES,
    rewards: RewardTable = REWARDS,
) -> Summary:
    """Evaluates the newest checkpoint of a run on data.eval, and by rollouts."""
    agreeing.agree_on_start(flat(config), workdir, config.distributed.timeout_seconds)
    config = restoring.measured_config(config, workdir)
    bound = checks.check(config, losses, rewards)
    mesh = make_mesh(**config.mesh)
    with jax.set_mesh(mesh):
        parts = make_parts(config, bound, mesh, workdir, ("eval",), rewards=rewards)
        state = restoring.trained_state(workdir, parts)
        referred = parts.refer(workdir, evaluation_only=True)
        measures = evaluation.make_measures(parts, referred, workdir)
        evaluators, values = measures.evaluators.values(), dict[str, float]()
        for evaluator in evaluators:
            values.update(evaluator.measure(state))
        step = int(state.step)
    sampled = None if measures.rollouts is None else measures.rollouts.last
    results = {} if sampled is None else before_and_after(sampled)
    return Summary(step, step, False, values, results, parts.data.report)


def export_run(
    workdir: os.PathLike | str,
    out: os.PathLike | str,
    *,
    dtype: str,
    overwrite: bool = False,
    merged: bool = False,
    losses: checks.LossTable = LOSSES,
) -> None:
    """Exports the newest checkpoint of a run as an HF folder, or one of peft."""
    config = restoring.run_config(workdir)
    exporting.check_target(out, workdir, overwrite=overwrite)
    mesh = make_mesh(**config.mesh)
    with jax.set_mesh(mesh):
        path, train = config.tokenizer.path, config.data.train
        tokenizer = data_wiring.load_tokenizer(path, config.model, train)
        model = make_policy(config, tokenizer)
        step, params = restoring.trained_params(workdir, model, mesh)
        if merged:
            model, params = weights.merged(model, params, mesh, seed=config.seed)
        exporting.export(
            model,
            params,
            tokenizer,
            out,
            card=outputs.model_card(config, step, losses),
            own_tokenizer=bool(path),
            dtype=dtype,
        )
