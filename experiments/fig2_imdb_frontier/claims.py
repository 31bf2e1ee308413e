"""What a run of this experiment must show, whatever its tier: mostly that it is right.

Statements on which method wins are not among them, but for those that a far larger
margin than noise carries. Errors of methods are taken as independent, though all share
prompts and noise: differences are thus less certain here than they are.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from experiments.fig2_imdb_frontier import points as points_lib
from experiments.fig2_imdb_frontier.points import Experiment, Point

ERRORS = 3.0  # standard errors that count as noise
SURE = 2.33  # standard errors of a difference, one-sided p < .01
LN2_SLACK = 1e-6
AREA_KLS = np.linspace(0.3, 3.0, 28)  # nats, over which gaps are averaged
MODEST_GAIN, MODEST_KL = 0.2, 1.5  # of preferred-FT
LARGEST_N = 16  # of best-of-N that is compared with the frontier
NEARLY = 0.02  # how far it may lie beneath, in reward


class Claim(NamedTuple):
    """A statement about a run.

    Attributes:
      text: what is claimed.
      holds: whether it does.
      seen: the numbers.
    """

    text: str
    holds: bool
    seen: str


class Gap(NamedTuple):
    """How far a method lies beneath the frontier on average over KLs.

    Attributes:
      mean: of the reward.
      se: its standard error, at most: as if the points were one.
    """

    mean: float
    se: float


def check(found: Experiment) -> list[Claim]:
    """Lists the claims that the trials of a folder can show, and whether they hold."""
    return [claim for about in ABOUT for claim in about(found)]


def row(claim: Claim) -> list[str]:
    """Renders a claim as a row of a table."""
    return ["holds" if claim.holds else "**fails**", claim.text, claim.seen]


def no_free_lunch(found: Experiment) -> Iterator[Claim]:
    """No policy lies above the frontier: else reward, KL or frontier are wrong."""
    compared = [p for p in found.points if p.excess is not None and p.step]
    if compared:
        flagged = [p for p in compared if p.flagged]
        worst = max(compared, key=lambda p: (p.excess or 0.0) / (p.excess_se or 1.0))
        yield Claim(
            f"no evaluation lies above the frontier by more than {ERRORS:g} errors",
            not flagged,
            f"{len(flagged)} of {len(compared)}; highest {worst.excess:+.4f} ± "
            f"{worst.excess_se:.4f} ({worst.trial}, step {worst.step})",
        )


def start(found: Experiment) -> Iterator[Claim]:
    """All start at the reference, and losses where theory has them."""
    zero = [p for p in found.points if not p.step]
    if zero and found.bounds.curve:
        low = found.bounds.curve[0]
        error = math.hypot(zero[0].reward_se, low.reward_se)
        yield Claim(
            "at KL 0 the reward is the reference's, within 3 errors",
            all(
                p.kl == 0.0 and abs(p.reward - low.reward) < ERRORS * error
                for p in zero
            ),
            f"{zero[0].reward:.4f}, {low.reward:.4f} by the frontier's samples",
        )
    kinds = {"dpo.": "DPO", "dpo_bt.": "DPO", "reward_model": "the reward model"}
    for name in dict.fromkeys(kinds.values()):
        starts = tuple(key for key, kind in kinds.items() if kind == name)
        of = [v for trial, v in found.first_losses.items() if trial.startswith(starts)]
        if of:
            off = max(abs(loss - math.log(2.0)) for loss in of)
            text = f"the loss of {name} starts at ln 2"
            yield Claim(text, off < LN2_SLACK, f"off by at most {off:.1e}")


def order_of_gaps(found: Experiment) -> Iterator[Claim]:
    """Weak baselines lie further beneath the frontier than DPO, and PPO-GT by least."""
    chosen = {
        "dpo": [p for p in found.points if p.method == "dpo"],
        "preferred_ft": [p for p in found.points if p.method == "preferred_ft"],
        "unlikelihood": [p for p in found.points if p.trial == "unlikelihood.alpha=1"],
        "ppo": [p for p in found.points if p.method == "ppo"],
        "ppo_gt": [p for p in found.points if p.method == "ppo_gt"],
    }
    gaps = {name: gap(of, found) for name, of in chosen.items() if of}
    texts = {
        "preferred_ft": "preferred-FT lies further beneath the frontier than DPO",
        "unlikelihood": "unlikelihood (α = 1) does so, too",
    }
    for name, text in texts.items():
        if name in gaps and "dpo" in gaps:
            yield Claim(text, *further(gaps[name], gaps["dpo"], SURE))
    if "ppo" in gaps and "ppo_gt" in gaps:
        text = (
            "PPO on the truth lies no further beneath it than PPO on a learned reward"
        )
        yield Claim(text, *further(gaps["ppo"], gaps["ppo_gt"], -2.0))


def gap(of: Sequence[Point], found: Experiment) -> Gap:
    """Averages the frontier less the best point within each KL where it is trusted."""
    curve = found.bounds.trusted or found.bounds.curve
    kls, rewards = np.array([place[:2] for place in curve]).T
    known = AREA_KLS[AREA_KLS <= kls[-1]]
    above = np.interp(known, kls, rewards)
    best = [points_lib.best_within(of, kl) for kl in known]
    pairs = zip(above, best, strict=True)
    gaps, errors = np.array([(a - p.reward, p.reward_se) for a, p in pairs if p]).T
    return Gap(float(gaps.mean()), float(errors.mean()))


def further(far: Gap, near: Gap, errors: float) -> tuple[bool, str]:
    """Says whether one gap is larger by so many errors of the difference."""
    error = math.hypot(far.se, near.se)
    seen = f"{far.mean:.3f} ± {far.se:.3f}, {near.mean:.3f} ± {near.se:.3f}"
    return far.mean - near.mean > errors * error, seen


def conservatism(found: Experiment) -> Iterator[Claim]:
    """A larger β ends nearer to the reference."""
    names = [f"dpo.beta={beta}" for beta in ("5", "1", "0.1")]
    last = {p.trial: p for p in found.points}
    kls = [last[name].kl for name in names if name in last]
    if len(kls) > 1:
        seen = " < ".join(f"{kl:.2f}" for kl in kls)
        text = "DPO ends at a KL that falls with β"
        yield Claim(text, all(a < b for a, b in zip(kls, kls[1:], strict=False)), seen)


def baselines(found: Experiment) -> Iterator[Claim]:
    """Unlikelihood runs away; preferred-FT hardly moves."""
    last = {p.trial: p for p in found.points}
    away = last.get("unlikelihood.alpha=1")
    dpo = [p.kl for p in last.values() if p.method == "dpo"]
    if away and dpo:
        yield Claim(
            "unlikelihood (α = 1) ends at a larger KL than any DPO",
            away.kl > max(dpo),
            f"{away.kl:.1f}, {max(dpo):.1f}",
        )
    tuned = [p for p in found.points if p.method == "preferred_ft"]
    if tuned:
        most = max(p.reward for p in tuned) - tuned[0].reward
        kl = max(p.kl for p in tuned)
        yield Claim(
            f"preferred-FT gains at most {MODEST_GAIN} at a KL below {MODEST_KL}",
            most <= MODEST_GAIN and kl < MODEST_KL,
            f"{most:.3f} at KL ≤ {kl:.2f}",
        )


def best_of_n(found: Experiment) -> Iterator[Claim]:
    """Best-of-N by the truth is nearly optimal, but not more than that.

    Its KL is at most the bound that it is compared at, so that it lies beneath.
    """
    bounds = found.bounds
    if not bounds.trusted:
        return
    kls, rewards, errors = np.array([place[:3] for place in bounds.trusted]).T
    compared = [b for b in bounds.best_of if b.n <= LARGEST_N and b.kl <= kls[-1]]
    holds, seen = True, []
    for best in compared:
        beneath = np.interp(best.kl, kls, rewards) - best.reward
        error = math.hypot(best.reward_se, np.interp(best.kl, kls, errors))
        holds &= bool(-ERRORS * error < beneath < NEARLY + ERRORS * error)
        seen.append(f"N={best.n}: {beneath:+.3f} ± {error:.3f}")
    if compared:
        text = f"best-of-N lies beneath the frontier at its KL's bound by ≤ {NEARLY}"
        yield Claim(text, holds, ", ".join(seen))


ABOUT: tuple[Callable[[Experiment], Iterator[Claim]], ...] = (
    no_free_lunch,
    start,
    order_of_gaps,
    conservatism,
    baselines,
    best_of_n,
)
