"""A reward model in the loop: whose words it reads, where, and what is made of it."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from dpo_jax import build
from dpo_jax.configs import quickstart
from dpo_jax.data.sources import sentiment
from dpo_jax.errors import ConfigError, DataError, ModelError
from dpo_jax.losses import LOSSES
from dpo_jax.models import hf, scalar
from dpo_jax.models.decoder import init_params
from dpo_jax.models.spec import preset
from dpo_jax.rewards import REWARDS
from dpo_jax.sharding.mesh import make_mesh
from dpo_jax.wiring import checks, frontier, scoring, standard, weights
from dpo_jax.wiring.assembling import make_parts
from tests.night import by_day
from tests.wiring.test_turns import configured, exported, lines_of

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


def test_a_batch_and_a_bucket_change_no_score(reward):
    """One sample at a time, in a wider row, and many together."""
    from dpo_jax.models.decoder import Decoder

    mesh = make_mesh(data=8, fsdp=1, tensor=1)
    given = {"path": reward, "dtype": ""}
    words = {"vocab": SPEC.vocab, "longest": 20, "tokenizers": [TOKENIZER]}
    prompts = [np.arange(3, 3 + n, dtype=np.int32) for n in (1, 7, 8, 9)]
    ids = [[[5, 6, 7], [8]], [[9], [4, 4]], [[6] * 5, [7]], [[1, 2], [3, 4, 5]]]
    with jax.set_mesh(mesh):
        found = []
        for batch, width, seen in [(1, 5, None), (64, 8, None), (3, 6, 2)]:
            scorer = scoring.make_scorer(
                Decoder(SPEC), given, mesh, batch=batch, **words
            )
            params = weights.load_params(scorer.model, mesh, seed=0)
            found.append(scorer(params, prompts[:seen], ids[:seen], width=width))
    rows = [[*p, *i] for p, each in zip(prompts, ids, strict=True) for i in each]
    whole = np.reshape(own_scores(reward, rows), (4, 2))
    for scores in found:
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, whole[: len(scores)], atol=1e-5, rtol=0)


def only(path):
    return {"reward.path": path, "reward.name": ""}


def swapped():
    """The tokenizer with two ids exchanged."""
    own = json.loads(TOKENIZER.backend_tokenizer.to_str())
    words = own["model"]["vocab"]
    one, other = sorted(words, key=words.get)[-2:]
    words[one], words[other] = words[other], words[one]
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(own)),
        eos_token=TOKENIZER.eos_token,
        pad_token=TOKENIZER.pad_token,
    )


def test_a_reward_model_of_other_words_is_refused(tmp_path):
    other = saved(tmp_path / "reward", tokenizer=swapped())
    with pytest.raises(ModelError, match="another vocabulary.*2 tokens differ, first"):
        build.run(configured("ppo", **only(other)), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_reward_model_of_fewer_words_is_refused(tmp_path):
    spec = scalar.scalar_spec(preset("tiny", vocab=30, max_positions=20))
    other = saved(tmp_path / "reward", spec)
    with pytest.raises(ModelError, match="knows 30 ids, and"):
        build.run(configured("ppo", **only(other)), tmp_path / "run")


def test_a_policy_judges_nothing(tmp_path):
    spec = preset("tiny", vocab=SPEC.vocab, max_positions=20)
    other = saved(tmp_path / "policy", spec)
    with pytest.raises(ModelError, match="reward.path=.* is a language model"):
        build.run(configured("ppo", **only(other)), tmp_path / "run")


def test_a_model_of_too_few_positions_is_refused(tmp_path):
    spec = preset("tiny_gpt2", vocab=SPEC.vocab, max_positions=12)
    other = saved(tmp_path / "reward", scalar.scalar_spec(spec))
    with pytest.raises(ConfigError, match="12 learned positions.*20 tokens"):
        build.run(configured("ppo", **only(other)), tmp_path / "run")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"reward.path": "{reward}", "reward.name": "length"}, "reward.path="),
        ({"reward.path": "", "reward.name": "model"}, "is the model of reward.path"),
        ({"reward.path": "", "reward.dtype": "bfloat16"}, "reward.dtype="),
        ({"reward.path": "nowhere"}, "nowhere"),
        ({"reward.path": "{reward}", "reward.weights": (1.0, 2.0)}, "2 weights for"),
        ({"reward.path": "", "reward.name": ""}, "set reward.name or reward.path"),
    ],
)
def test_what_does_not_fit_together_is_refused(given, said, reward, tmp_path):
    given = {
        key: value.format(reward=reward) if isinstance(value, str) else value
        for key, value in {"reward.name": "", **given}.items()
    }
    with pytest.raises((ConfigError, ModelError), match=said):
        build.run(configured("rloo", **given), tmp_path / "run")


def test_rollouts_are_judged_and_the_best_of_them_is_found(reward, tmp_path):
    """Of an offline run: the truth is its worth, the model chooses."""
    config = quickstart.get_config()
    config.update_from_flattened_dict(
        {
            "train.steps": 1,
            "data.limit": 16,
            "data.max_tokens": 20,
            "data.max_prompt_tokens": 12,
            "batch.pairs": 8,
            "eval.rollouts": 8,
            "eval.best_of": 2,
            "reward.path": reward,
            "reward.dtype": "bfloat16",
        }
    )
    build.run(config, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    line = [each for each in map(json.loads, lines) if "rollouts/reward" in each][-1]
    assert np.isfinite(line["rollouts/rewards/model/mean"])
    assert "rollouts/best_of_2" in line
    assert line["rollouts/reward"] != line["rollouts/rewards/model/mean"]


def test_sample_keeps_what_the_model_likes_best(reward, tmp_path, capsys):
    """By the very ids that were drawn; a model of other words is refused."""
    from dpo_jax.cli import sample

    policy, out = tmp_path / "policy", tmp_path / "out.jsonl"
    saved(policy, preset("tiny", vocab=SPEC.vocab, max_positions=64))
    flags = ["--config=configs/quickstart.py", f"--model={policy}", f"--out={out}"]
    flags += ["--limit=3", "--n=4", "--max_new_tokens=6", "--batch=8"]
    sample.main([*flags])
    drawn = list(map(json.loads, out.read_text().splitlines()))
    rows = [[*row["prompt_ids"], *row["tokens"]] for row in drawn]
    scores = np.reshape(own_scores(reward, rows), (3, 4))
    best = [*flags, "--best", f"--config.reward.path={reward}"]
    sample.main(best)
    kept = list(map(json.loads, out.read_text().splitlines()))
    assert [row["sample"] for row in kept] == scores.argmax(1).tolist()
    found = [row["reward"] for row in kept]
    np.testing.assert_allclose(found, scores.max(1), atol=1e-5, rtol=0)
    other = saved(tmp_path / "other", tokenizer=swapped())
    with pytest.raises(ModelError, match="another vocabulary"):
        sample.main([*best[:-1], f"--config.reward.path={other}"])


def standardized(path, count=48, **given):
    given = {"reward.path": path, "reward.name": "kept+model", **given}
    given |= {"reward.weights": (0.0, 1.0), "train.steps": 4}
    return configured("rloo", **given, **{"reward.standardize": count})


def test_scores_are_standardized_on_samples_of_the_reference(reward, tmp_path):
    """Against NumPy; the first turn's own samples are of the reference, too."""
    raw, moved = [], []
    build.run(standardized(reward, 0), tmp_path / "raw", rewards=kept(raw))
    build.run(standardized(reward, 400), tmp_path / "run", rewards=kept(moved))
    held = json.loads((tmp_path / "run" / "standard.json").read_text())
    assert held["samples"] == 400 and not (tmp_path / "raw" / "standard.json").exists()
    assert raw[0][1] == moved[0][1]  # the same samples
    due = (np.array(raw[0][2]) - held["mean"]) / held["deviation"]
    np.testing.assert_allclose(moved[0][2], due, atol=1e-5, rtol=0)
    assert abs(np.mean(moved[0][2])) < 3 * (1 / 32 + 1 / 400) ** 0.5
    line = lines_of(tmp_path / "run")[0]
    assert line["reward"] == pytest.approx(np.mean(due), abs=1e-5)


def test_the_moments_are_those_of_what_the_reference_says(
    reward, tmp_path, monkeypatch
):
    """Each sample scored by the model alone; 48 of 40 prompts, all noise different."""
    seen, score = [], scoring.Scorer.__call__

    def told(self, params, prompts, ids, *, width):
        seen.append((prompts, ids))
        return score(self, params, prompts, ids, width=width)

    monkeypatch.setattr(scoring.Scorer, "__call__", told)
    build.run(standardized(reward), tmp_path / "run", rewards=kept([]))
    prompts, ids = seen[0]
    assert len(prompts) == 48 and prompts[0].tolist() == prompts[40].tolist()
    assert [ids[n] for n in range(8)] != [ids[n + 40] for n in range(8)]
    rows = [[*p, *one] for p, (one,) in zip(prompts, ids, strict=True)]
    while any(row[-1] == 0 for row in rows):  # behind a pad token HF reads nothing
        rows = [row[:-1] if row[-1] == 0 else row for row in rows]
    alone = np.array(own_scores(reward, rows))
    held = json.loads((tmp_path / "run" / "standard.json").read_text())
    assert held["mean"] == pytest.approx(alone.mean(), abs=1e-5)
    assert held["deviation"] == pytest.approx(alone.std(ddof=1), abs=1e-5)


@pytest.mark.parametrize("ref", by_day(("each_round",), ["fixed", "each_round"]))
def test_moments_are_measured_once_and_on_one_device_as_on_eight(
    ref, reward, tmp_path, monkeypatch
):
    """A run that fails after a turn, its policy moved, ends as a whole one does."""
    own = {"online.ref": ref, "batch.pairs": 8, "train.steps": 6}
    given = {**only(reward), **own, "reward.standardize": 48}
    config, runs = configured("online", **given), {}
    for devices in (8, 1):
        alone = lambda n=devices, **sizes: make_mesh(**sizes, devices=jax.devices()[:n])  # noqa: E731
        monkeypatch.setattr(build, "make_mesh", alone)
        runs[devices] = tmp_path / str(devices)
        build.run(config, runs[devices])
    held = [json.loads((r / "standard.json").read_text()) for r in runs.values()]
    for name in ("mean", "deviation"):
        assert held[0][name] == pytest.approx(held[1][name], abs=1e-5)
    judge, asked, run = REWARDS["model"], [], tmp_path / "run"

    def failing(**given):
        asked.append(1)
        if len(asked) == 2:
            raise RuntimeError("out")
        return judge(**given)

    with pytest.raises(DataError, match="raised RuntimeError: out"):
        build.run(config, run, rewards={**REWARDS, "model": failing})
    monkeypatch.setattr(standard.Standard, "scores", None)  # would be called
    assert build.run(config, run).resumed_from > 0
    assert lines_of(run) == lines_of(runs[1])
    assert exported(run) == exported(runs[1])


def test_evaluation_has_the_unit_of_the_turns(reward, tmp_path):
    """And the frontier's verdicts are not those of other moments, kept beside."""
    seen = []
    given = {"data.eval": "sentiment", "eval.rollouts": 8}
    for count in (0, 48):
        config = standardized(reward, count, **given)
        build.run(config, tmp_path / str(count), rewards=kept(seen))
    half = len(seen) // 2
    held = json.loads((tmp_path / "48" / "standard.json").read_text())
    due = (np.array(seen[0][2]) - held["mean"]) / held["deviation"]
    np.testing.assert_allclose(seen[half][2], due, atol=1e-5, rtol=0)
    config = standardized(reward, 48)
    mesh = make_mesh(data=8, fsdp=1, tensor=1)
    rewards = {**REWARDS, **kept([])}
    with jax.set_mesh(mesh):
        bound = checks.check(config, LOSSES, rewards)
        parts = make_parts(config, bound, mesh, rewards=rewards)
        model = parts.rewards[1:]
        names = {frontier.judge_name(parts, model, m) for m in ((), (0.0, 2.0))}
        assert len(names) == 2


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("rloo", {"reward.standardize": 1}, "one sample has no deviation"),
        ("rloo", {"ref.mode": "none", "rloo.kl_coef": 0.0}, "samples of a reference"),
        ("rloo", {"reward.path": "", "reward.name": "length"}, "standardize=48 is not"),
    ],
)
def test_what_cannot_be_standardized_is_refused(name, given, said, reward, tmp_path):
    given = {**only(reward), "reward.standardize": 48, **given}
    with pytest.raises(ConfigError, match=said):
        build.run(configured(name, **given), tmp_path / "run")


def test_offline_runs_standardize_nothing(reward):
    config = quickstart.get_config()
    config.update_from_flattened_dict(
        {"eval.rollouts": 8, "reward.path": reward, "reward.standardize": 48}
    )
    with pytest.raises(ConfigError, match="not used by objective='preference'"):
        checks.check(config, LOSSES)


def critic(path, **given):
    return configured("ppo", **{"value.path": path, "train.steps": 8, **given})


def test_a_critic_of_its_own_resumes_bit_equal(reward, tmp_path):
    """It is saved whole, and no part of the policy that is exported."""
    build.run(critic(reward), tmp_path / "whole")

    def failing(prompts, **given):
        turns.append(len(prompts))
        if len(turns) == 2:
            raise RuntimeError("out")
        return REWARDS["sentiment"](prompts, **given)

    turns, run = [], tmp_path / "run"
    with pytest.raises(DataError, match="raised RuntimeError: out"):
        build.run(critic(reward), run, rewards={**REWARDS, "sentiment": failing})
    assert build.run(critic(reward), run).resumed_from == 4
    assert lines_of(run) == lines_of(tmp_path / "whole")
    assert exported(run) == exported(tmp_path / "whole")
    names = safetensors.numpy.load(exported(run))
    assert not any("score" in name or "value" in name for name in names)


def test_a_critic_starts_as_its_folder_says(reward, tmp_path):
    """As the reward model whole; on a language model its head says 0."""
    spec = preset("tiny", vocab=SPEC.vocab, max_positions=20)
    policy, held = saved(tmp_path / "policy", spec), {}
    mesh = make_mesh(data=8, fsdp=1, tensor=1)
    for path in (reward, policy):
        config = critic(path)
        with jax.set_mesh(mesh):
            parts = make_parts(config, checks.check(config, LOSSES), mesh)
            params = parts.trainer.init(parts.refer(tmp_path / "run").frozen).params
        held[path] = jax.device_get(params["value"])
    wanted = hf.load_params(reward, SPEC)
    jax.tree.map(np.testing.assert_array_equal, held[reward], wanted)
    assert not held[policy]["score"]["kernel"].any()
    tokens = hf.load_params(policy, spec)["embed"]["tokens"]
    np.testing.assert_array_equal(held[policy]["embed"]["tokens"], tokens)


def test_a_critic_learns_what_samples_are_worth(reward, tmp_path):
    given = {"optimizer.lr": 1e-2, "ppo.value_coef": 1.0, "ppo.value_clip": 10.0}
    given |= {"reward.name": "two", "train.steps": 24, "ppo.kl_coef": 0.0}
    two = {"two": lambda prompts, **given: [2.0] * len(prompts)}
    config = critic(reward, **given, **{"ppo.kl_target": 0.0})
    build.run(config, tmp_path / "run", rewards=two)
    lines = lines_of(tmp_path / "run")
    assert lines[-1]["value_loss"] < 0.2 * lines[0]["value_loss"]


@pytest.mark.parametrize(
    ("name", "path", "said"),
    [
        ("rloo", "{reward}", "value.path=.* is not used by objective='rloo'"),
        ("ppo", "nowhere", "nowhere"),
        ("ppo", "{other}", "value.path=.* has another vocabulary"),
    ],
)
def test_a_critic_that_cannot_be_used_is_refused(name, path, said, reward, tmp_path):
    other = saved(tmp_path / "other", tokenizer=swapped())
    path = path.format(reward=reward, other=other)
    with pytest.raises((ConfigError, ModelError), match=said):
        build.run(configured(name, **{"value.path": path}), tmp_path / "run")
