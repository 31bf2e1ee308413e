"""`bench`: benchmarks without a judge, and files for the tools that have one."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags
from etils import epath

from dpo_jax import files
from dpo_jax.cli import common
from dpo_jax.errors import ConfigError, collected, unknown
from dpo_jax.report.tables import ReportTable, as_text

NEEDS = {  # benchmark -> flags that it reads
    "ifeval": {"samples", "data", "end_of_thoughts"},
    "rewardbench2": {"data"},
    "alpaca_eval": {"samples"},
    "arena_hard": {"samples", "data"},
}


def define(values: flags.FlagValues) -> None:
    """Adds the verb's flags."""

    def text(name: str, what: str) -> None:
        flags.DEFINE_string(name, "", what, flag_values=values)

    text("name", f"of the benchmark: {', '.join(NEEDS)}")
    text("data", "a file of its rows, as published")
    text("samples", "files of `sample --out`, separated by commas")
    text("end_of_thoughts", "what closes a model's thoughts, such as </think>")
    text("out", "a folder for what it writes")


def main(arguments: Sequence[str]) -> int:
    """Runs the verb; returns the exit code."""
    if not common.names_config(arguments):
        arguments = ["--config=dpo", *arguments]
    values = common.parse(arguments, config=True, define=define)
    name, out = (common.required(values, flag) for flag in ("name", "out"))
    _check(name, values)
    config = values["config"].value
    common.setup_logging()
    from dpo_jax.wiring import benches, judging

    data = (
        judging.rows_of(values["data"].value, "--data") if values["data"].value else []
    )
    listed = [file for file in values["samples"].value.split(",") if file]
    arms = judging.arms_of(listed)
    folder = epath.Path(out)
    if name == "rewardbench2":
        told, table = _rewardbench2(config, data, values)
        _write(folder / "rewardbench2.json", told)
        sys.stdout.write(as_text(table))
    elif name == "ifeval":
        marker = values["end_of_thoughts"].value
        rows = [benches.ifeval(arm, data, marker) for arm in arms]
        _write(folder / "ifeval.json", rows)
        sys.stdout.write(as_text(_ifeval_table(rows)))
    elif name == "alpaca_eval":
        for arm in arms:
            path = folder / _file_name(arm.name) / "model_outputs.json"
            _write(path, benches.alpaca_eval(arm))
            sys.stdout.write(f"wrote {path}\n")
    else:
        for arm in arms:
            path = folder / "model_answer" / f"{_file_name(arm.name)}.jsonl"
            rows = benches.arena_hard(arm, data)
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
            files.write_whole(path, "".join(lines))
            sys.stdout.write(f"wrote {path}\n")
    return 0


def _check(name: str, values: common.Flags) -> None:
    """Refuses a benchmark that is not known, and flags that it does not read or lacks.

    Raises:
      ConfigError: naming the flags.
    """
    if name not in NEEDS:
        raise ConfigError(unknown("--name", name, NEEDS))
    due = NEEDS[name]
    with collected(ConfigError) as complaints:
        for flag in ("samples", "data", "end_of_thoughts"):
            given = bool(values[flag].value)
            if given and flag not in due:
                complaints.append(
                    f"--{flag} is not used by --name={name}; leave it out"
                )
            if not given and flag in due - {"end_of_thoughts"}:
                complaints.append(f"--name={name} needs --{flag}")


def _rewardbench2(
    config: Any, data: Any, values: common.Flags
) -> tuple[dict[str, Any], ReportTable]:
    """Scores the reward model of the configuration."""
    from dpo_jax.data import tokenize
    from dpo_jax.models import files as model_files
    from dpo_jax.rewards import REWARDS
    from dpo_jax.sharding.mesh import make_mesh
    from dpo_jax.wiring import benches, text_scores

    common.setup_jax(config, debug=values["debug"].value)
    mesh = make_mesh(**config.mesh)
    scores = text_scores.of_reward(config, "model", REWARDS, mesh)
    folder = model_files.resolve(config.reward.path, "")
    as_chats = bool(tokenize.load_tokenizer(str(folder)).chat_template)
    told = benches.rewardbench2(data, scores, as_chats=as_chats)
    told |= {"model": config.reward.path, "as_chats": as_chats}
    rows = [
        (name, of["value"] if of["se"] is None else (of["value"], of["se"]))
        + (of["prompts"],)
        for name, of in told["subsets"].items()
    ]
    total = sum(of["prompts"] for of in told["subsets"].values())
    rows.append(("mean of subsets", told["mean_of_subsets"], total))
    title = f"RewardBench 2 of {config.reward.path}"
    return told, ReportTable(title, ("subset", "score", "prompts"), tuple(rows))


def _ifeval_table(rows: Sequence[dict[str, Any]]) -> ReportTable:
    levels = [
        f"{level}_{kind}"
        for kind in ("strict", "loose")
        for level in ("prompt", "instruction")
    ]

    def cells(row: dict[str, Any]) -> tuple[Any, ...]:
        heat = row["temperature"]
        rates = [
            row[name] if row[f"{name}_se"] is None else (row[name], row[f"{name}_se"])
            for name in levels
        ]
        shown = None if heat is None else f"{heat:g}"
        return (row["policy"], shown, *rates, row["prompts"], row["responses"])

    columns = (
        "policy",
        "T",
        *(n.replace("_", " ") for n in levels),
        "prompts",
        "responses",
    )
    return ReportTable("IFEval", columns, tuple(map(cells, rows)))


def _file_name(name: str) -> str:
    return name.strip("/").replace("/", "__").replace(":", "_")


def _write(path: epath.Path, told: Any) -> None:
    text = json.dumps(told, indent=1, ensure_ascii=False) + "\n"
    files.write_whole(path, text)
