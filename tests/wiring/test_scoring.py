"""A reward model in the loop: whose words it reads, where, and what is made of it."""

import json

import jax
import numpy as np
import pytest

from dpo_jax import build
from dpo_jax.data.sources import sentiment
from dpo_jax.errors import ConfigError, ModelError
from dpo_jax.models import hf, scalar
from dpo_jax.models.decoder import init_params
from dpo_jax.models.spec import preset
from dpo_jax.rewards import REWARDS
from tests.wiring.test_turns import configured, lines_of

pytestmark = pytest.mark.losses
TOKENIZER = sentiment.tokenizer()
SPEC = scalar.scalar_spec(
    preset("tiny", vocab=max(TOKENIZER.get_vocab().values()) + 1, max_positions=20)
)


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    """A random reward model, as an export leaves it."""
    return saved(tmp_path_factory.mktemp("reward"))


def saved(folder, spec=SPEC, tokenizer=TOKENIZER, seed=5):
    params = jax.jit(init_params, static_argnums=0)(spec, jax.random.key(seed))
    hf.save_params(params, spec, folder, token_ids={"pad_token_id": 0})
    tokenizer.save_pretrained(folder)
    return str(folder)


def kept(seen):
    """A reward that notes what it is given."""

    def judge(prompts, completions, completion_ids, model_scores):
        seen.append((prompts, completion_ids, model_scores))
        return model_scores

    return {**REWARDS, "kept": judge}


def own_scores(folder, rows):
    """Scores texts with the model alone, one in a row, at its end."""
    spec = hf.scalar_spec_of(hf.read_config(folder))
    params = hf.load_params(folder, spec)
    return [alone(params, ids) for ids in rows]


def alone(params, ids):
    from dpo_jax.models.decoder import Decoder
    from dpo_jax.sampling.rollout import Prompts, prompt_rows

    prompt = Prompts(np.array([ids]), np.array([len(ids)]), np.array([0]))
    hidden, head = Decoder(SPEC).apply({"params": params}, prompt_rows(prompt))
    return float(scalar.token_scores(hidden, head)[0, len(ids) - 1])


@pytest.mark.parametrize("name", ["ppo", "rloo", "awr", "online"])
def test_the_score_in_the_loop_is_the_models_own(name, reward, tmp_path):
    seen = []
    given = {"reward.path": reward, "reward.name": "kept+model", "train.steps": 2}
    given |= {"reward.weights": (0.0, 1.0), "data.limit": 16}
    build.run(configured(name, **given), tmp_path / "run", rewards=kept(seen))
    prompts, samples, scores = seen[0]
    cut = [ids for ids in samples if ids[-1] != TOKENIZER.eos_token_id]
    assert 0 < len(cut)  # those have no EOS
    rows = [
        [*TOKENIZER(prompt)["input_ids"], *ids]
        for prompt, ids in zip(prompts, samples, strict=True)
    ]
    np.testing.assert_allclose(scores, own_scores(reward, rows), atol=1e-5, rtol=0)
    line = lines_of(tmp_path / "run")[0]
    assert line["reward"] == pytest.approx(np.mean(scores), abs=1e-6)
    assert line["rewards/model/mean"] == line["reward"]
