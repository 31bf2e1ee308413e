"""All that a run is made of."""

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jax.sharding import Mesh

from dpo_jax import roles
from dpo_jax.config import Config
from dpo_jax.data.loader import Loader
from dpo_jax.rewards.ask import Reward
from dpo_jax.train import throughput
from dpo_jax.types import Frozen, Params
from dpo_jax.wiring import feeds, reference, turns, weights
from dpo_jax.wiring.data import Data
from dpo_jax.wiring.feeds import Feed
from dpo_jax.wiring.model import Ask, Model
from dpo_jax.wiring.objective import Losses
from dpo_jax.wiring.reference import Referred
from dpo_jax.wiring.scoring import Scorer
from dpo_jax.wiring.standard import Standard
from dpo_jax.wiring.training import Trainer
from dpo_jax.wiring.turns import Turns


class Parts(NamedTuple):
    """All that a run is made of, checked, nothing compiled yet.

    In `config`, what it left open is stated; `ask` scores a batch under the reference,
    where what is trained reads that; `ref` says how it moves; `scorer` is the reward
    model, `standard` what measures the moments of its scores, `value` a critic with a
    trunk of its own. There are `turns` of an on-policy run, else batches to `train` on.
    """

    config: Config
    mesh: Mesh
    data: Data
    steps: int
    losses: Losses
    model: Model
    reference: Model | None
    ask: Ask | None
    trainer: Trainer
    train: Loader | None
    eval: Loader | None
    ref: Mapping[str, Any]
    rewards: tuple[Reward, ...] = ()
    scorer: Scorer | None = None
    turns: Turns | None = None
    value: Model | None = None
    standard: Standard | None = None

    @property
    def updates(self) -> str:
        """Names the program that trains."""
        return "train step" if self.turns is None else "turn's updates"

    def refer(
        self, workdir: os.PathLike | str, *, evaluation_only: bool = False
    ) -> Referred:
        """Loads what is frozen, or brings the reference's cache up to what is needed.

        Args:
          workdir: the run folder.
          evaluation_only: whether no step will be trained.
        """
        referred = reference.refer(
            self.reference,
            self.mesh,
            ref=self.ref,
            seed=self.config.seed,
            score=self.ask,
            train=None if evaluation_only else self.train,
            held_out=self.eval,
            workdir=workdir,
            frozen=weights.base_params(self.model, self.mesh, seed=self.config.seed),
        )
        if self.scorer is not None:
            model, seed = self.scorer.model, self.config.seed
            reward = weights.load_params(model, self.mesh, seed=seed)
            frozen = {**referred.frozen, "reward": reward}
            if self.standard is not None:
                start, keep = self.start(frozen), not evaluation_only
                found = self.standard.of_run(start, reward, workdir, keep=keep)
                frozen["standard"] = found
            referred = referred._replace(frozen=frozen)
        if self.turns is None:
            return referred
        return referred._replace(annotate=turns.of_rollouts(referred.annotate))

    def start(self, frozen: Frozen) -> Params:
        """Returns the reference before the first step; one that moves is read again."""
        assert self.reference is not None  # `checks` refuse it without one
        own = frozen.get("ref")
        if own is None:
            seed = self.config.seed
            own = weights.own_params(self.reference, self.mesh, seed=seed)
        return roles.whole(own, frozen)

    def runs(self, frozen: Frozen) -> feeds.Runs:
        """Lists the forward passes that a turn takes of each model."""
        assert self.turns is not None
        epochs = float(self.turns.sizes.epochs)  # each forward and backward
        runs = [(self.model.passes * epochs + 1.0, self.model.spec)]  # scored before
        if "ref" in frozen or (self.reference is not None and self.reference.on_base):
            runs.append((1.0, self.model.spec))
        if self.value is not None:
            epochs *= self.value.passes
            runs.append((epochs + 1.0, self.value.spec))
        if self.scorer is not None:
            runs.append((1.0, self.scorer.model.spec))
        return runs

    def feed(self, referred: Referred, first: int, now: Callable[[], float]) -> Feed:
        """Feeds the loop from update `first` on; `now` tells the time in seconds."""
        peak = throughput.peak(self.config.model.dtype).flops_per_second
        spec = self.model.spec
        sources = self.data.sources_of("train")
        if self.turns is not None:
            frozen, runs = referred.frozen, self.runs(referred.frozen)
            return feeds.of_turns(self.turns, frozen, runs, first, peak, sources, now)
        assert referred.train is not None
        runs = self.ask is not None and self.ref["mode"] == "live"
        other = self.reference.spec if self.reference is not None and runs else None
        facts = feeds.make_facts(
            referred.train, spec, other, peak, sources, passes=self.model.passes
        )
        return feeds.of_steps(referred.train, self.mesh, first, facts)
