"""Which rewards a run has, and their verdicts, which the first process tells all."""

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from dpo_jax import config as config_lib
from dpo_jax.data.prepare import Questions
from dpo_jax.errors import DataError, unknown
from dpo_jax.objectives import ON_POLICY
from dpo_jax.rewards import RewardTable
from dpo_jax.rewards.ask import Reward, Verdicts, ask
from dpo_jax.schema import Config, Section
from dpo_jax.sharding import agree
from dpo_jax.train import watchdog

Asker = Callable[..., Verdicts]  # `ask` but for its rewards and seconds

MODEL = "model"  # the reward of `reward.path`
OF_MODEL = {"path", "dtype", "standardize"}  # options that it alone reads
GRACE_SECONDS = 60.0  # beyond the limit of the first process, for the others to wait


def chosen(given: Section, table: RewardTable) -> tuple[Reward, ...]:
    """Returns the rewards that a configuration names; () = none.

    Args:
      given: `config.reward`, without faults.
      table: that they are looked up in.
    """
    names = names_of(given)
    weights = given["weights"] or (1.0,) * len(names)
    pairs = zip(names, weights, strict=True)
    return tuple(Reward(name, table[name], float(weight)) for name, weight in pairs)


def names_of(given: Section) -> list[str]:
    """Lists the rewards of a configuration; `given` is `config.reward`."""
    if given["name"]:
        return given["name"].split("+")
    return [MODEL] if given["path"] else []


def faults(given: Section, table: RewardTable) -> list[str]:
    """Complains of rewards that are not known, and weights that do not fit them.

    Args:
      given: `config.reward`.
      table: that they are looked up in.
    """
    names, weights = names_of(given), given["weights"]
    found = [unknown("reward.name", name, table) for name in names if name not in table]
    if len(set(names)) < len(names):
        found.append(f"reward.name={given['name']!r} names a reward twice")
    if weights and len(weights) != len(names):
        found.append(
            f"reward.weights={tuple(weights)} has {len(weights)} weights for the "
            f"{len(names)} rewards of reward.name={given['name']!r}"
        )
    if not all(np.isfinite(weight) for weight in weights):
        found.append(f"reward.weights={tuple(weights)} must be finite")
    if weights and not any(weights):
        found.append(f"reward.weights={tuple(weights)}: one must not be 0")
    if MODEL in names and not given["path"]:
        found.append(
            f"reward.name={given['name']!r}: {MODEL!r} is the model of reward.path; "
            "set it"
        )
    if MODEL not in names:
        by, used = f"reward.name={given['name']!r}", set(given) - OF_MODEL
        unused = config_lib.unused_options("reward", given, used, by)
        found += [f"{fault}; or add '+{MODEL}' to reward.name" for fault in unused]
    return found


def config_faults(config: Config, table: RewardTable) -> list[str]:
    """Complains of rewards that nobody asks, or that do not fit together."""
    given = config.reward
    named = bool(names_of(given))
    sampled = config.eval.rollouts or config.objective in ON_POLICY
    if not given.name and config.rewards:
        return ["--rewards is not used by reward.name=''; name one of them"]
    if not named or not sampled:
        by = "a run that samples nothing" if named else "reward.name=''"
        used = () if named else ("name",)
        return config_lib.unused_options("reward", given, used, by)
    found, limit = faults(given, table), config.train.watchdog_seconds
    found += standard_faults(given, config.objective, config.ref.mode)
    if 0 < limit <= given.timeout_seconds:
        found.append(
            f"reward.timeout_seconds={given.timeout_seconds:g} must be below "
            f"train.watchdog_seconds={limit:g}, which would end the run before"
        )
    return found


def standard_faults(given: Section, name: str, reference: str) -> list[str]:
    """Complains of scores that cannot be standardized.

    Args:
      given: `config.reward`.
      name: of the objective.
      reference: `ref.mode`.
    """
    count = given["standardize"]
    field = f"reward.standardize={count}"
    if count and name not in ON_POLICY:
        return [f"{field} is not used by objective={name!r}; only by samples' updates"]
    if count == 1:
        return [f"{field}: one sample has no deviation; use more, or 0"]
    if count and reference == "none":
        return [f"{field} takes samples of a reference; set ref.mode='live'"]
    return []


def make_asker(rewards: Sequence[Reward], *, name: str, seconds: float) -> Asker:
    """Makes `ask` run on the first process alone; all get what it got, or its error.

    Args:
      rewards: that are asked.
      name: of who asks; no two of a run may have the same.
      seconds: for all rewards of one call.
    """
    calls = itertools.count()

    def asker(*args: Any, **keys: Any) -> Verdicts:
        what = f"{name}/{next(calls)}"
        watchdog.beat()
        if jax.process_index():
            told = agree.of_first(what, "", seconds=seconds + GRACE_SECONDS)
            return _heard(told)
        try:
            verdicts = ask(rewards, *args, **keys, seconds=seconds)
        except Exception as error:
            agree.of_first(what, json.dumps({"error": str(error)}), seconds=seconds)
            raise
        columns = {n: values.tolist() for n, values in verdicts.by_name.items()}
        told = {"total": verdicts.total.tolist(), "by_name": columns}
        agree.of_first(what, json.dumps(told), seconds=seconds)
        return verdicts

    return asker


def of_samples(
    asker: Asker,
    questions: Questions,
    places: Sequence[int],
    texts: list[list[str]],
    ids: list[list[list[int]]],
    scores: np.ndarray | None = None,
) -> Verdicts:
    """Asks about n samples of each of N prompts; the verdicts are prompt by prompt.

    Args:
      asker: of `make_asker`.
      questions: prompts, and what their rows say.
      places: which of them were sampled.
      texts: N lists of n samples.
      ids: N lists of n lists of token ids.
      scores: [N, n] by the reward model; None without one.
    """
    rows = [(i, j) for i, row in enumerate(texts) for j in range(len(row))]
    return asker(
        prompts=[questions.prompts[places[i]] for i, _ in rows],
        completions=[texts[i][j] for i, j in rows],
        completion_ids=[ids[i][j] for i, j in rows],
        ids=rows,
        columns={
            name: [values[places[i]] for i, _ in rows]
            for name, values in questions.columns.items()
        }
        | scores_column(scores),
    )


def scores_column(scores: np.ndarray | None) -> dict[str, list[float]]:
    """Makes the column of rewards.of_model of what the reward model said."""
    return {} if scores is None else {"model_scores": np.ravel(scores).tolist()}


def _heard(told: str) -> Verdicts:
    """Reads what the first process told: bit by bit what it has itself.

    Raises:
      DataError: its error.
    """
    found = json.loads(told)
    if "error" in found:
        raise DataError(found["error"])
    columns = {name: np.array(values) for name, values in found["by_name"].items()}
    return Verdicts(np.array(found["total"]), columns)
