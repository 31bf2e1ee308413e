"""The order of events of a run: check, build, resume, train, export, report.

The parts come from `wiring/`; this file says which is needed when. All that can be
refused is refused before the run folder is touched or anything compiles.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from absl import logging
from etils import epath

from dpo_jax import __version__
from dpo_jax.config import Config
from dpo_jax.errors import ConfigError
from dpo_jax.losses import LOSSES
from dpo_jax.sharding import arrays
from dpo_jax.train import loop, runfolder, signals, throughput, watchdog
from dpo_jax.train.checkpoint import Checkpoints
from dpo_jax.train.clock import Clock
from dpo_jax.train.metrics import MetricsLog
from dpo_jax.train.step import Metrics, without_transfers
from dpo_jax.types import Batch, TrainState
from dpo_jax.wiring import (
    agreeing,
    checks,
    evaluation,
    outputs,
    restoring,
    training,
)
from dpo_jax.wiring import data as data_wiring
from dpo_jax.wiring import model as model_wiring
from dpo_jax.wiring.outputs import Summary
from dpo_jax.wiring.parts import Parts, prepare
from dpo_jax.wiring.reference import Annotators

Progress = Callable[[int, int, dict[str, float]], None]


def quiet(step: int, last: int, values: dict[str, float]) -> None:
    """Shows no progress."""


def run(
    config: Config,
    workdir: os.PathLike | str,
    *,
    losses: checks.LossTable = LOSSES,
    fork: bool = False,
    progress: Progress = quiet,
) -> Summary:
    """Trains, or goes on training, in a run folder.

    Args:
      config: as `get_config` returns it.
      workdir: the run folder; may be `gs://…`.
      losses: the table that `loss.name` is looked up in.
      fork: go on from the folder's checkpoint although the configuration changed.
      progress: called with (step, last step, values) on every process.

    Raises:
      UserError: what a user can mend, before anything compiles.
      Preempted: after a signal, with the state committed.
    """
    agreeing.agree_on_start(config, workdir)
    clock, bound = Clock(), checks.check(config, losses)
    built = checks.make_mesh(config)
    outputs.check_own_target(workdir)
    config = restoring.relaunched(config, workdir, fork=fork)
    with clock, jax.set_mesh(built), signals.stop_requests() as stop:
        parts = clock.timed("setup", prepare)(config, bound, built, workdir)
        if runfolder.finished_step(workdir) == parts.steps and not fork:
            done = runfolder.read_json(workdir, "results.json") or {}
            values, report = done.get("values", {}), parts.data.report
            return Summary(parts.steps, parts.steps, True, values, done, report)
        first = jax.process_index() == 0
        with runfolder.claim(workdir, first=first):
            return _train(Launch(workdir, parts, stop, progress, fork, losses, clock))


class Launch(NamedTuple):
    """One launch of a run: what was asked for, and who is to be asked or told."""

    workdir: os.PathLike | str
    parts: Parts
    stop: signals.Stop
    progress: Progress
    fork: bool
    losses: checks.LossTable
    clock: Clock


def _train(launch: Launch) -> Summary:
    """Resumes or starts, runs the loop, and writes what a finished run leaves."""
    workdir, parts, config = launch.workdir, launch.parts, launch.parts.config
    clock = launch.clock
    checkpoints = Checkpoints(
        epath.Path(workdir) / "checkpoints",
        every_steps=config.checkpoint.every_steps,
        keep=config.checkpoint.keep,
        keep_best=config.checkpoint.keep_best,
    )
    with checkpoints:
        first = restoring.first_step(checkpoints, parts)
        launch.stop.rest(first)
        with clock.bucket("setup"):
            peak = throughput.peak(config.model.dtype)
            # before the state, so that a cached reference is never held beside it
            asked = parts.annotators(config, workdir)
            state, seal = restoring.resume(checkpoints, parts, first, fork=launch.fork)
        log = outputs.begin(workdir, config, parts.data.report, first, seal)
        for split, account in parts.data.report.items():
            logging.info("data.%s: %s", split, account["summary"])
        shapes = dict(parts.train.compiled_shapes())
        logging.info("compiles %d step shapes {rows: steps}: %s", len(shapes), shapes)
        logging.info("mfu is a share of %.4g FLOP/s: %s", *peak)
        with watchdog.Watchdog(config.train.watchdog_seconds, workdir):
            trained = _loop(launch, checkpoints, asked, first, state, log)
        state, values, sampled = trained
        launch.stop.rest(parts.steps)
    with clock.bucket("export"):
        outputs.export(
            parts.model,
            state.params,
            parts.data.tokenizer,
            epath.Path(workdir) / "export",
            card=outputs.model_card(config, parts.steps, launch.losses),
            own_tokenizer=bool(config.tokenizer.path),
        )
    with clock.bucket("report"):
        results = {} if sampled is None else evaluation.before_and_after(sampled)
        if jax.process_index() == 0:
            outputs.leave_behind(workdir, parts.steps, values, results, sampled)
    report, seconds = parts.data.report, clock.seconds()
    ended = Summary(parts.steps, first, False, values, results, report, seconds, peak)
    if jax.process_index() == 0:
        outputs.write_timing(workdir, ended)
    return ended


def _loop(
    launch: Launch,
    checkpoints: Checkpoints,
    asked: Annotators,
    first: int,
    state: TrainState,
    log: MetricsLog | None,
) -> tuple[TrainState, dict[str, float], evaluation.Sampled | None]:
    """Hands the loop its functions; returns the last values and rollouts as well."""
    workdir, parts, config = launch.workdir, launch.parts, launch.parts.config
    with launch.clock.bucket("eval"):
        measure, sampled = _measure(config, parts, asked)

    def save(step: int, state: TrainState, values: dict[str, float]) -> None:
        meta = {
            "mesh": dict(parts.mesh.shape),
            "version": __version__,
            "data": parts.data.fingerprint,
            "lines": None if log is None else log.seal()._asdict(),
        }
        checkpoints.save(step, state, meta, values)

    timed, live = launch.clock.timed, asked.live
    batches = data_wiring.global_batches(parts.train, parts.mesh, first, asked.on_host)
    functions = loop.Parts(
        step=timed("step", _step(parts, asked)),
        next_batch=timed("data", lambda: next(batches)),
        facts=training.make_facts(
            parts.train,
            parts.model.spec,
            None if live is None else live.model.spec,
            throughput.peak(config.model.dtype).flops_per_second,
        ),
        compiles=parts.train.new_shapes(first).__contains__,
        now=launch.clock.working,
        evaluate=None if measure is None else timed("eval", measure),
        save=timed("checkpoint", save),
        wait=timed("checkpoint", checkpoints.wait),
        log=_nowhere if log is None else log.write,
        progress=lambda step, values: launch.progress(step, parts.steps, values),
        on_bad=lambda n: outputs.bad_batch(workdir, n, parts.train.ids_at(n - 1)),
        to_host=timed("step", arrays.to_host),
        stop=launch.stop,
    )
    try:
        state, values = loop.run(
            state,
            functions,
            first=first,
            last=parts.steps,
            cadence=loop.Cadence(
                *(config[what].every_steps for what in ("log", "eval", "checkpoint"))
            ),
            skip_nonfinite=config.train.on_nonfinite == "skip",
        )
    finally:
        if log is not None:
            log.close()
    return state, values, sampled[0] if sampled else None


def _step(parts: Parts, asked: Annotators) -> Callable[..., tuple[TrainState, Metrics]]:
    """Builds the loop's step: the reference's columns, then the update."""
    frozen, hyper = asked.frozen, parts.trainer.hyper()

    def take(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        batch = asked.on_device(state, frozen, batch, state.key, hyper)
        return parts.trainer.step(state, frozen, batch, hyper)

    return without_transfers(take)


def _nowhere(step: int, split: str, values: dict[str, Any]) -> None:
    """Takes the metrics of processes that write none."""


def _measure(
    config: Config, parts: Parts, asked: Annotators
) -> tuple[Callable[[TrainState], dict[str, float]] | None, list[evaluation.Sampled]]:
    """Builds the evaluation of a state, and a list that keeps its last rollouts."""
    evaluate = sample = None
    if parts.eval is not None:
        evaluate = evaluation.make_evaluate(
            parts.trainer, asked, parts.eval, parts.mesh
        )
    if config.eval.rollouts and asked.live is not None:
        sample = evaluation.make_rollouts(config, parts, asked.live)
    last: list[evaluation.Sampled] = []

    def measure(state: TrainState) -> dict[str, float]:
        values = {} if evaluate is None else evaluate(state)
        if sample is not None:
            last[:] = [sample(state.params)]
            values |= evaluation.rollout_metrics(last[0])
        return values

    return (None if evaluate is None and sample is None else measure), last


def evaluate(
    config: Config,
    workdir: os.PathLike | str,
    *,
    losses: checks.LossTable = LOSSES,
) -> Summary:
    """Evaluates the newest checkpoint of a run on data.eval, and by rollouts."""
    agreeing.agree_on_start(config, workdir)
    bound = checks.check(config, losses)
    built = checks.make_mesh(config)
    with jax.set_mesh(built):
        parts = prepare(config, bound, built, workdir)
        state = restoring.trained_state(workdir, parts)
        asked = parts.annotators(config, workdir, evaluation_only=True)
        measure, sampled = _measure(config, parts, asked)
        if measure is None:
            raise ConfigError("nothing to evaluate: data.eval is empty")
        values, step = measure(state), int(state.step)
    results = evaluation.before_and_after(sampled[0]) if sampled else {}
    return Summary(step, step, False, values, results, parts.data.report)


def export_run(
    workdir: os.PathLike | str,
    out: os.PathLike | str,
    *,
    dtype: str,
    overwrite: bool = False,
    losses: checks.LossTable = LOSSES,
) -> None:
    """Exports the newest checkpoint of a run as an HF folder."""
    config = restoring.run_config(workdir)
    outputs.check_target(out, workdir, overwrite=overwrite)
    built = checks.make_mesh(config)
    with jax.set_mesh(built):
        tokenizer = data_wiring.load_tokenizer(config)
        folder, spec = model_wiring.find_model(config, tokenizer)
        model = model_wiring.make_model(config, folder, spec)
        step, params = restoring.trained_params(workdir, model, built)
        outputs.export(
            model,
            params,
            tokenizer,
            out,
            card=outputs.model_card(config, step, losses),
            own_tokenizer=bool(config.tokenizer.path),
            dtype=dtype,
        )
