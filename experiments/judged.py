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
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dpo_jax import markdown
from dpo_jax.config import parse_arg
from dpo_jax.data import sources
from dpo_jax.data.sources.hh import ASSISTANT
from dpo_jax.errors import ConfigError, unknown
from dpo_jax.launch import Trial

Keys = dict[str, Any]

REWARD: Keys = {
    "objective": "reward",
    "loss.name": "bradley_terry",
    "ref.mode": "none",
    "eval.rollouts": 0,
}
EXPORT_ALONE: Keys = {"checkpoint.after": "none"}  # what a finished trial keeps
HUMAN, PROMPTS = "\n\nHuman:", "prompts.jsonl"
POLICIES = ("sft", "preferred_ft", "dpo")  # that are sampled, of those that there are


class Tier(NamedTuple):
    """What is trained, on what, and how it is sampled and judged.

    Attributes:
      trials: name -> (config, keys) of each run.
      config: that names the held-out prompts with their chosen responses.
      keys: of it.
      limit: prompts.
      samples: of each, at each temperature.
      new_tokens: of a sample, at most.
      judges: of `winrate --judge`, beside the tier's reward model.
      stops: strings that end a sample.
      single_turn: whether only prompts of one human turn are sampled.
      batch: samples that are drawn together.
      comparable: whether its rates estimate the paper's; else why not.
    """

    trials: dict[str, tuple[str, Keys]]
    config: str
    keys: Keys
    limit: int
    samples: int
    new_tokens: int
    judges: tuple[str, ...]
    comparable: str
    stops: tuple[str, ...] = ()
    single_turn: bool = False
    batch: int = 32


class Figure(NamedTuple):
    """A figure of win rates.

    Attributes:
      folder: of the experiment.
      temperatures: at which policies are sampled.
      names: method of the paper -> (trial that is sampled, best of how many).
      full: the tier of the paper's size.
    """

    folder: str
    temperatures: tuple[float, ...]
    names: dict[str, tuple[str, int]]
    full: Tier

    @property
    def tiers(self) -> dict[str, Tier]:
        """By name."""
        return {"quick": QUICK, "full": self.full}


STARTED: Keys = {**EXPORT_ALONE, "model.path": "{sft}", "model.preset": ""}
QUICK = Tier(
    trials={
        "sft": ("quickstart:stage=sft,steps=300", EXPORT_ALONE),
        "dpo": ("quickstart:stage=dpo,steps=150", {**STARTED, "eval.rollouts": 0}),
        "reward_model": (
            "quickstart:stage=dpo,steps=200",
            {**STARTED, **REWARD, "loss.beta": 0.1},  # its default: it is not used
        ),
    },
    config="quickstart:stage=dpo",
    keys={"eval.limit": 128},
    limit=128,
    samples=16,
    new_tokens=20,
    judges=("sentiment",),
    comparable="no: reviews of a grammar, a decoder of 2 layers, and its true reward",
    batch=512,
)
PYTHIA: Keys = {"model.path": "EleutherAI/pythia-2.8b", "model.dtype": "bfloat16"}


def full_tier(source: str, sft: str, preset: str, keys: Keys, new_tokens: int) -> Tier:
    """Makes the tier of the paper's size, with today's stand-ins.

    Args:
      source: of the pairs; `hh` is sampled on prompts of one human turn.
      sft: data that the reference is trained on; `source` = its chosen responses.
      preset: of `configs/dpo.py`.
      keys: of all trials.
      new_tokens: of a sample, at most.
    """
    is_hh = source == "hh"
    pairs = {**keys, **EXPORT_ALONE, "data.train": source, "data.eval": source}
    start = {**pairs, "model.path": "{sft}"}
    trials = {
        "sft": ("sft", {**PYTHIA, **pairs, "data.train": sft, "data.eval": ""}),
        "dpo": (f"dpo:preset={preset}", {**start, "model.dtype": "bfloat16"}),
        "reward_model": ("dpo", {**start, **REWARD, "model.dtype": "bfloat16"}),
    }
    if sft != source:
        trials["preferred_ft"] = ("sft", {**start, "model.dtype": "bfloat16"})
    return Tier(
        trials=trials,
        config=f"dpo:preset={preset}",
        keys={**keys, "data.eval": source},
        limit=256,
        samples=128,
        new_tokens=new_tokens,
        judges=(),
        comparable="in part: the judge is another than gpt-4-0314, which is retired",
        stops=(HUMAN,) * is_hh,
        single_turn=is_hh,
    )


def trials(figure: Figure, arg: str | None) -> list[Trial]:
    """Returns the trials of a tier: `tier=quick|full`."""
    name = parse_arg(arg, tier="quick")["tier"]
    if name not in figure.tiers:
        raise ConfigError(unknown("tier", name, figure.tiers))
    runs = figure.tiers[name].trials.items()
    return [Trial(trial, config, keys) for trial, (config, keys) in runs]


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
    runs = [name for name in POLICIES if name in of.trials]
    for heat in figure.temperatures:
        file = out / f"samples_{heat:g}.jsonl"
        flags = [f"--model={','.join(str(out / name / 'export') for name in runs)}"]
        flags += [f"--temperature={heat}", f"--n={of.samples if heat else 1}"]
        flags += [f"--limit={of.limit}", f"--max_new_tokens={of.new_tokens}"]
        flags += [f"--batch={of.batch}"]
        flags += [f"--stop={word}" for word in of.stops]
        flags += [f"--prompts={out / PROMPTS}"] * of.single_turn
        found.append(Command(["sample", *data, *flags, f"--out={file}"], file))
        files.append(str(file))
    named = ",".join(["model", *of.judges, *filter(None, judges.split(","))])
    flags = [f"--samples={','.join(files)}", "--against=chosen", f"--judge={named}"]
    flags += ["--best_by=model", f"--limit={of.limit}", f"--out={out / 'winrate'}"]
    flags += [f"--config.reward.path={out / 'reward_model' / 'export'}"]
    table = out / "winrate" / "winrate.json"
    return [*found, Command(["winrate", *data, *flags], table)]


def main(figure: Figure, arguments: Sequence[str]) -> int:
    """Runs what is missing of a tier, and prints the table; returns the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tier", choices=figure.tiers, default="quick")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tier")
    parser.add_argument(
        "--judge", default="", help="more judges, as `winrate` has them"
    )
    parser.add_argument("--launcher", default="local")
    parser.add_argument("--dry_run", action="store_true", help="print the commands")
    given = parser.parse_args(arguments)
    sweep = ["sweep", f"{figure.folder}/sweep.py:tier={given.tier}"]
    sweep += [f"--out={given.out}", f"--launcher={given.launcher}"]
    after = commands(figure, given.tier, given.out, given.judge)
    if given.dry_run:
        every = [sweep, *(each.arguments for each in after)]
        lines = [f"python -m dpo_jax {shlex.join(each)}\n" for each in every]
        sys.stdout.write("".join(lines))
        return 0
    if code := called(sweep):
        return code
    of = figure.tiers[given.tier]
    if of.single_turn and not (given.out / PROMPTS).exists():
        write_single_turns(of.keys["data.eval"], given.out / PROMPTS)
    for each in after:
        is_table = each.made.name == "winrate.json"  # cheap, and judges may be new
        if is_table or not each.made.exists():
            if code := called(each.arguments):
                return code
    sys.stdout.write(table(figure, given.tier, given.out))
    return 0


def write_single_turns(source: str, file: Path) -> None:
    """Writes the prompts of HH transcripts in which a human speaks once."""
    (part,) = sources.parts_of(source, "data.eval")
    rows = sources.read(sources.find(part, "eval"), sources.Request("eval"))
    chosen = [fields["chosen"] for _, fields in rows if isinstance(fields, dict)]
    ends = [text.rfind(ASSISTANT) + len(ASSISTANT) for text in chosen]
    prompts = [text[:end] for text, end in zip(chosen, ends, strict=True)]
    once = [text for text in dict.fromkeys(prompts) if text.count(HUMAN) == 1]
    lines = [json.dumps({"prompt": text}) + "\n" for text in once]
    file.write_text("".join(lines), encoding="utf-8")


def called(arguments: Sequence[str]) -> int:
    """Runs a command of `dpo_jax`; returns its exit code."""
    return subprocess.run([sys.executable, "-m", "dpo_jax", *arguments]).returncode


class Paper(NamedTuple):
    """A point of the paper: a rate of n verdicts."""

    rate: float
    n: int

    @property
    def se(self) -> float:
        """Its binomial standard error."""
        return math.sqrt(self.rate * (1 - self.rate) / self.n)


def read_paper(file: Path) -> dict[tuple[str, float], Paper]:
    """Reads `expected.csv`: method, temperature, win_rate, n."""
    with file.open(encoding="utf-8") as lines:
        return {
            (row["method"], float(row["temperature"])): Paper(
                float(row["win_rate"]), int(row["n"])
            )
            for row in csv.DictReader(lines)
        }


def table(figure: Figure, tier: str, out: Path) -> str:
    """Lays our rates beside the paper's, in Markdown, and writes `table.md`.

    z is the difference in standard errors of both; it stands where the rates estimate
    the same.
    """
    rows = json.loads((out / "winrate" / "winrate.json").read_text())["rows"]
    paper = read_paper(Path(figure.folder) / "expected.csv")
    of = figure.tiers[tier]
    lines = []
    for judge in dict.fromkeys(row["judge"] for row in rows):
        own = [row for row in rows if row["judge"] == judge]
        for (method, heat), theirs in paper.items():
            row = _ours(own, figure.names.get(method), heat)
            cells = _cells(row, theirs, of.comparable)
            lines.append([judge, method, f"{heat:g}", *cells])
    text = markdown.table(("judge", "method", "T", "ours", "paper", "z"), lines)
    text += f"\nComparable: {of.comparable}.\n"
    (out / "table.md").write_text(text, encoding="utf-8")
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


def _cells(row: dict[str, Any] | None, paper: Paper, comparable: str) -> list[str]:
    """Writes ours, the paper's, and z where they may be compared."""
    theirs = f"{paper.rate:.3f} ± {paper.se:.3f}"
    if row is None:
        return ["–", theirs, "–"]
    se = row["se"] or 0.0
    z = (row["win_rate"] - paper.rate) / math.hypot(se, paper.se)
    shown = "–" if comparable.startswith("no") else f"{z:+.1f}"
    return [f"{row['win_rate']:.3f} ± {se:.3f}", theirs, shown]
