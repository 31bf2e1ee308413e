"""Where a trial stands, read from its run folder."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from etils import epath

from dpo_jax import config as config_lib
from dpo_jax.errors import UserError
from dpo_jax.launch.trial import Planned
from dpo_jax.train import published, runfolder

WORDS = {  # of a state -> what it says
    "done": "trained, exported and reported",
    "running": "a process holds the run folder",
    "damaged": "a person must look at the run folder",
    "waiting": "for trials that are not done",
    "begun": "goes on from its newest checkpoint",
    "new": "nothing is there yet",
}


class State(NamedTuple):
    """Where a trial stands: a word of `WORDS`, and what more is to be said."""

    word: str
    detail: str = ""


def states_of(planned: Sequence[Planned]) -> dict[str, State]:
    """Reads where all trials stand, each behind those that it waits for."""
    states: dict[str, State] = {}
    for trial in planned:
        states[trial.name] = waiting(trial, state_of(trial), states)
    return states


def waiting(trial: Planned, state: State, states: Mapping[str, State]) -> State:
    """Says that a trial waits, where it has yet to run and needs what is not done."""
    missing = [name for name in trial.needs if states[name].word != "done"]
    if missing and state.word in ("new", "begun"):
        return State("waiting", f"for {', '.join(missing)}")
    return state


def state_of(trial: Planned) -> State:
    """Reads where a trial stands by itself."""
    try:
        if owner := runfolder.holder(trial.folder):
            return State("running", owner)
        runfolder.check_files(trial.folder)
        kept = runfolder.read_json(trial.folder, "config.json")
    except UserError as error:
        return State("damaged", str(error))
    if kept is None:
        return State("new")
    if differing := changes(kept, trial):
        return State(
            "damaged",
            f"{trial.folder} was started with another configuration: "
            f"{'; '.join(differing)}; rename the trial, or move the folder away",
        )
    step = runfolder.finished_step(trial.folder)
    if step >= max(trial.config.train.steps, 1):
        return State("done", f"step {step}")
    steps = committed(epath.Path(trial.folder) / "checkpoints")
    return State("begun", f"from step {max(steps)}" if steps else "from the beginning")


def changes(kept: Mapping, trial: Planned) -> list[str]:
    """Lists `key: old → new` of what a relaunch of the trial may not change."""
    new = config_lib.flat(trial.config)
    old = config_lib.flat(kept)
    new["data.now"] = new["data.now"] or old.get("data.now", "")  # the first launch's
    return config_lib.changes(old, new)


def committed(folder: epath.Path) -> list[int]:
    """Lists the steps whose folders stand, or are published; nothing is verified."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    plain = [int(name) for name in names if re.fullmatch(r"\d+", name)]
    try:
        return [*plain, *published.read(folder).steps]
    except ValueError:
        return plain


def programs(trial: Planned) -> str:
    """Says what a trial compiled; '' where its run folder does not."""
    try:
        told = (runfolder.read_json(trial.folder, "timing.json") or {})["programs"]
        return f"; {told['compiled']} programs compiled, {told['read']} read"
    except (UserError, KeyError, TypeError):
        return ""
