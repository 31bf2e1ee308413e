"""What the paper's judged figures share: trials, samples, verdicts, and its own rates.

A figure's `run.py` trains a tier's policies and its reward model (`sweep.py`), samples
them at the figure's temperatures, judges the samples against the chosen responses by
`dpo_jax winrate`, and lays the rates beside the paper's (`table.py`). What is done
stays done: the same command goes on where it was stopped.
"""

import argparse
import csv
import json
import math
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dpo_jax import markdown
from dpo_jax.config import parse_arg
from dpo_jax.errors import known
from dpo_jax.launch import Trial
from experiments import judged_figure
from experiments.judged_tiers import Tier

POLICIES = ("sft", "preferred_ft", "dpo", "ppo")  # that are sampled, where there are


class Figure(NamedTuple):
    """A figure or table of win rates.

    Attributes:
      folder: of the experiment.
      temperatures: at which policies are sampled.
      names: method of the paper -> (trial that is sampled, best of how many).
      tiers: by name, from the smallest to that of the paper's size.
      template: of a served judge, as `winrate --prompt` has it.
      prefix: of the files of samples and verdicts, where they are of other prompts than
        those of another figure with the same trials.
    """

    folder: str
    temperatures: tuple[float, ...]
    names: dict[str, tuple[str, int]]
    tiers: Mapping[str, Tier]
    template: str
    prefix: str = ""

    def file(self, out: Path, name: str) -> Path:
        """Returns where samples, prompts or verdicts of this figure are."""
        return out / f"{self.prefix}{name}"


def trials(figure: Figure, arg: str | None) -> list[Trial]:
    """Returns the trials of a tier: `tier=quick`, `data=FOLDER` where it has data."""
    given = parse_arg(arg, tier="quick", data="")
    name, data = known("tier", given["tier"], figure.tiers), given["data"]

    def placed(value: Any) -> Any:
        return value.replace("{data}", data) if isinstance(value, str) else value

    return [
        Trial(trial, config, {key: placed(value) for key, value in keys.items()})
        for trial, (config, keys) in figure.tiers[name].trials.items()
    ]


class Command(NamedTuple):
    """A command of `dpo_jax`, and the file that stands once it is done."""

    arguments: list[str]
    made: Path


def commands(figure: Figure, tier: str, out: Path, judges: str) -> list[Command]:
    """Lists what is run once the trials are done: samples, then verdicts.

    Args:
      figure: whose.
      tier: by name.
      out: folder of the tier.
      judges: more of `winrate --judge`, separated by commas.
    """
    of, found, files = figure.tiers[tier], [], []
    data = [f"--config={of.config}"]
    data += [f"--config.{key}={value}" for key, value in of.keys.items()]
    prompts = figure.file(out, "data") / "prompts.jsonl"
    runs = [name for name in POLICIES if name in of.trials]
    for heat in figure.temperatures:
        file = figure.file(out, f"samples_{heat:g}.jsonl")
        flags = [f"--model={','.join(str(out / name / 'export') for name in runs)}"]
        flags += [f"--temperature={heat}", f"--n={of.samples if heat else 1}"]
        flags += [f"--limit={of.limit}", f"--max_new_tokens={of.new_tokens}"]
        flags += [f"--batch={of.batch}"]
        flags += [f"--stop={word}" for word in of.stops]
        flags += [f"--prompts={prompts}"] * bool(of.data)
        found.append(Command(["sample", *data, *flags, f"--out={file}"], file))
        files.append(str(file))
    named = ",".join(["model", *of.judges, *filter(None, judges.split(","))])
    table = figure.file(out, "winrate")
    flags = [f"--samples={','.join(files)}", f"--judge={named}", f"--out={table}"]
    flags += [f"--against={prompts if of.data else 'chosen'}", "--best_by=model"]
    flags += [f"--limit={of.limit}", f"--prompt={figure.template}"]
    flags += [f"--config.reward.path={out / 'reward_model' / 'export'}"]
    return [*found, Command(["winrate", *data, *flags], table / "winrate.json")]


def main(figure: Figure, arguments: Sequence[str]) -> int:
    """Runs what is missing of a tier, and prints the table; returns the exit code."""
    given = parser(figure).parse_args(arguments)
    *samples, verdicts = commands(figure, given.tier, given.out, given.judge)
    if given.dry_run:
        return tell(figure, given, [*samples, verdicts])
    if code := sample(figure, given, samples) or called(verdicts.arguments):
        return code  # verdicts are asked for anew: they are kept, and judges may be new
    sys.stdout.write(table(figure, given.tier, given.out))
    return 0


def parser(figure: Figure) -> argparse.ArgumentParser:
    """Makes the parser of a figure's flags."""
    made = argparse.ArgumentParser()
    made.add_argument("--tier", choices=figure.tiers, default="quick")
    made.add_argument("--out", type=Path, required=True, help="folder of the tier")
    made.add_argument("--judge", default="", help="more judges, as `winrate` has them")
    made.add_argument("--source", default="hh", help="HH's rows, where they are read")
    made.add_argument("--launcher", default="local")
    made.add_argument("--dry_run", action="store_true", help="print the commands")
    return made


def sweep_of(figure: Figure, given: argparse.Namespace) -> list[str]:
    """Returns the command that trains a tier."""
    arg = f"tier={given.tier}"
    if figure.tiers[given.tier].data:
        arg += f",data={figure.file(given.out, 'data')}"
    sweep = ["sweep", f"{figure.folder}/sweep.py:{arg}"]
    return [*sweep, f"--out={given.out}", f"--launcher={given.launcher}"]


def tell(figure: Figure, given: argparse.Namespace, after: Sequence[Command]) -> int:
    """Prints the commands of a tier."""
    every = [sweep_of(figure, given), *(each.arguments for each in after)]
    lines = [f"python -m dpo_jax {shlex.join(each)}\n" for each in every]
    sys.stdout.write("".join(lines))
    return 0


def sample(
    figure: Figure, given: argparse.Namespace, samples: Sequence[Command]
) -> int:
    """Trains what is missing and samples it; returns the exit code."""
    data = figure.file(given.out, "data")
    write = figure.tiers[given.tier].data
    if write and not (data / "prompts.jsonl").exists():
        data.mkdir(parents=True, exist_ok=True)
        write(given.source, data)
    if code := called(sweep_of(figure, given)):
        return code
    for each in samples:
        if not each.made.exists() and (code := called(each.arguments)):
            return code
    return 0


def called(arguments: Sequence[str]) -> int:
    """Runs a command of `dpo_jax`, samples unprinted; returns its exit code."""
    shown = subprocess.DEVNULL if arguments[0] == "sample" else None
    every = [sys.executable, "-m", "dpo_jax", *arguments]
    return subprocess.run(every, stdout=shown).returncode


class Paper(NamedTuple):
    """A number of the paper: a rate of n verdicts; 0 = it does not say how many."""

    rate: float
    n: int

    @property
    def se(self) -> float:
        """Its binomial standard error; NaN where n is not known."""
        return math.sqrt(self.rate * (1 - self.rate) / self.n) if self.n else math.nan


def read_paper(file: Path) -> dict[tuple[str, float], Paper]:
    """Reads `expected.csv`: method, temperature, win_rate, n."""
    with file.open(encoding="utf-8") as lines:
        return {
            (row["method"], float(row["temperature"])): Paper(
                float(row["win_rate"]), int(row["n"] or 0)
            )
            for row in csv.DictReader(lines)
        }


def print_table(figure: Figure, about: str | None) -> None:
    """Prints the table of the tier and folder of the command line."""
    made = argparse.ArgumentParser(description=about)
    made.add_argument("--tier", choices=figure.tiers, default="quick")
    made.add_argument("--out", type=Path, required=True, help="folder of the tier")
    given = made.parse_args()
    sys.stdout.write(table(figure, given.tier, given.out))


def table(figure: Figure, tier: str, out: Path) -> str:
    """Lays our rates beside the paper's, in Markdown; writes it, and a figure.

    z is the difference in standard errors of both; it stands where the rates estimate
    the same and the paper states its n.
    """
    told = figure.file(out, "winrate") / "winrate.json"
    rows = json.loads(told.read_text())["rows"]
    paper = read_paper(Path(figure.folder) / "expected.csv")
    of = figure.tiers[tier]
    lines = []
    for judge in dict.fromkeys(row["judge"] for row in rows):
        own = [row for row in rows if row["judge"] == judge]
        for (method, heat), theirs in paper.items():
            row = _ours(own, figure.names.get(method), heat)
            ours = (row["win_rate"], row["se"]) if row else None
            cells = cells_of(ours, theirs, of.comparable)
            lines.append([judge, method, f"{heat:g}", *cells])
    text = markdown.table(("judge", "method", "T", "ours", "paper", "z"), lines)
    text += f"\nComparable: {of.comparable}.\n"
    figure.file(out, "table.md").write_text(text, encoding="utf-8")
    points = {key: (each.rate, each.se) for key, each in paper.items()}
    judged_figure.write(figure.file(out, "figure.png"), rows, points, figure.names)
    return text


def _ours(
    rows: Sequence[dict[str, Any]], named: tuple[str, int] | None, heat: float
) -> dict[str, Any] | None:
    """Finds our row of a method; None where it was not run."""
    for row in rows:
        if named is None or row["temperature"] != heat:
            continue
        trial = Path(row["policy"]).parent.name
        if (trial, row["best_of"]) == named:
            return row
    return None


def cells_of(
    ours: tuple[float, float | None] | None, paper: Paper, comparable: str
) -> list[str]:
    """Writes ours, the paper's, and z where they may be compared.

    Args:
      ours: mean and standard error; None = it was not run.
      paper: what is beside it.
      comparable: begins with `no` where they may not be.
    """
    known = not math.isnan(paper.se)
    theirs = f"{paper.rate:.3f} ± {paper.se:.3f}" if known else f"{paper.rate:.3f}"
    if ours is None:
        return ["–", theirs, "–"]
    mean, se = ours[0], ours[1] or 0.0
    both = math.hypot(se, paper.se)
    may = known and both and not comparable.startswith("no")
    z = f"{(mean - paper.rate) / both:+.1f}" if may else "–"
    return [f"{mean:.3f} ± {se:.3f}", theirs, z]
