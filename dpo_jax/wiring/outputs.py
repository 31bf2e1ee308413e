"""What a run leaves behind: accounts, samples, results, the report, a model's card."""

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import logging
from etils import epath

from dpo_jax import __version__, files, lines
from dpo_jax.config import Config, fingerprint, flat, to_json
from dpo_jax.errors import RunFolderError
from dpo_jax.files import AnyPath
from dpo_jax.lines import Seal
from dpo_jax.losses import LossTable
from dpo_jax.objectives import OBJECTIVES
from dpo_jax.objectives.algorithms import SampleKind
from dpo_jax.objectives.judged import Kind
from dpo_jax.report import html
from dpo_jax.report.runs import results_fault
from dpo_jax.train import runfolder, trackers
from dpo_jax.train.metrics import MetricsLog
from dpo_jax.train.throughput import Peak
from dpo_jax.wiring.data import rows_kept
from dpo_jax.wiring.objective import losses_of, used_options
from dpo_jax.wiring.rewarding import names_of
from dpo_jax.wiring.sampled_results import Sampled, by_prompt, side_by_side

SHOWN_SAMPLES = 12


class Summary(NamedTuple):
    """What a run ended with.

    Attributes:
      step: optimizer steps taken.
      resumed_from: step that this launch started from; 0 = from the beginning.
      already_complete: nothing was left to do.
      values: the last evaluation's metrics; {} without one.
      results: the table before / after; {} without rollouts.
      data: what data.json holds.
      seconds: what the time of this launch was spent on; see `train/clock.py`.
      peak: what `mfu` is a share of; None where nothing was trained.
      programs: compiled and kept in the compile cache, and read from it.
    """

    step: int
    resumed_from: int
    already_complete: bool
    values: dict[str, float]
    results: dict[str, Any]
    data: dict[str, Any]
    seconds: dict[str, float] = {}
    peak: Peak | None = None
    programs: dict[str, int] = {}


def finished(workdir: AnyPath, last: Callable[[int], int]) -> Summary | None:
    """Tells what a finished run ended with, from its files; None of an unfinished one.

    Args:
      workdir: the run folder.
      last: records of data.train -> steps of the run.
    """
    step = runfolder.finished_step(workdir)
    try:
        report = runfolder.read_json(workdir, "data.json") or {}
    except RunFolderError as error:
        logging.warning("%s; the end of the run is repeated", error)
        return None
    if "train" not in report or not all(map(_is_account, report.values())):
        return None
    if step != last(rows_kept(report["train"])):
        return None
    done = runfolder.read_json(workdir, "results.json") or {}
    if fault := results_fault(done):
        logging.warning("results.json: %s; the end of the run is repeated", fault)
        return None
    return Summary(step, step, True, done.get("values", {}), done, report)


def _is_account(account: Any) -> bool:
    """Says whether a value of data.json tells of a split what `Summary` shows."""
    if not isinstance(account, dict) or not isinstance(account.get("summary"), str):
        return False
    labels = account.get("labels", {})
    counts = [account.get("kept"), account.get("read")]
    counts += labels.values() if isinstance(labels, dict) else [None]
    return all(type(count) is int and 0 <= count < 2**63 for count in counts)


def write_timing(workdir: AnyPath, ended: Summary) -> None:
    """Writes timing.json: what the launch's time went to, and what `mfu` is a share of.

    Only the launch that finishes a run leaves one.

    Raises:
      WriteError: if it cannot be written.
    """
    timing = {
        "steps": ended.step - ended.resumed_from,
        "seconds": ended.seconds,
        "peak": ended.peak._asdict() if ended.peak else None,
        "programs": ended.programs,
    }
    write_json(workdir, "timing.json", timing)


def write_json(workdir: AnyPath, name: str, value: Any) -> None:
    """Writes a JSON file of the run folder.

    Raises:
      WriteError: if it cannot be written.
    """
    text = json.dumps(value, indent=1) + "\n"
    files.write_whole(epath.Path(workdir) / name, text)


def begin(
    workdir: AnyPath,
    config: Config,
    report: dict[str, Any],
    first: int,
    sealed: Seal | None,
    number: int = 0,
) -> MetricsLog | None:
    """Writes what a launch is, and opens its metrics; None on other than process 0.

    Args:
      workdir: the run folder, claimed.
      config: what config.json is to hold.
      report: what data.json is to hold.
      first: steps already taken.
      sealed: what the checkpoint of that step says of the lines of metrics.jsonl.
      number: of this launch, as its lease on gs:// has it; 0 = counted here.

    Raises:
      WriteError: if the folder does not take it.
    """
    if jax.process_index():
        return None
    text = to_json(config)
    runfolder.write_config(workdir, text)
    write_json(workdir, "data.json", report)
    attempt = runfolder.begin_attempt(workdir, json.loads(text), commit(), number)
    return MetricsLog(
        workdir,
        resume_step=first,
        attempt=attempt,
        sealed=sealed,
        mirrors=mirrors(workdir, flat(config), first),
    )


def mirrors(
    workdir: AnyPath, keys: dict[str, Any], first: int
) -> list[trackers.Mirror]:
    """Starts the trackers of `log.to`, in the run of theirs that this folder is.

    Args:
      workdir: the run folder.
      keys: of the flat configuration, all of which are told.
      first: steps already taken.
    """
    folder, to = epath.Path(workdir), trackers.named(keys["log.to"])
    apart = [name for name in to if name != "tensorboard"]
    kept, told = {}, {}
    if apart:
        before = trackers.read_identity(folder / "tracker.json")
        kept = trackers.identity(before, fingerprint(keys))
        if kept == before:
            told = trackers.told(lines.read(folder))
        write_json(workdir, "tracker.json", kept)
    about = trackers.About(
        folder=os.fspath(folder) if files.is_local(workdir) else "",
        name=folder.name,
        id=kept.get("id", ""),
        project=keys["log.project"],
        config=keys,
        first=first,
    )
    return [trackers.Mirror(name, about, told) for name in to]


def bad_batch(workdir: AnyPath, number: int, ids: list[int]) -> str:
    """Keeps the ids of a step that went wrong; names them for the message.

    All processes see the same step, so one of them writes the file.
    """
    if jax.process_index() == 0:
        write_json(workdir, f"errors/batch{number}.json", {"step": number, "ids": ids})
    return f"rows {ids[:8]}{' …' if len(ids) > 8 else ''} of data.train"


def leave_behind(
    workdir: AnyPath,
    step: int,
    values: dict[str, float],
    results: dict[str, Any],
    sampled: Sampled | None,
) -> None:
    """Writes samples.json, rollouts.json, results.json and, last, report.html.

    With that the run is whole.
    """
    if sampled is not None:
        shown = side_by_side(sampled, SHOWN_SAMPLES)
        write_json(workdir, "samples.json", shown)
        write_json(workdir, "rollouts.json", {"step": step, **by_prompt(sampled)})
    write_json(workdir, "results.json", {**results, "step": step, "values": values})
    if files.is_local(workdir):
        html.write_report([workdir], Path(workdir) / "report.html")
        return
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "report.html"
        html.write_report([workdir], page)
        files.write_whole(epath.Path(workdir) / page.name, page.read_bytes())


def commit() -> str:
    """Names the code: the commit of this checkout, else the installed version."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "rev-parse", "--short=12", "HEAD"]
    try:
        named = subprocess.run(
            [*command, "--show-prefix"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return f"version {__version__}"
    lines = named.stdout.split()
    if named.returncode or lines[1:] != ["dpo_jax/wiring/"]:  # another repository's
        return f"version {__version__}"
    return f"commit {lines[0]}"


def model_card(config: Config, step: int, losses: LossTable) -> str:
    """Renders the README.md of an export.

    Args:
      config: of the run.
      step: optimizer steps taken.
      losses: the table that `loss.name` was looked up in.
    """
    model, ref, loss, opt = config.model, config.ref, config.loss, config.optimizer
    start = ref.path or "the initial policy"
    if ref.sync_every_steps:
        every = ref.sync_every_steps
        start += f", moved by {ref.sync_mix:g} to the policy every {every} steps"
    share, warmup = opt.warmup_share, f"{opt.warmup_steps} steps"
    kind = OBJECTIVES[config.objective]
    options = config[config.objective] if isinstance(kind, SampleKind) else {}
    if isinstance(kind, SampleKind):
        learned = config.objective
        settings = [f"{name} {value}" for name, value in options.items()]
        settings += [f"reward {'+'.join(names_of(config.reward))}"]
    else:
        learned = loss.name
        settings = [f"{n} {loss[n]}" for n in options_of(kind, loss, losses)]
        settings += [f"{name} {value}" for name, value in flat(loss.options).items()]
    rows = f"{config.batch.pairs} rows"
    if isinstance(kind, SampleKind):
        minibatch = config.rollout.prompts // options["minibatches"]
        rows = f"{minibatch * config.rollout.samples} samples"
    said = {
        "base model": model.path or f"none (preset `{model.preset}`, from scratch)",
        "reference": "none" if ref.mode == "none" else start,
        "training data": config.data.train,
        "objective": config.objective,
        "loss": learned + (f" ({', '.join(settings)})" if settings else ""),
        "steps": f"{step} of {rows} each",
        "optimizer": (
            f"{opt.name}, lr {opt.lr:g}, schedule {opt.schedule} after "
            f"{f'{share:.3g} of the steps' if share else warmup}"
        ),
        "code": f"dpo_jax, {commit()}, configuration {fingerprint(config)}",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in said.items())
    table = re.sub(r"://[^/@\s]*@", "://***@", table)  # no password of an address
    return (
        "---\nlibrary_name: transformers\ntags:\n- dpo_jax\n"
        f"- {learned}\n---\n\n# Policy trained with dpo_jax\n\n"
        f"| | |\n|---|---|\n{table}\n"
    )


def options_of(kind: Kind, given: Mapping[str, Any], table: LossTable) -> list[str]:
    """Names the options of the losses; none of one that a user's own table had.

    Args:
      kind: of the objective.
      given: `config.loss`.
      table: of losses.
    """
    if not all(name in table for name in given["name"].split("+")):
        return []
    used = used_options(kind, losses_of(given, table), given)
    return [name for name in given if name in used]
