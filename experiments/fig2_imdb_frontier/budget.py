"""What a tier costs before it is run: steps, samples, and seconds where measured."""

from collections.abc import Iterator
from typing import NamedTuple

from experiments.fig2_imdb_frontier.tiers import Tier


class Rates(NamedTuple):
    """Seconds of two CPU cores: half of the CPU time that a process took.

    Attributes:
      start: of a trial, until its first step, compiled programs at hand.
      drawn: a sample of the reference.
      offline: an update on pairs, per pair.
      reward: an update of the reward model, per pair.
      turn: a turn of PPO, per sample.
      evaluated: a sampled and scored continuation of an evaluation.
    """

    start: float
    drawn: float
    offline: float
    reward: float
    turn: float
    evaluated: float


class Part(NamedTuple):
    """Trials of a kind.

    Attributes:
      name: of the kind.
      trials: how many.
      steps: optimizer steps of each.
      drawn: samples that each learns from and draws itself.
      evaluated: samples that each draws to be judged.
      seconds: of all of them; None where rates were not measured.
    """

    name: str
    trials: int
    steps: int
    drawn: int
    evaluated: int
    seconds: float | None


RATES = {
    # Samples, updates on pairs, turns and starts were measured; the others follow by
    # the tokens that pass through the model, forward and backward.
    "real": Rates(45.0, 0.08, 0.40, 0.30, 0.27, 0.18),
}


def parts(tier: Tier, rates: Rates | None = None) -> Iterator[Part]:
    """Yields what a tier is made of."""
    prompts = int(tier.keys["eval.rollouts"])
    samples = tier.samples * (tier.train + tier.held_out)
    reference = prompts * tier.ref_samples
    seconds = None if rates is None else rates.drawn * (samples + reference)
    yield Part("samples of the reference", 1, 0, samples, reference, seconds)
    evaluated = prompts * (tier.evals + 2)  # before, and the reference's own
    pairs, steps = tier.offline["batch.pairs"], tier.offline["train.steps"]
    count = len(tier.betas) + len(tier.soft_betas) + len(tier.alphas) + len(tier.seeds)
    yield of(rates, "on pairs", count, steps, 0, evaluated, "offline", pairs * steps)
    if tier.targets and "train.steps" in tier.reward_model:
        pairs, steps = (tier.reward_model[k] for k in ("batch.pairs", "train.steps"))
        yield of(rates, "reward model", 1, steps, 0, 0, "reward", pairs * steps)
        best = 2 * prompts * tier.best_of
        yield of(rates, "best-of-N", 1, 1, 0, best, "offline", 0)
    given = tier.on_policy
    turns = given["train.steps"] // (given["ppo.epochs"] * given["ppo.minibatches"])
    drawn = turns * given["rollout.prompts"] * given["rollout.samples"]
    count, steps = len(tier.targets) + len(tier.true_targets), given["train.steps"]
    yield of(rates, "PPO", count, steps, drawn, evaluated, "turn", drawn)


def of(
    rates: Rates | None,
    name: str,
    trials: int,
    steps: int,
    drawn: int,
    evaluated: int,
    work: str,
    units: int,
) -> Part:
    """Makes a part; `units` of `work` are what its training takes at a rate."""
    seconds = None
    if rates is not None:
        each = rates.start + rates.evaluated * evaluated
        seconds = trials * (each + rates._asdict()[work] * units)
    return Part(name, trials, steps, drawn, evaluated, seconds)


def told(tier: Tier, rates: Rates | None) -> str:
    """Renders the parts of a tier for a terminal."""
    lines = [f"{'':26}{'trials':>7}{'steps':>8}{'drawn':>9}{'judged':>9}{'minutes':>9}"]
    found = list(parts(tier, rates))
    for part in found:
        minutes = "" if part.seconds is None else f"{part.seconds / 60:.0f}"
        lines.append(
            f"{part.name:26}{part.trials:>7}{part.steps:>8,}{part.drawn:>9,}"
            f"{part.evaluated:>9,}{minutes:>9}"
        )
    if rates is not None:
        total = sum(part.seconds or 0.0 for part in found)
        lines.append(f"{'in all, on two CPU cores':59}{total / 60:>9.0f}")
    return "\n".join([*lines, "steps, drawn and judged are of each trial", ""])
