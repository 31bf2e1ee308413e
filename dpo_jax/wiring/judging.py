"""Rewards asked once a turn, on the first process, and told to all."""

import json
from collections.abc import Sequence

import jax
import numpy as np

from dpo_jax.errors import ConfigError, DataError, collected, unknown
from dpo_jax.rewards import RewardTable
from dpo_jax.rewards.ask import Reward, Verdicts, ask
from dpo_jax.sharding import agree
from dpo_jax.train import watchdog
from dpo_jax.wiring.prompts import Asked


def rewards_of(
    name: str, weights: Sequence[float], table: RewardTable
) -> tuple[Reward, ...]:
    """Looks up the rewards of `reward.name` and gives each its weight.

    Raises:
      ConfigError: if the table lacks one, or weights and names do not fit together.
    """
    names = name.split("+") if name else []
    with collected(ConfigError) as complaints:
        complaints += [
            unknown("reward.name", n, table) for n in names if n not in table
        ]
        if weights and len(weights) != len(names):
            complaints.append(
                f"reward.weights={tuple(weights)} has {len(weights)} weights for the "
                f"{len(names)} rewards of reward.name={name!r}"
            )
        if len(set(names)) < len(names):
            complaints.append(f"reward.name={name!r} names a reward twice")
    given = weights or (1.0,) * len(names)
    return tuple(
        Reward(n, table[n], float(w)) for n, w in zip(names, given, strict=True)
    )


class Judging:
    """Asks rewards about the samples of each turn."""

    def __init__(self, rewards: Sequence[Reward], asked: Asked, *, seconds: float):
        """Asks nothing yet.

        Args:
          rewards: with names of their own.
          asked: the prompts of the run.
          seconds: for all rewards of a turn.
        """
        self._rewards, self._asked, self._seconds = rewards, asked, seconds
        self._turns = 0

    def __call__(
        self,
        places: Sequence[int],
        texts: list[list[str]],
        ids: list[list[list[int]]],
    ) -> Verdicts:
        """Judges the samples of the prompts at some places; N·n verdicts.

        Raises:
          DataError: on all processes, if a reward fails or says nonsense.
        """
        self._turns += 1
        said = ""
        if jax.process_index() == 0:
            said = self._text(places, texts, ids)
        seconds = self._seconds + 60.0  # the first process has its own limit
        told = json.loads(
            agree.of_first(f"rewards {self._turns}", said, seconds=seconds)
        )
        watchdog.beat()
        if "error" in told:
            raise DataError(told["error"])
        total, by_name = told["total"], told["by_name"]
        return Verdicts(_array(total), {n: _array(v) for n, v in by_name.items()})

    def _text(
        self,
        places: Sequence[int],
        texts: list[list[str]],
        ids: list[list[list[int]]],
    ) -> str:
        """Asks, and writes the verdicts or the error down."""
        each = [
            (turn, at, k)
            for turn, at in enumerate(places)
            for k in range(len(texts[turn]))
        ]
        try:
            verdicts = ask(
                self._rewards,
                [self._asked.texts[at] for _, at, _ in each],
                [text for row in texts for text in row],
                completion_ids=[sample for row in ids for sample in row],
                ids=[(turn, k) for turn, _, k in each],
                columns={
                    name: [values[at] for _, at, _ in each]
                    for name, values in self._asked.columns.items()
                },
                seconds=self._seconds,
            )
        except DataError as error:
            return json.dumps({"error": str(error)})
        by_name = {name: _list(values) for name, values in verdicts.by_name.items()}
        return json.dumps({"total": _list(verdicts.total), "by_name": by_name})


def _list(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def _array(values: list[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], float)
