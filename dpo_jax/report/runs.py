"""Reads run folders. Knows the files of a run and nothing of how they are shown."""

import os
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeGuard

from etils import epath

from dpo_jax import files, lines
from dpo_jax.errors import DataError

SPLITS = ("train", "eval")
WHEN = ("before", "after")  # training
FRONTIER = {  # numbers of each row of frontier.json that are shown
    "frontier": {"kl", "reward", "trusted"},
    "best_of": {"m", "kl_bound", "reward"},
}
MEASURED = ("reward", "kl", "length")  # of each prompt, in rollouts.json
LARGE = 1e300  # beyond what any figure can hold


class Run(NamedTuple):
    """What a run folder says of itself.

    Attributes:
      name: what the run is called in a report; its folder's name.
      folder: the path as it was given.
      config: `config.json`, resolved.
      metrics: the lines of `metrics.jsonl`, in order.
      data: `data.json`: rows read, dropped by reason, cut; {} without one.
      samples: `samples.json`: {"prompt", "before", "after", "reward_before",
        "reward_after"} each; [] without one.
      results: `results.json`: {"title", "rows": [{"name", "values"}]}; {} without one.
      frontier: `frontier.json`: {"measure", "frontier": [{"kl", "reward", "trusted",
        …}], "best_of": [{"m", "kl_bound", "reward", …}]}; {} without one.
      rollouts: `rollouts.json`: {"measure", "prompts", "policy": {"reward", "kl",
        "length"}, …}, lists with a number (None = no verdict) a prompt; {} without one.
    """

    name: str
    folder: str
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    data: dict[str, Any]
    samples: list[dict[str, Any]]
    results: dict[str, Any]
    frontier: dict[str, Any]
    rollouts: dict[str, Any]


def load(folder: os.PathLike | str) -> Run:
    """Reads one run folder, local or `gs://…`; a half-written last line is left out.

    Raises:
      DataError: if `metrics.jsonl` is missing or empty, or a file cannot be parsed.
    """
    path = epath.Path(folder)
    return Run(
        name=plain(path.name or os.fspath(path)),
        folder=plain(os.fspath(path)),
        config=_json(path / "config.json", {}),
        metrics=_metrics(path),
        data=_json(path / "data.json", {}),
        samples=_samples(path / "samples.json"),
        results=_results(path / "results.json"),
        frontier=_frontier(path / "frontier.json"),
        rollouts=_rollouts(path / "rollouts.json"),
    )


def load_all(folders: Sequence[os.PathLike | str]) -> list[Run]:
    """Reads several run folders; their names differ in the end.

    Raises:
      DataError: with the faults of all folders, or if there are no folders.
    """
    if not folders:
        raise DataError("no run folder was given; name at least one")
    runs, complaints = [], []
    for folder in folders:
        try:
            runs.append(load(folder))
        except DataError as error:
            complaints.append(str(error))
    if complaints:
        raise DataError(" · ".join(complaints))
    if len({run.name for run in runs}) == len(runs):
        return runs
    return [run._replace(name=run.folder) for run in runs]


def names(runs: list[Run]) -> list[str]:
    """Lists the numeric metrics of any of the runs, sorted."""
    numeric = {
        key
        for run in runs
        for line in run.metrics
        for key, value in line.items()
        if key != "step" and _is_number(value)
    }
    return sorted(numeric)


def series(run: Run, split: str, metric: str) -> tuple[list[int], list[float]]:
    """Returns (steps, values) of a metric on a split; empty lists where there is none.

    Args:
      run: the run.
      split: `train` or `eval`.
      metric: its name in `metrics.jsonl`, without the split.
    """
    steps, values = [], []
    for line in run.metrics:
        value = line.get(metric)
        if line.get("split", "train") == split and _is_number(value):
            steps.append(line["step"])
            values.append(float(value))
    return steps, values


def plain(text: str) -> str:
    """Makes control characters visible (ESC as ␛) and takes out bidi overrides."""
    return "".join(_visible(char) for char in text)


def _visible(char: str) -> str:
    code = ord(char)
    if char in "\n\t":
        return char
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode's control pictures
    if code == 0x7F:
        return "\u2421"
    hidden = unicodedata.category(char) in ("Cc", "Cs")
    bidi = 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069
    return "\ufffd" if hidden or bidi else char


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _json(path: epath.Path, default: Any) -> Any:
    """Reads a JSON file of the same kind as `default`, which stands for no file."""
    _check(path)
    if not path.exists():
        return default
    try:
        value = files.read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: not JSON ({error}); restore or remove it, then report again"
        ) from error
    if not isinstance(value, type(default)):
        raise DataError(
            f"{path}: must hold a JSON {type(default).__name__}, found "
            f"{type(value).__name__}; restore or remove it, then report again"
        )
    return value


def _check(path: epath.Path) -> None:
    """Refuses what is no file, and what may wait for ever to be read."""
    kind = files.no_file(path)
    if kind and not path.is_file():
        raise DataError(f"{path} is {kind}, not a file; remove it, then report again")
    if path.exists() and lines.is_hollow(path):
        raise DataError(
            f"{path} is large and holds zeros; remove it, then report again"
        )


def _samples(path: epath.Path) -> list[dict[str, Any]]:
    """Reads the samples and checks that each holds what is shown of it."""
    samples = _json(path, [])
    for number, sample in enumerate(samples):
        good = isinstance(sample, dict) and all(
            isinstance(sample.get(key), str) for key in ("prompt", "before", "after")
        )
        rewards = [sample.get(f"reward_{when}") for when in WHEN] if good else []
        if not good or not all(r is None or _is_number(r) for r in rewards):
            raise DataError(
                f"{path}: sample {number} must hold the strings prompt, before and "
                "after, and numbers as rewards; write it again or remove the file"
            )
    return samples


def _results(path: epath.Path) -> dict[str, Any]:
    """Reads the table of results and checks its cells."""
    results = _json(path, {})
    if fault := results_fault(results):
        raise DataError(f"{path}: {fault}; write it again or remove the file")
    return results


def results_fault(results: dict[str, Any]) -> str:
    """Says what in a `results.json` cannot be shown; '' if all can."""
    values, rows = results.get("values", {}), results.get("rows", [])
    if not isinstance(values, dict) or not all(map(_is_number, values.values())):
        return "values must be numbers by name"
    if not isinstance(rows, list) or not isinstance(results.get("title", ""), str):
        return "it must hold a text as title, and a list of rows"
    for number, row in enumerate(rows):
        cells = row.get("values") if isinstance(row, dict) else None
        good = isinstance(cells, dict) and isinstance(row.get("name"), str)
        if not good or not all(map(_is_cell, dict(cells or {}).values())):
            return (
                f"row {number} must hold a name and values that are numbers or "
                "[mean, standard error]"
            )
    return ""


def _frontier(path: epath.Path) -> dict[str, Any]:
    """Reads the frontier, and checks that all of it is numbers by the names needed."""
    found = _json(path, {})
    good = isinstance(found.get("measure"), str) and all(
        _are_numbers(found.get(key), names) for key, names in FRONTIER.items()
    )
    if found and not good:
        raise DataError(
            f"{path}: it must hold a text as measure, and frontier and best_of, lists "
            "of finite numbers by name; remove it, and let the run write it again"
        )
    return found


def _rollouts(path: epath.Path) -> dict[str, Any]:
    """Reads what was measured of each prompt, and checks that it is lists of a length.

    The policy's, that is: the reference's are shown nowhere.
    """
    found = _json(path, {})
    policy = found.get("policy")
    lists = [policy.get(name) for name in MEASURED] if isinstance(policy, dict) else []
    texts = [found.get("measure"), found.get("prompts")]
    good = bool(lists) and all(isinstance(text, str) for text in texts)
    if found and not (good and _are_measured(lists)):
        raise DataError(
            f"{path}: it must hold texts as measure and prompts, and as policy lists "
            f"of {', '.join(MEASURED)}, a finite number or null a prompt; remove it "
            "(the run then shows its means alone)"
        )
    return found


def _are_measured(lists: list[Any]) -> bool:
    """Says whether values are lists of one length, of finite numbers or null."""
    return (
        all(isinstance(each, list) for each in lists)
        and len({len(each) for each in lists}) == 1
        and all(v is None or _is_finite(v) for each in lists for v in each)
    )


def _is_finite(value: object) -> bool:
    return _is_number(value) and -LARGE < value < LARGE


def _are_numbers(rows: object, names: set[str]) -> bool:
    """Says whether a value is a list of finite numbers by name, those names there."""
    return isinstance(rows, list) and all(
        isinstance(row, dict)
        and names <= row.keys()
        and all(isinstance(v, int | float) and -LARGE < v < LARGE for v in row.values())
        for row in rows
    )


def _is_cell(value: object) -> bool:
    """Says whether a value of `results.json` can stand in a table."""
    pair = isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))
    return pair or value is None or _is_number(value)


def _metrics(folder: epath.Path) -> list[dict[str, Any]]:
    """Parses `metrics.jsonl`, or its parts; only the last line may be broken."""
    path = folder / lines.METRICS
    _check(path)
    texts = lines.read(folder)
    entries = []
    for number, line in enumerate(texts, start=1):
        entry = lines.parsed(line)
        if entry is not None:
            entries.append(entry)
        elif number < len(texts) and line.strip():
            raise DataError(
                f"{path}:{number}: not a metrics line (a JSON object with an integer "
                "`step`); remove the line, or train on: a relaunch recovers it"
            )
    if not entries:
        raise DataError(
            f"{folder}: metrics.jsonl is {'empty' if path.exists() else 'missing'}; "
            "name the --workdir of a run that has taken at least one logged step"
        )
    return entries
