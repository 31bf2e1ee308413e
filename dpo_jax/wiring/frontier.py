"""The frontier of a run: what its reference could be made to be, from its own samples.

The reference continues the prompts of a run's rollouts M times. The samples are kept
beside the run folder, so that the runs of a sweep draw them once, and so are the
verdicts on them of whoever is known by a name. The run folder gets frontier.json.
"""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from etils import epath

from dpo_jax import files
from dpo_jax.data import ref_cache, sources
from dpo_jax.evals import frontier
from dpo_jax.evals.frontier import Best, Curve
from dpo_jax.evals.rollouts import Rollout
from dpo_jax.rewards import REWARDS
from dpo_jax.rewards.ask import Reward
from dpo_jax.sharding import agree
from dpo_jax.types import Params, TrainState
from dpo_jax.wiring.data import folder_beside
from dpo_jax.wiring.parts import Parts
from dpo_jax.wiring.reference import agreed, identity_of
from dpo_jax.wiring.rewarding import MODEL
from dpo_jax.wiring.sampled import ROLLOUT_SEED, Rollouts, Stage, make_judge

FILE = "frontier.json"  # in the run folder
FOLDER = "frontier_cache"  # beside it
FORMAT = 1  # of what lies there, and of how samples are drawn
TOGETHER = 64  # samples of each prompt that are judged at once

Arrays = dict[str, np.ndarray]


class Bound(NamedTuple):
    """What no policy can exceed, on the prompts of a run.

    Attributes:
      rewards: f64[N, M] of samples of the reference; NaN = no verdict.
      curve: the frontier.
      best: best-of-N of the reference, by the true reward.
      measure: what rewards are called.
    """

    rewards: np.ndarray
    curve: Curve
    best: list[Best]
    measure: str


def make_bound(
    parts: Parts, stage: Stage, start: Params, workdir: os.PathLike | str
) -> Bound:
    """Samples the reference, or finds its samples, and computes the frontier.

    Args:
      parts: of the run.
      stage: of the run.
      start: parameters of the reference before the first step.
      workdir: the run folder.

    Raises:
      WriteError: if the samples cannot be kept.
    """
    assert parts.reference is not None  # `checks.rollout_faults`
    folder = folder_beside(workdir, FOLDER, "")
    assert folder is not None, "a run has a folder"
    shape = (len(stage.prompts), parts.config.eval.frontier)
    identity = {
        "format": FORMAT,
        "reference": identity_of(parts.reference, start),
        "prompts": [prompt.tolist() for prompt in stage.prompts],
        "samples": shape[1],
        "new_tokens": stage.new_tokens,
        "stops": stage.stops(parts.reference),
        "seed": ROLLOUT_SEED,
    }
    if stage.temperature != 1.0:
        identity["temperature"] = stage.temperature
    name, judges = ref_cache.name_of(identity), true_rewards(parts)
    moments = jax.device_get(stage.frozen.get("standard", ()))
    by = judge_name(parts, judges, [*map(float, moments)])

    def judged() -> Arrays:
        like = {
            "tokens": np.zeros((*shape, stage.new_tokens), np.int32),
            "lengths": np.zeros(shape, np.int32),
        }
        drawn = kept(folder / f"{name}.npz", lambda: draw(parts, stage, start), like)
        return {"rewards": judge_all(parts, stage, judges, **drawn)}

    if by:
        path = folder / f"{name}-{by}.npz"
        rewards = kept(path, judged, {"rewards": np.zeros(shape, np.float32)})
    else:
        rewards = judged()
    return bound_of(rewards["rewards"].astype(np.float64), stage.measure)


def bound_of(rewards: np.ndarray, measure: str) -> Bound:
    """Computes what follows from f64[N, M] rewards of the reference's samples."""
    known = rewards[~np.isnan(rewards).all(1)]
    curve = frontier.frontier(known, list(frontier.grid(known)))
    return Bound(rewards, curve, frontier.best_of_curve(known, known), measure)


def true_rewards(parts: Parts) -> tuple[Reward, ...]:
    """Returns the rewards that say the truth; () where the source does."""
    if sources.truth_of(parts.config.data.eval) is not None:
        return ()
    name = parts.config.eval.true_reward
    return tuple(each for each in parts.rewards if name in ("", each.name))


def judge_name(
    parts: Parts, judges: tuple[Reward, ...], moments: Sequence[float] = ()
) -> str:
    """Names who says the truth and with which code; '' where that may change unseen.

    Args:
      parts: of the run.
      judges: rewards that say the truth.
      moments: that the reward model's scores are standardized by; () = by none.
    """
    config = parts.config
    by_model = any(each.name == MODEL for each in judges)
    scorer = parts.scorer if by_model else None
    own = {each.name for each in judges if each.function is not REWARDS.get(each.name)}
    if own and not config.rewards:
        return ""
    said = {
        "truth": "" if judges else config.data.eval,
        "rewards": [(each.name, each.weight) for each in judges],
        "file": config.rewards if own else "",
        "true_reward": config.eval.true_reward,
        "model": None if scorer is None else identity_of(scorer.model, None),
        "standard": [*moments] if by_model else [],
        **agree.code(),
    }
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def draw(parts: Parts, stage: Stage, start: Params) -> Arrays:
    """Draws the samples of the reference."""
    assert parts.reference is not None
    n = parts.config.eval.frontier
    logging.info(
        "frontier: draws %d samples of the reference for each of %d prompts",
        n,
        len(stage.prompts),
    )
    tokens, mask = stage.draw(
        stage.sampler(parts.reference),
        start,
        n,
        lambda rows, samples: (samples.tokens, samples.mask),
    )
    return {"tokens": tokens, "lengths": mask.sum(2, dtype=np.int32)}


def judge_all(
    parts: Parts,
    stage: Stage,
    judges: tuple[Reward, ...],
    tokens: np.ndarray,
    lengths: np.ndarray,
) -> np.ndarray:
    """Judges samples, a few of each prompt at a time: f32[N, M]; NaN = no verdict."""
    judge = make_judge(parts, judges, stage, name="frontier")
    found = np.zeros(lengths.shape, np.float32)
    for at in range(0, lengths.shape[1], TOGETHER):
        some = slice(at, at + TOGETHER)
        ids = [
            [sample[:length].tolist() for sample, length in zip(*row, strict=True)]
            for row in zip(tokens[:, some], lengths[:, some], strict=True)
        ]
        texts = [[stage.decode(sample) for sample in row] for row in ids]
        found[:, some] = judge(texts, ids).rewards
    return found


def kept(path: epath.Path, make: Callable[[], Arrays], like: Arrays) -> Arrays:
    """Reads arrays that were kept, or makes and keeps them; the same on all processes.

    Args:
      path: of the file, which the first process alone reads and writes.
      make: makes them, on all processes together.
      like: zeros of their shapes and types.

    Raises:
      WriteError: if they cannot be written.
    """
    first = jax.process_index() == 0
    found = read_arrays(path, like) if first else None
    if not agreed(np.array(found is not None)):
        made = make()
        if first:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, allow_pickle=False, **made)
            files.write_whole(path, buffer.getvalue())
        return made
    logging.info("frontier: found %s", path)
    return {name: agreed(value) for name, value in (found or like).items()}


def read_arrays(path: epath.Path, like: Arrays) -> Arrays | None:
    """Reads arrays of known shapes and types; None if they are not there whole."""
    if not path.exists():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes())) as held:
            found = {name: held[name] for name in like}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        logging.warning("frontier: %s cannot be read (%s); made again", path, error)
        return None
    for name, want in like.items():
        if (found[name].shape, found[name].dtype) != (want.shape, want.dtype):
            logging.warning("frontier: %s holds other %s; made again", path, name)
            return None
    return found


class Above:
    """Says after each sampling where the policy lies against the frontier."""

    def __init__(self, rollouts: Rollouts, bound: Bound, workdir: os.PathLike | str):
        """Measures nothing.

        Args:
          rollouts: measured before.
          bound: of the run.
          workdir: the run folder, which gets frontier.json.
        """
        self._rollouts, self._bound, self._workdir = rollouts, bound, workdir
        self._written = False

    def __call__(self, state: TrainState) -> Iterator[tuple[str, float]]:
        """Yields the metrics of `above`; tells of a policy that lies above."""
        if not self._written and jax.process_index() == 0:
            text = json.dumps(as_json(self._bound), indent=1) + "\n"
            files.write_whole(epath.Path(self._workdir) / FILE, text)
        self._written = True
        assert self._rollouts.last is not None, "rollouts are measured before"
        values = above(self._rollouts.last.policy, self._bound)
        if values.get("frontier/flagged"):
            logging.warning(
                "step %d lies above the frontier: %s %.4g is %.2g more than the best "
                "at its KL, with an error of %.2g; the reward, the KL or the samples "
                "of one of both must be wrong",
                int(state.step),
                self._bound.measure,
                values["frontier/reward"] + values["frontier/excess"],
                values["frontier/excess"],
                values["frontier/excess_se"],
            )
        yield from values.items()


def above(policy: Rollout, bound: Bound) -> dict[str, float]:
    """Compares a policy with the frontier where enough samples carry it.

    Beyond that the frontier's last trusted tangent bounds the reward, which is less
    sharp but right; `frontier/trusted` is 0 there.

    Returns:
      {} where fewer than two prompts have verdicts of both.
    """
    known = ~np.isnan(policy.rewards) & ~np.isnan(bound.rewards).all(1)
    betas = bound.curve.betas[bound.curve.trusted]
    if known.sum() < 2 or not len(betas):
        return {}
    rewards, kls = policy.rewards[known], policy.kls[known]
    found = frontier.excess(rewards, kls, bound.rewards[known], list(betas))
    farthest = bound.curve.kl[bound.curve.trusted].max()
    return {
        "frontier/reward": float(rewards.mean()) - found.value,
        "frontier/excess": found.value,
        "frontier/excess_se": found.se,
        "frontier/flagged": float(found.flagged),
        "frontier/trusted": float(kls.mean() <= farthest),
    }


def as_json(bound: Bound) -> Mapping[str, Any]:
    """Lays the curves out as frontier.json has them."""
    columns = bound.curve._asdict()
    flags = columns.pop("trusted").tolist()
    points = zip(*(values.tolist() for values in columns.values()), strict=True)
    names = ["beta", *list(columns)[1:]]
    return {
        "measure": bound.measure,
        "prompts": bound.rewards.shape[0],
        "samples": bound.rewards.shape[1],
        "frontier": [
            {**dict(zip(names, point, strict=True)), "trusted": flag}
            for point, flag in zip(points, flags, strict=True)
        ],
        "best_of": [best._asdict() for best in bound.best],
    }
