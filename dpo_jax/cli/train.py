"""`train`: trains a policy, or goes on training it, in a run folder."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Sequence

from absl import flags, logging
from tqdm import tqdm

from dpo_jax import folders
from dpo_jax.cli import common, parent
from dpo_jax.config import check
from dpo_jax.errors import EXIT_LEASE_LOST
from dpo_jax.files import is_local
from dpo_jax.launch.hosts import LEASE

TRACED_STEPS = 5
LEASE_SECONDS = 1.0  # between looks at the lease of a sweep's trial
TOLD_SECONDS = 30.0  # between lines that tell how far a run is, without a terminal


def main(arguments: Sequence[str]) -> int:
    """Runs the verb; returns the exit code."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("workdir", "", "the run folder", flag_values=values)
        flags.DEFINE_bool(
            "fork",
            False,
            "resume in this folder although the config changed: the step count and "
            "the optimizer stay, schedules are those of the new config, which "
            "replaces config.json (attempts/ keeps the old one)",
            flag_values=values,
        )
        what = f"trace {TRACED_STEPS} steps behind the first, under RUN/profile"
        common.define_own(values, "losses", "rewards")
        flags.DEFINE_bool("profile", False, what, flag_values=values)

    values = common.parse(arguments, config=True, define=define)
    workdir = common.required(values, "workdir")
    config = values["config"].value
    check(config)  # in a blink, before jax is imported
    common.setup_logging()
    attempt = 0
    if taken := os.environ.get(LEASE):
        watch_lease(taken)
        if not is_local(workdir):
            attempt = int(os.path.basename(taken).removesuffix(".json")) - 1
    common.setup_jax(config, debug=values["debug"].value)
    from dpo_jax import build
    from dpo_jax.cli.own_functions import losses_of, rewards_of

    losses = losses_of(values["losses"].value)
    rewards = rewards_of(values["rewards"].value)
    traced = f"{workdir}/profile" if values["profile"].value else ""
    link = parent.link()
    with Progress() as progress, Trace(traced) as trace:

        def tell(step: int, last: int, values: dict[str, float]) -> None:
            progress(step, last, values)
            trace(step)
            if link is not None:
                link.tell(f"step {step}")

        summary = build.run(
            config,
            workdir,
            losses=losses,
            rewards=rewards,
            fork=values["fork"].value,
            progress=tell,
            attempt=attempt,
        )
    if common.is_first():
        sys.stdout.write(summary_text(summary, workdir))
    return 0


def watch_lease(taken: str) -> None:
    """Ends this process, from a thread, as soon as another worker has its trial.

    The worker that started it may be stopped, and can then not end it.

    Args:
      taken: the file whose existence says so, of a disk or of gs://.
    """
    seconds = max(LEASE_SECONDS, folders.folder_at(os.path.dirname(taken)).rest)

    def watch() -> None:
        while True:
            with contextlib.suppress(OSError):  # of a store that does not answer
                if folders.has(taken):
                    break
            time.sleep(seconds)
        line = f"error[{EXIT_LEASE_LOST}]: {taken}: another worker has this trial\n"
        os.write(2, line.encode())
        os._exit(EXIT_LEASE_LOST)

    threading.Thread(target=watch, daemon=True).start()


class Trace:
    """Traces a few steps of a launch, once its first has been compiled and taken.

    All of a run would fill a disk, and bury what repeats under what happens once.
    """

    def __init__(self, folder: str) -> None:
        """Waits for the first step.

        Args:
          folder: where the trace goes; '' = nothing is traced.
        """
        self._folder, self._until = folder, 0

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *_: object) -> None:
        if self._until:
            self._stop()

    def _stop(self) -> None:
        import jax

        jax.profiler.stop_trace()
        self._folder, self._until = "", 0

    def __call__(self, step: int) -> None:
        """Starts behind the first step read, stops `TRACED_STEPS` later."""
        if self._folder and not self._until:
            import jax

            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # each call of Python: gigabytes
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._until = step + TRACED_STEPS
        elif step == self._until:
            self._stop()


class Progress:
    """One live line: loss, margin, speed, ETA; without a terminal, lines in the log."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._told = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, step: int, last: int, values: dict[str, float]) -> None:
        """Shows a step."""
        if self._bar is None:
            quiet = None  # tqdm's word for "only at a terminal"
            self._bar = tqdm(total=last, initial=step - 1, unit="step", disable=quiet)
        shown = {
            "loss": f"{values['loss']:.4f}",
            "pairs/s": f"{values['pairs_per_second']:.1f}",
        }
        if "rewards/margins" in values:
            shown["margin"] = f"{values['rewards/margins']:.3f}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(step - self._bar.n)
        if self._bar.disable and time.monotonic() - self._told > TOLD_SECONDS:
            self._told = time.monotonic()
            told = ", ".join(f"{name} {value}" for name, value in shown.items())
            logging.info("step %d of %d: %s", step, last, told)


def summary_text(summary: object, workdir: str) -> str:
    """Renders what a run ended with, for a terminal."""
    from dpo_jax.build import Summary

    assert isinstance(summary, Summary)
    lines = []
    if summary.already_complete:
        lines.append(f"already complete: {summary.step} steps in {workdir}")
    else:
        since = f", resumed from {summary.resumed_from}" if summary.resumed_from else ""
        lines.append(f"finished {summary.step} steps{since}")
    for split, account in summary.data.items():
        kept, read = account["kept"], account["read"]
        lines.append(f"data.{split}: {kept} of {read} rows; {account['summary']}")
    lines += values_text(summary.values)
    lines += results_text(summary.results)
    lines += seconds_text(summary.seconds)
    if summary.peak is not None:
        speed, source = summary.peak
        lines.append(f"mfu is a share of {speed / 1e12:.4g} TFLOP/s ({source})")
    lines.append(f"policy: {workdir}/export   report: {workdir}/report.html")
    return "\n".join(lines) + "\n"


def seconds_text(seconds: dict[str, float]) -> list[str]:
    """Renders what the time went to; the shares sum to the whole."""
    if not seconds:
        return []
    shares = " + ".join(f"{name} {spent:.1f}" for name, spent in seconds.items())
    return [f"wall time {sum(seconds.values()):.1f} s = {shares}"]


def values_text(values: dict[str, float]) -> list[str]:
    """Renders evaluation metrics, one a line."""
    return [f"  eval {name:<28}{value: .4f}" for name, value in sorted(values.items())]


def results_text(results: dict) -> list[str]:
    """Renders the table before / after as aligned text."""
    if not results.get("rows"):
        return []
    names: list[str] = []
    for row in results["rows"]:
        names += [name for name in row["values"] if name not in names]
    lines = [results["title"], f"{'':<20}" + "".join(f"{n:>26}" for n in names)]
    for row in results["rows"]:
        cells = [_cell(row["values"].get(name)) for name in names]
        lines.append(f"{row['name']:<20}" + "".join(f"{c:>26}" for c in cells))
    return lines


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, (list, tuple)):
        return f"{value[0]:.4f} ± {value[1]:.4f}"
    return f"{value:.4f}"
