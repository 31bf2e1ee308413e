"""`train`: trains a policy, or goes on training it, in a run folder."""

import contextlib
import sys
from collections.abc import Iterator, Sequence

from absl import flags
from tqdm import tqdm

from dpo_jax.cli import common


def main(arguments: Sequence[str]) -> int:
    """Runs the verb; returns the exit code."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("workdir", "", "the run folder", flag_values=values)
        flags.DEFINE_bool(
            "fork",
            False,
            "go on from the checkpoint with a changed config",
            flag_values=values,
        )
        flags.DEFINE_bool("profile", False, "trace the run", flag_values=values)

    values = common.parse(arguments, config=True, define=define)
    workdir = common.required(values, "workdir")
    config = values["config"].value
    common.setup_logging()
    common.setup_jax(config, debug=values["debug"].value)
    from dpo_jax import build

    with Progress() as progress, profiled(workdir, values["profile"].value):
        summary = build.run(
            config, workdir, fork=values["fork"].value, progress=progress
        )
    sys.stdout.write(summary_text(summary, workdir))
    return 0


@contextlib.contextmanager
def profiled(workdir: str, wanted: bool) -> Iterator[None]:
    """Writes a profiler trace of the whole run under RUN/profile, where wanted."""
    if not wanted:
        yield
        return
    import jax

    with jax.profiler.trace(f"{workdir}/profile"):
        yield


class Progress:
    """One live line: loss, margin, pairs/s, ETA; only where stderr is a terminal."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

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
    lines.append(f"policy: {workdir}/export   report: {workdir}/report.html")
    return "\n".join(lines) + "\n"


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
