"""The moments that a reward model's scores are standardized by.

They are those of samples of the reference as it is before the first step: measured
once, kept in the run folder, and frozen like the model whose they are.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from etils import epath

from dpo_jax import files
from dpo_jax.data import ref_cache
from dpo_jax.rewards.standard import Moments, moments
from dpo_jax.sampling import batches
from dpo_jax.sampling.batches import Sampler
from dpo_jax.sharding import arrays
from dpo_jax.sharding import mesh as mesh_lib
from dpo_jax.train import runfolder
from dpo_jax.types import Array, Params
from dpo_jax.wiring.model import Model
from dpo_jax.wiring.reference import agreed, identity_of
from dpo_jax.wiring.scoring import Scorer

FILE = "standard.json"  # in the run folder
SEED = 98  # one key for the runs of a sweep: common random numbers


class Standard(NamedTuple):
    """What it takes to measure the moments.

    Attributes:
      prompts: i32[P] ids each, one for each sample.
      sampler: of the reference.
      reference: that is sampled.
      scorer: the reward model.
      batch: samples of a data shard that are drawn together, at most.
      drawn: what else the samples follow from.
    """

    prompts: Sequence[np.ndarray]
    sampler: Sampler
    reference: Model
    scorer: Scorer
    batch: int
    drawn: Mapping[str, Any]

    def of_run(
        self,
        reference: Params,
        reward: Params,
        workdir: os.PathLike | str,
        *,
        keep: bool,
    ) -> Array:
        """Reads the moments that the run folder holds, or measures them.

        Args:
          reference: its parameters before the first step.
          reward: of the reward model.
          workdir: the run folder.
          keep: whether they are written there.

        Returns:
          f32[2] on every device of the mesh: mean and deviation.

        Raises:
          ModelError: if all samples have one score, or one is not finite.
          WriteError: if they cannot be kept.
        """
        identity = self.identity(reference, reward)
        held = runfolder.read_json(workdir, FILE) or {}
        own = [held.get(name, 0.0) for name in Moments._fields]
        known = held.get("identity") == identity and all(type(x) is float for x in own)
        if agreed(np.array(known)):
            told = np.array(own if known else (0, 0), np.float32)
            found = Moments(*agreed(told).tolist())
        else:
            found = moments(self.scores(reference, reward))
            if keep and jax.process_index() == 0:
                said = {**found._asdict(), "samples": len(self.prompts)}
                text = json.dumps({**said, "identity": identity}, indent=1) + "\n"
                files.write_whole(epath.Path(workdir) / FILE, text)
        logging.info("reward.standardize=%d: %s", len(self.prompts), found)
        place = arrays.replicated(self.sampler.mesh)
        return arrays.spread(np.array(found, np.float32), place)

    def scores(self, reference: Params, reward: Params) -> np.ndarray:
        """Draws a sample after each prompt, and scores them: f32[N], on all processes.

        Args:
          reference: parameters of the reference.
          reward: of the reward model.
        """
        drawn = batches.rollouts(
            reference,
            self.prompts,
            jax.random.key(SEED),
            sampler=self.sampler,
            n=1,
            batch=self.batch * mesh_lib.row_shards(self.sampler.mesh),
        )
        read = ((part, self.sampler.read(samples)) for part, _, samples in drawn)
        samples = batches.gather(read, len(self.prompts), 1)
        width = self.sampler.max_new_tokens
        return self.scorer(reward, self.prompts, samples.ids(), width=width)[:, 0]

    def identity(self, reference: Params, reward: Params) -> str:
        """Names all that the moments follow from."""
        return ref_cache.name_of(
            {
                "reference": identity_of(self.reference, reference),
                "reward": identity_of(self.scorer.model, reward),
                "prompts": [prompt.tolist() for prompt in self.prompts],
                "drawn": {**self.drawn, "seed": SEED},
            }
        )
