"""The table of a sweep: OUT/table.csv, .md, .tex, .png, .html, from its run folders.

Works on a sweep that is half finished, and says what is missing.
"""

import csv
import io
import math
import re
from collections.abc import Sequence

import numpy as np
from etils import epath

from dpo_jax import files, markdown
from dpo_jax.errors import DataError
from dpo_jax.report import arms as arms_lib
from dpo_jax.report import comparison as comparison_lib
from dpo_jax.report import outcomes as outcomes_lib
from dpo_jax.report import stats
from dpo_jax.report.arms import TRAINING, Entry
from dpo_jax.report.comparison import KL, LENGTH, REWARD, Comparison, Row, Setting
from dpo_jax.report.outcomes import Outcome
from dpo_jax.report.runs import plain
from dpo_jax.report.tables import Cell, ReportTable, cell_text

QUIET = ("new", "begun", "waiting", "running")  # states that launching it again mends
SHOWN = 8  # names of trials
ONE_SEED = "WARNING: one seed, whose error over prompts says nothing of other runs"
TWO_SEEDS = (
    "WARNING: two seeds: intervals are wide, and where prompts matter as much as "
    "seeds, p < 5% comes by chance in up to 10% of comparisons; give three or more."
)
ABOUT = (
    "Settings are chosen by the mean reward on the validation prompts (those of even "
    "number) and reported on the test prompts, once. Both are measured on the same "
    "runs, so a lucky run stays lucky: equal numbers of trials add that to all alike.",
    "± is the standard error over seeds and prompts: a bootstrap of two levels, each "
    "one fewer than there are (Rao and Wu 1988), prompts' effects shrunk to what is "
    "not noise (Carpenter et al. 2003). Intervals and p-values are Student's t with "
    "Satterthwaite's degrees of freedom.",
    "Differences are of the same seeds on the same prompts; p is corrected for the "
    "number of methods by Holm 1979. The smallest effect is what would have been seen "
    f"at {1 - stats.CONFIDENCE:.0%}, so corrected, with probability {stats.POWER:.0%} "
    "(Bloom 1995).",
    "A run counts as diverged where its loss stopped being finite (exit code 6), or "
    "its last training loss lies above its first.",
)


def write(entries: Sequence[Entry], out: str) -> str:
    """Writes the table of a sweep in all its forms; returns it as Markdown.

    Args:
      entries: all trials of the sweep.
      out: its folder.

    Raises:
      DataError: if no trial has been measured, or a file of a run cannot be read.
      WriteError: if a file cannot be written.
    """
    arms = arms_lib.arms_of(entries)
    compared = [entry for entry in entries if entry.name in arms.places]
    outcomes, left_out = outcomes_lib.outcomes_of(compared)
    if not outcomes:
        raise DataError(
            f"{out}: no finished trial was evaluated ({'; '.join(missing(compared))}); "
            "run the sweep; its trials need data.eval, or eval.rollouts to be sampled"
        )
    found = comparison_lib.compare(compared, arms, outcomes)
    tables = [methods_table(found)]
    if any(setting.text for setting in found.settings):  # else each method has one
        tables += [matched_table(found), settings_table(found)]
    notes = [*notes_of(compared, found, outcomes), *left_out]
    kept = [without_blanks(table) for table in tables if table.rows]
    text = as_markdown(kept, notes)
    folder = epath.Path(out)
    for ending, made in (
        ("csv", as_csv(kept, notes)),
        ("md", text),
        ("tex", as_latex(kept, notes)),
    ):
        files.write_whole(folder / f"table.{ending}", made)
    from dpo_jax.report import html, sweep_figure  # matplotlib takes a second

    drawn = sweep_figure.draw(found, next(iter(outcomes.values())).measure)
    files.write_whole(folder / "table.png", drawn)
    page = html.render_sweep(folder.name, kept, notes, drawn)
    files.write_whole(folder / "table.html", page)
    return text


def methods_table(found: Comparison) -> ReportTable:
    """Tabulates each method at its usual setting and at its best, against the base."""
    columns = (
        *("method", "trials", "diverged", "seeds"),
        *("default setting", "default: reward", "tuned setting", "tuned: reward"),
        *(f"− {found.arms.base}", "from", "to", "p (Holm)", "smallest effect"),
        *("KL (nats)", "length (tokens)"),
    )
    rows = []
    for row in found.tuned:
        method = row.setting.method
        settings = [s for s in found.settings if s.method == method]
        done = sum(len(s.values) for s in settings)
        planned = sum(len(s.planned) for s in settings)
        usual = found.usual.get(method)
        rows.append(
            (
                method,
                f"{done}" if done == planned else f"{done} of {planned}",
                sum(s.diverged for s in settings),
                len(row.setting.values),
                usual.text if usual else None,
                _pair(usual, REWARD, found.test) if usual and usual.text else None,
                row.setting.text,
                _pair(row.setting, REWARD, found.test),
                *_difference(row),
                _pair(row.setting, KL, found.test),
                _pair(row.setting, LENGTH, found.test),
            )
        )
    rest = dict.fromkeys(s.method for s in found.settings)
    for method in [m for m in rest if m not in [r[0] for r in rows]]:
        settings = [s for s in found.settings if s.method == method]
        planned = sum(len(s.planned) for s in settings)
        failed = sum(s.diverged for s in settings)
        rows.append((method, f"0 of {planned}", failed, 0, *[None] * 11))
    title = "Methods, each at the setting that was chosen"
    return ReportTable(title, columns, tuple(rows))


def without_blanks(table: ReportTable) -> ReportTable:
    """Leaves out the columns in which nothing stands."""
    columns = zip(*table.rows, strict=True)
    kept = [
        i for i, cells in enumerate(columns) if any(c not in (None, "") for c in cells)
    ]
    rows = tuple(tuple(row[i] for i in kept) for row in table.rows)
    return ReportTable(table.title, tuple(table.columns[i] for i in kept), rows)


def matched_table(found: Comparison) -> ReportTable:
    """Tabulates each method at its best setting within a KL to the reference."""
    columns = ("within KL", "method", "tuned setting", "reward", f"− {found.arms.base}")
    columns += ("from", "to", "p (Holm)", "smallest effect", "KL (nats)")
    rows = [
        (
            f"{limit:g}",
            row.setting.method,
            row.setting.text,
            _pair(row.setting, REWARD, found.test),
            *_difference(row),
            _pair(row.setting, KL, found.test),
        )
        for limit, of in found.within.items()
        for row in of
    ]
    title = "Methods at matched KL: the best whose KL stays within a limit"
    return ReportTable(title, columns, tuple(rows))


def settings_table(found: Comparison) -> ReportTable:
    """Tabulates every setting that has a finished trial."""
    columns = ("method", "setting", "trials", "diverged", "validation: reward")
    columns += ("test: reward", "KL (nats)", "length (tokens)")
    rows = [
        (
            setting.method,
            setting.text,
            f"{len(setting.values)} of {len(setting.planned)}",
            setting.diverged,
            _pair(setting, REWARD, found.validation),
            *(_pair(setting, row, found.test) for row in (REWARD, KL, LENGTH)),
        )
        for setting in found.settings
        if setting.values
    ]
    return ReportTable("Every setting", columns, tuple(rows))


def _pair(setting: Setting, row: int, prompts: np.ndarray) -> Cell:
    """Gives a mean with its error; alone where none is known."""
    mean = setting.mean(row, prompts)
    if math.isnan(mean.mean):
        return None
    return mean.mean if math.isnan(mean.se) else (mean.mean, mean.se)


def _difference(row: Row) -> tuple[Cell, ...]:
    """Gives the difference, its interval, its p and the smallest effect as cells."""
    mean, p, smallest, _ = row.difference
    if mean is None:
        return (None,) * 5
    if math.isnan(mean.se):
        return (mean.mean, *(None,) * 4)
    if math.isnan(p):
        return ((mean.mean, mean.se), *(None,) * 4)
    return ((mean.mean, mean.se), *mean.interval, p, smallest)


def notes_of(
    entries: Sequence[Entry], found: Comparison, outcomes: dict[str, Outcome]
) -> list[str]:
    """Says what a reader of the tables must know."""
    first = next(iter(outcomes.values()))
    test, most = len(found.test), max(len(row.setting.values) for row in found.tuned)
    lines = [
        f"Reward: {first.measure}. n = {most} seeds × {test} test prompts "
        f"({len(found.validation)} validation prompts); others are compared with "
        f"{found.arms.base}.",
        *missing(entries),
        *unequal(entries, found),
        *mixed(entries),
    ]
    if not first.prompts:
        lines.append(
            "WARNING: a run keeps no rollouts.json, so means alone are known: chosen "
            "and reported are the same numbers, and errors are over seeds alone."
        )
    if most == 2:
        lines.append(TWO_SEEDS)
    if lone := [row.setting.method for row in found.tuned if row.difference.seeds == 1]:
        lines.append(f"{ONE_SEED}: {', '.join(lone)}.")
    if found.unjudged:
        lines.append(f"{found.unjudged} prompts have no verdict in some run: left out.")
    if found.arms.stages:
        lines.append(f"Not compared: {', '.join(found.arms.stages)} (a start).")
    return [*lines, *ABOUT]


def missing(entries: Sequence[Entry]) -> list[str]:
    """Says which trials are not done: some that wait, all that need a person."""
    left = [entry for entry in entries if entry.state]
    if not left:
        return [f"All {len(entries)} trials are done."]
    done, lines = len(entries) - len(left), []
    quiet = [e.name for e in left if e.state.partition(" ")[0] in QUIET]
    if quiet:
        lines.append(f"Not done: {some(quiet)}.")
    lines += [f"{e.name}: {e.state}" for e in left if e.name not in quiet]
    return [f"HALF FINISHED: {done} of {len(entries)} trials are done.", *lines]


def unequal(entries: Sequence[Entry], found: Comparison) -> list[str]:
    """Says where methods were not given the same."""
    lines = []
    trials: dict[str, int] = {}
    for setting in found.settings:
        trials[setting.method] = trials.get(setting.method, 0) + len(setting.planned)
    counts = ", ".join(f"{method} {count}" for method, count in trials.items())
    if len(set(trials.values())) > 1:
        lines.append(f"UNEQUAL BUDGETS: trials by method: {counts}.")
    elif len(trials) > 1:
        each = next(iter(trials.values()))
        lines.append(f"Every method has the same budget: {each} trials.")
    configs = [entry.config for entry in entries]
    for key in [key for key in arms_lib.varying(configs) if key in TRAINING]:
        values = sorted({f"{config.get(key):g}" for config in configs})
        lines.append(f"UNEQUAL TRAINING: {key} is {', '.join(values)}.")
    if found.arms.same_pairs:
        lines.append("Runs of one seed see the same pairs at every step.")
    else:
        lines.append("NOT PAIRED IN TRAINING: data or batches differ between methods.")
    seeds = {method: set() for method in trials}
    for setting in found.settings:
        seeds[setting.method] |= set(setting.planned)
    if len({frozenset(each) for each in seeds.values()}) > 1:
        lines.append("UNEQUAL SEEDS: methods are compared on the seeds they share.")
    return lines


def mixed(entries: Sequence[Entry]) -> list[str]:
    """Says which trials ran under which version, where they are not all of one."""
    under: dict[str, list[str]] = {}
    for entry in entries:
        for version in entry.versions:
            under.setdefault(version, []).append(entry.name)
    if len(under) < 2:
        return []
    told = "; ".join(f"{version}: {some(names)}" for version, names in under.items())
    return [f"MIXED VERSIONS: {told}."]


def some(names: Sequence[str]) -> str:
    """Lists the first names, and counts the others."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def as_markdown(tables: Sequence[ReportTable], notes: Sequence[str]) -> str:
    """Renders tables and notes as Markdown."""
    parts = []
    for table in tables:
        rows = ([_markdown(cell_text(cell)) for cell in row] for row in table.rows)
        lines = markdown.table([*map(_markdown, table.columns)], rows)
        parts.append(f"**{table.title}**\n\n{lines}")
    parts.append("\n".join(f"* {_markdown(note)}" for note in notes) + "\n")
    return "\n".join(parts)


def _markdown(text: str) -> str:
    return re.sub(r"([\\|*_<>`\[\]])", r"\\\1", plain(text))


def as_csv(tables: Sequence[ReportTable], notes: Sequence[str]) -> str:
    """Renders tables and notes as lines of `table, row, column, value, error`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("table", "row", "column", "value", "error"))
    for table in tables:
        for number, row in enumerate(table.rows, start=1):
            for column, cell in zip(table.columns, row, strict=True):
                value, error = cell if isinstance(cell, tuple) else (cell, None)
                writer.writerow((table.title, number, column, value, error))
    for number, note in enumerate(notes, start=1):
        writer.writerow(("notes", number, "", plain(note), None))
    return text.getvalue()


LATEX = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "–": "--",
}


def as_latex(tables: Sequence[ReportTable], notes: Sequence[str]) -> str:
    r"""Renders tables and notes for `\input`; needs no package."""
    parts = []
    for table in tables:
        grid = [[cell_text(cell) for cell in row] for row in table.rows]
        head, *body = [" & ".join(map(_latex, r)) for r in (table.columns, *grid)]
        parts += [
            r"\begin{table}\centering\scriptsize\setlength{\tabcolsep}{2pt}",
            rf"\caption{{{_latex(table.title)}}}",
            rf"\begin{{tabular}}{{{'l' * len(table.columns)}}}\hline",
            head + r" \\ \hline",
            *(line + r" \\" for line in body),
            r"\hline\end{tabular}",
            r"\end{table}",
        ]
    parts += [r"\begin{itemize}\footnotesize"]
    parts += [rf"\item {_latex(note)}" for note in notes]
    return "\n".join([*parts, r"\end{itemize}"]) + "\n"


def _latex(text: str) -> str:
    return "".join(LATEX.get(char, char) for char in plain(text))
