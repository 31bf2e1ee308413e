"""Compares the methods of a sweep: each at its usual setting and at its best.

The prompts are split in two: by those of even number (validation) a method's setting is
chosen, on the others (test) it is reported, once. Differences are of the same seeds and
prompts. Nothing here knows of files.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dpo_jax.report import stats
from dpo_jax.report.arms import Arms, Entry, Place, said_setting
from dpo_jax.report.outcomes import Outcome, diverged
from dpo_jax.report.stats import Mean

KLS = (1.0, 3.0, 10.0, 30.0)  # nats, within which methods are compared
REWARD, KL, LENGTH = range(3)  # rows of what was measured
Seed = tuple[int, int]


class Setting(NamedTuple):
    """A method at one setting.

    Attributes:
      method: its name.
      text: the setting, in words.
      usual: whether it is what the trials' `--config` says.
      planned: seeds that the sweep has of it.
      diverged: how many of them diverged.
      values: seed -> f64[3, P] of its finished trials.
    """

    method: str
    text: str
    usual: bool
    planned: tuple[Seed, ...]
    diverged: int
    values: dict[Seed, np.ndarray]

    def grid(self, row: int, prompts: np.ndarray) -> np.ndarray:
        """Returns one row of what was measured on some prompts, f64[S, P]."""
        return np.stack([values[row, prompts] for values in self.values.values()])

    def mean(self, row: int, prompts: np.ndarray) -> Mean:
        """Returns the mean of a row over seeds and prompts; NaN where it is not known.

        A prompt without a verdict in any run is left out of `prompts` before.
        """
        return stats.mean_of(self.grid(row, prompts))


class Difference(NamedTuple):
    """A method against the base: of the same seeds on the same prompts.

    Attributes:
      mean: of the differences; None where no seed is shared, or of the base itself.
      p: corrected for the number of methods; NaN where there is none, as of one seed,
        which says nothing of other runs.
      smallest: the smallest effect that could have been seen; NaN likewise.
      seeds: that both have.
    """

    mean: Mean | None
    p: float
    smallest: float
    seeds: int


class Row(NamedTuple):
    """A method at a setting, and how it differs from the base."""

    setting: Setting
    difference: Difference


class Comparison(NamedTuple):
    """The comparison of a sweep.

    Attributes:
      arms: what is compared.
      settings: all, in the sweep's order.
      usual: method -> itself at its usual setting, where it is among the settings.
      tuned: of each method that has a finished trial, at its best setting.
      within: KL in nats -> each method at the best setting within it.
      validation: numbers of the prompts by which settings are chosen.
      test: numbers of those that are reported.
      unjudged: prompts that are left out, for want of a verdict in some run.
    """

    arms: Arms
    settings: list[Setting]
    usual: dict[str, Setting]
    tuned: list[Row]
    within: dict[float, list[Row]]
    validation: np.ndarray
    test: np.ndarray
    unjudged: int


def compare(
    entries: Sequence[Entry], arms: Arms, outcomes: Mapping[str, Outcome]
) -> Comparison:
    """Compares the methods of a sweep.

    Args:
      entries: its trials.
      arms: what is compared.
      outcomes: name of a finished trial -> what it was measured to be; at least one.
    """
    settings = settings_of(entries, arms.places, outcomes)
    validation, test, unjudged = split(outcomes)
    score = lambda setting: float(setting.grid(REWARD, validation).mean())  # noqa: E731
    kl = lambda setting: float(setting.grid(KL, validation).mean())  # noqa: E731
    within: dict[float, list[Setting]] = {}
    for limit in KLS:
        near = [s for s in settings if s.values and kl(s) <= limit]
        best = best_of(near, score)
        if len(best) > 1 and best not in within.values():
            within[limit] = best
    against = lambda best: rows_of(best, arms.base, test)  # noqa: E731
    return Comparison(
        arms,
        settings,
        {s.method: s for s in settings if s.usual and s.values},
        against(best_of(settings, score)),
        {limit: against(best) for limit, best in within.items()},
        validation,
        test,
        unjudged,
    )


def settings_of(
    entries: Sequence[Entry],
    places: Mapping[str, Place],
    outcomes: Mapping[str, Outcome],
) -> list[Setting]:
    """Groups trials by method and setting, in the sweep's order."""
    groups: dict[tuple, list[Entry]] = {}
    for entry in entries:
        if place := places.get(entry.name):
            groups.setdefault((place.method, place.setting), []).append(entry)
    found = []
    for (method, setting), group in groups.items():
        of = {entry.name: places[entry.name] for entry in group}
        done = {n: outcomes[n] for n in of if n in outcomes}
        found.append(
            Setting(
                method,
                said_setting(setting),
                next(iter(of.values())).usual,
                tuple(place.seed for place in of.values()),
                sum(map(diverged, group)) + sum(o.rose for o in done.values()),
                {of[name].seed: outcome.values for name, outcome in done.items()},
            )
        )
    order = list(dict.fromkeys(setting.method for setting in found))
    return sorted(found, key=lambda setting: order.index(setting.method))


def split(outcomes: Mapping[str, Outcome]) -> tuple[np.ndarray, np.ndarray, int]:
    """Splits the prompts into validation and test; a mean alone is both.

    Returns:
      The numbers of either, and how many were left out because a run has no verdict.
    """
    rewards = np.stack([outcome.values[REWARD] for outcome in outcomes.values()])
    known = np.flatnonzero(~np.isnan(rewards).any(0))
    if rewards.shape[1] == 1:
        return known, known, 1 - len(known)
    return known[known % 2 == 0], known[known % 2 == 1], rewards.shape[1] - len(known)


def best_of(
    settings: Sequence[Setting], score: Callable[[Setting], float]
) -> list[Setting]:
    """Chooses each method's best setting: the first of those that tie.

    Settings with all of their seeds go before those that miss some, diverged runs
    included: what fails by chance is no method's best.
    """
    best: dict[str, tuple[bool, float, Setting]] = {}
    for setting in settings:
        if setting.values:
            whole = len(setting.values) == len(setting.planned)
            rank = (whole, score(setting), setting)
            held = best.get(setting.method)
            if held is None or rank[:2] > held[:2]:
                best[setting.method] = rank
    return [rank[-1] for rank in best.values()]


def rows_of(best: Sequence[Setting], base: str, test: np.ndarray) -> list[Row]:
    """Puts beside each method's best setting how it differs from the base's."""
    bases = [setting for setting in best if setting.method == base]
    means: list[tuple[Mean | None, int]] = []
    for setting in best:
        shared = [s for s in setting.values if bases and s in bases[0].values]
        if setting.method == base or not shared:
            means.append((None, len(shared)))
            continue
        theirs = bases[0].values
        grid = [setting.values[s][REWARD] - theirs[s][REWARD] for s in shared]
        means.append((stats.mean_of(np.stack(grid)[:, test]), len(shared)))
    tested = [mean if seeds > 1 else None for mean, seeds in means]
    ps = stats.holm([math.nan if mean is None else mean.p for mean in tested])
    count = sum(mean is not None for mean in tested)
    smallest = [
        math.nan if m is None else stats.smallest_effect(m, count) for m in tested
    ]
    return [
        Row(setting, Difference(mean, p, least, seeds))
        for setting, (mean, seeds), p, least in zip(
            best, means, ps, smallest, strict=True
        )
    ]
