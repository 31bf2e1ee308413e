"""`winrate`: how often answers of policies are preferred to others, by judges."""

import csv
import functools
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags
from etils import epath

from dpo_jax import files
from dpo_jax.cli import common
from dpo_jax.errors import ConfigError, collected
from dpo_jax.report.sweep_table import as_markdown
from dpo_jax.report.tables import ReportTable, as_text

KEY = "OPENAI_API_KEY"  # the environment's; it goes nowhere but to the server
CELLS = {  # columns of the printed table, and what they hold
    "policy": "policy",
    "T": "T",
    "best of": "best of",
    "judge": "judge",
    "win rate": ("win_rate", "se"),
    "95 % from": "low",
    "to": "high",
    "at equal length": ("length_controlled", "length_controlled_se"),
    "prompts": "prompts",
    "judged": "judged",
    "ties": "ties",
    "splits": "splits",
    "absent": "absent",
    "length": "length",
    "against": "length_against",
    "smallest": "smallest_difference",
}
NOTES = (
    "Errors and intervals are those of prompts; splits (the orders disagree) and ties "
    "count one half, and what is absent (no verdict) counts nowhere.",
    "Smallest: the difference from one half that so many prompts show in 4 of 5 cases.",
    "Best of m: expected over all subsets of m samples, chosen by the reward named.",
)
LENGTHS = ("length", "length_against")


def define(values: flags.FlagValues) -> None:
    """Adds the verb's flags."""
    text = functools.partial(flags.DEFINE_string, flag_values=values)
    whole = functools.partial(flags.DEFINE_integer, flag_values=values)
    number = functools.partial(flags.DEFINE_float, flag_values=values)
    text("samples", "", "files of `sample --out`, separated by commas")
    what = "`chosen` of data.eval, a policy of the samples, or a JSONL file of answers"
    text("against", "chosen", what)
    what = (
        "separated by commas: a reward (`model` of reward.path, `sentiment`, one of "
        "--rewards); MODEL@URL behind an OpenAI-compatible server; a JSONL file of "
        "labels"
    )
    text("judge", "", what)
    text("out", "", "a folder for table.md, table.csv, winrate.json, verdicts.jsonl")
    text("best_by", "", "a reward: also the best of 2, 4, … samples by it")
    whole("limit", 0, "prompts to compare, from the first; 0 = all")
    number("max_absent", 0.05, "share of comparisons that may lack a verdict")
    common.define_own(values, "rewards")
    text("prompt", "helpful", "of a served judge: a shipped one, or a FILE.toml")
    text("revision", "", "of a served judge's weights; part of each verdict's identity")
    text("verdicts", "", "a folder of a served judge's verdicts; default: in --out")
    whole("max_tokens", 512, "of a served judge's reply")
    whole("concurrency", 8, "questions to a server at a time")
    number("seconds", 120.0, "until a request to a server is given up")
    whole("retries", 6, "of a request that a server refuses for now, or fails at")


def main(arguments: Sequence[str]) -> int:
    """Runs the verb; returns the exit code."""
    if not common.names_config(arguments):
        arguments = ["--config=dpo", *arguments]
    values = common.parse(arguments, config=True, define=define)
    samples, judge = (common.required(values, name) for name in ("samples", "judge"))
    out = epath.Path(common.required(values, "out"))
    _check(values)
    config = values["config"].value
    common.setup_logging()
    from dpo_jax.cli.own_functions import rewards_of
    from dpo_jax.wiring import judging
    from dpo_jax.wiring.reading import request_of

    arms = judging.arms_of(_listed(samples))
    request = request_of(config, reads_ratings=False)
    baseline = judging.baseline_of(values["against"].value, arms, request)
    limit = values["limit"].value
    pairings = [
        judging.pair_up(arm, baseline, limit)
        for arm in arms
        if arm.answers is not baseline
    ]
    if not pairings:
        raise ConfigError("--samples holds nothing but --against; add another policy")
    scores = _scores(config, values, rewards_of(values["rewards"].value))
    judges = [_judge(name, values, scores, out) for name in _listed(judge)]
    by = values["best_by"].value
    best = scores(by) if by else None
    by_judge, published = [], []
    for each in judges:
        found, said = judging.judged_by(each, pairings, values["max_absent"].value)
        by_judge.append(found)
        published += said.published
    every = [one for of_judge in by_judge for one in of_judge]
    against = values["against"].value
    rows = [row for one in every for row in judging.rows_of_arm(one, against, best, by)]
    told = {
        "rows": rows,
        "agreement": judging.agreements(by_judge),
        "by_length": [row for one in every for row in judging.lengths_of(one)],
    }
    tables = [_main_table(rows, against), *_other_tables(told)]
    _write(out, told, tables, published)
    sys.stdout.write("\n".join(map(as_text, tables)))
    return 0


def _listed(names: str) -> list[str]:
    return [name for name in names.split(",") if name]


def _check(values: common.Flags) -> None:
    """Refuses numbers that make no sense, and a key that would reach two servers.

    Raises:
      ConfigError: naming the flags.
    """
    least = {"max_tokens": 1, "concurrency": 1, "retries": 0, "limit": 0}
    with collected(ConfigError) as complaints:
        complaints += [
            f"--{name}={values[name].value} must be ≥ {low}"
            for name, low in least.items()
            if values[name].value < low
        ]
        if not 0 <= values["max_absent"].value <= 1:
            complaints.append(f"--max_absent={values['max_absent'].value} is no share")
        if not values["seconds"].value > 0:
            complaints.append(f"--seconds={values['seconds'].value} must be > 0")
        named = _listed(values["judge"].value)
        if len(set(named)) < len(named):
            complaints.append("--judge names one twice; name it once")
        urls = {name.partition("@http")[2] for name in named if "@http" in name}
        if len(urls) > 1 and os.environ.get(KEY):
            complaints.append(
                f"--judge names {len(urls)} servers, and {KEY} is of one; ask one a "
                "time, with the same --verdicts, then all without the key"
            )
        if urls and os.environ.get("DPO_JAX_DISTRIBUTED"):
            complaints.append("--judge names a server: ask it from one process")
        if any("@" in url.partition("//")[2].partition("/")[0] for url in urls):
            complaints.append(f"--judge: an address holds a password; set {KEY}")


def _scores(
    config: Any, values: common.Flags, table: Any
) -> Callable[[str], Callable[..., Any]]:
    """Returns what finds the scores of a reward by its name, each made once."""
    made: dict[str, Any] = {}

    def scores(name: str) -> Callable[..., Any]:
        if not made:
            common.setup_jax(config, debug=values["debug"].value)
        if name not in made:
            from dpo_jax.sharding.mesh import make_mesh
            from dpo_jax.wiring import text_scores

            mesh = make_mesh(**config.mesh)
            made[name] = text_scores.of_reward(config, name, table, mesh)
        return made[name]

    return scores


def _judge(
    name: str,
    values: common.Flags,
    scores: Callable[[str], Callable[..., Any]],
    out: epath.Path,
) -> Any:
    """Builds a judge by its name."""
    from dpo_jax.evals import judges, served
    from dpo_jax.wiring import judging, text_scores

    model, at, url = name.partition("@http")
    if at:
        template = judges.read_template(values["prompt"].value)
        asked = served.Served(
            model, values["revision"].value, template, values["max_tokens"].value
        )
        complete = served.openai_complete(
            model,
            at[1:] + url,
            os.environ.get(KEY, ""),
            max_tokens=asked.max_tokens,
            seconds=values["seconds"].value,
            retries=values["retries"].value,
        )
        return served.judge(
            asked,
            complete,
            folder=values["verdicts"].value or out / "verdicts",
            concurrency=values["concurrency"].value,
            max_absent=values["max_absent"].value,
        )
    if name.endswith((".jsonl", ".jsonl.gz", ".parquet", ".csv")):
        rows = [fields for _, fields in judging.rows_of(name, "--judge")]
        return judges.by_labels(rows, os.path.basename(name))
    return text_scores.judge_of(scores(name), name)


def _main_table(rows: Sequence[dict[str, Any]], against: str) -> ReportTable:
    """Lays the rows out; a mean stands with its standard error."""

    def cell(row: dict[str, Any], of: Any) -> Any:
        if isinstance(of, str):
            return row.get(of)
        mean, error = (row.get(name) for name in of)
        return mean if None in (mean, error) else (mean, error)

    def shown(row: dict[str, Any]) -> dict[str, Any]:
        heat, by = row["temperature"], row["chosen_by"]
        whole = {name: round(row[name]) for name in LENGTHS if name in row}
        best = f"{row['best_of']} by {by}" if by else "1"
        return {
            **row,
            **whole,
            "T": None if heat is None else f"{heat:g}",
            "best of": best,
        }

    cells = tuple(
        tuple(cell(row, of) for of in CELLS.values()) for row in map(shown, rows)
    )
    return ReportTable(f"Win rate against {against}", tuple(CELLS), cells)


def _other_tables(told: dict[str, list[dict[str, Any]]]) -> list[ReportTable]:
    """Lays out how judges agree, and how verdicts hang on length."""
    tables = []
    if rows := told["agreement"]:
        cells = tuple(tuple(row.values()) for row in rows)
        tables.append(ReportTable("Agreement of judges", tuple(rows[0]), cells))
    if rows := told["by_length"]:
        columns = ("policy", "judge", "longer by", "to", "judged", "win rate")
        cells = tuple(
            (
                row["policy"],
                row["judge"],
                round(row["shortest"]),
                round(row["longest"]),
                row["judged"],
                row["win_rate"] if row["se"] is None else (row["win_rate"], row["se"]),
            )
            for row in rows
        )
        title = "Win rate by difference in length (characters)"
        tables.append(ReportTable(title, columns, cells))
    return tables


def _write(
    out: epath.Path,
    told: dict[str, Any],
    tables: Sequence[ReportTable],
    published: Sequence[Any],
) -> None:
    """Writes what the folder holds.

    Raises:
      WriteError: if it cannot be written.
    """
    files.write_whole(out / "winrate.json", json.dumps(told, indent=1) + "\n")
    files.write_whole(out / "table.csv", _csv(told["rows"]))
    files.write_whole(out / "table.md", as_markdown(tables, NOTES))
    if published:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in published]
        files.write_whole(out / "verdicts.jsonl", "".join(lines))


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    columns, file = (
        list(dict.fromkeys(key for row in rows for key in row)),
        io.StringIO(),
    )
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
