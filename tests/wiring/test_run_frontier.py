"""The frontier of whole small runs: its file, its metrics, its samples kept aside."""

import functools
import json
import logging as std_logging

import jax
import numpy as np
import pytest
from etils import epath

from dpo_jax import build, schema
from dpo_jax.config import Config
from dpo_jax.errors import ConfigError
from dpo_jax.evals.rollouts import Rollout
from dpo_jax.losses import LOSSES
from dpo_jax.models.decoder import Decoder
from dpo_jax.models.spec import preset
from dpo_jax.sampling.rollout import Prompts, prompt_rows
from dpo_jax.sharding.mesh import make_mesh
from dpo_jax.wiring import checks, evaluation, frontier, sampled

M = 40
KEYS = {
    "model.preset": "tiny",
    "data.train": "sentiment",
    "data.eval": "sentiment",
    "data.limit": 16,
    "data.max_tokens": 20,
    "data.max_prompt_tokens": 12,
    "eval.limit": 8,
    "eval.rollouts": 5,
    "eval.best_of": 2,
    "eval.frontier": M,
    "train.steps": 1,
    "optimizer.name": "adamw",
    "optimizer.lr": 1e-2,
    "optimizer.warmup_steps": 0,
    "batch.pairs": 8,
}
KINDS = {
    # By plain descent, so that on other devices it differs by rounding alone: Adam's
    # first step is the sign of the gradient, and where that is rounding, it moves a
    # weight by the whole rate one way or the other, and no evaluation can agree.
    "dpo": {"loss.beta": 0.1, "optimizer.name": "sgd", "optimizer.lr": 1.0},
    "sft": {"objective": "sft", "loss.name": "sft"},
    "ppo": {
        "objective": "ppo",
        "reward.name": "sentiment",
        "rollout.prompts": 8,
        "rollout.samples": 2,
        "rollout.max_new_tokens": 5,
        "ppo.epochs": 1,
        "eval.limit": 0,
    },
}


def configured(kind: str, **given) -> Config:
    config = schema.base()
    values = {
        **KEYS,
        **KINDS[kind],
        **{k.replace("__", "."): v for k, v in given.items()},
    }
    if kind == "ppo":
        values["batch.pairs"] = schema.KEYS["batch.pairs"].default
    config.update_from_flattened_dict(values)
    return config.lock()


def evaluations(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == "eval"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Makes the run of a kind, once, beside a folder of samples of its own."""

    @functools.cache
    def ran(kind):
        run = tmp_path_factory.mktemp(kind) / "run"
        build.run(configured(kind), run)
        return run

    return ran


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_run_is_compared_with_its_frontier(kind, ran):
    """At step 0 the policy is the reference: KL 0, reward beneath by noise only."""
    run = ran(kind)
    held = json.loads((run / "frontier.json").read_text())
    assert (held["prompts"], held["samples"]) == (5, M)
    assert held["measure"] == "true reward"
    rewards = [point["reward"] for point in held["frontier"]]
    kls = [point["kl"] for point in held["frontier"]]
    assert np.all(np.diff(rewards) < 0) and np.all(np.diff(kls) < 0)
    assert 0 < sum(point["trusted"] for point in held["frontier"]) < 60
    assert [best["m"] for best in held["best_of"]] == [2, 4, 8, 16, 32, M]
    first, last = evaluations(run)
    assert (first["step"], last["step"]) == (0, 1)
    assert first["rollouts/kl"] == 0 and first["frontier/trusted"] == 1
    for line in (first, last):
        at = line["frontier/reward"] + line["frontier/excess"]
        np.testing.assert_allclose(at, line["rollouts/reward"], rtol=1e-6)
        assert not line["frontier/flagged"]
    assert last["rollouts/kl"] > 0
    longest = 5 if kind == "ppo" else 8  # rollout.max_new_tokens, or what is left
    assert first["rollouts/length"] <= longest < 2 * first["rollouts/length"]


def test_samples_are_drawn_once_for_all_runs_and_kept_whole(ran, monkeypatch):
    """A second run finds those of the first; half a file, and more samples, are drawn.

    The last two of what the second run has built: the same frontier again.
    """
    first, drawn, asked = ran("dpo"), [], []
    draw, make_bound = frontier.draw, frontier.make_bound

    def make(*args):
        asked[:] = args
        return make_bound(*args)

    monkeypatch.setattr(frontier, "draw", lambda *args: drawn.append(1) or draw(*args))
    monkeypatch.setattr(frontier, "make_bound", make)
    second = first.with_name("second")
    build.run(configured("dpo", eval__at_start=False), second)
    texts = [(run / "frontier.json").read_text() for run in (first, second)]
    assert texts[0] == texts[1] and not drawn
    parts, *others = asked
    with jax.set_mesh(parts.mesh):
        whole = make(parts, *others)
        for path in (first.parent / "frontier_cache").iterdir():
            path.write_bytes(path.read_bytes()[:100])
        again = make(parts, *others)
        assert len(drawn) == 1
        np.testing.assert_array_equal(again.rewards, whole.rewards)
        config = configured("dpo", eval__at_start=False, eval__frontier=M + 1)
        assert make(parts._replace(config=config), *others).rewards.shape == (5, M + 1)
    assert len(drawn) == 2


def test_one_device_finds_what_eight_do(ran, tmp_path, monkeypatch):
    run = tmp_path / "run"  # shares no samples
    monkeypatch.setattr(
        build, "make_mesh", lambda **axes: make_mesh(**axes, devices=jax.devices()[:1])
    )
    build.run(configured("dpo"), run)
    (one, line), (eight, other) = (
        (json.loads((run / "frontier.json").read_text()), evaluations(run)[-1])
        for run in (run, ran("dpo"))
    )
    assert one == eight and line["rollouts/kl"] > 1e-3
    for name in (
        "rollouts/reward",
        "rollouts/kl",
        "frontier/excess",
        "frontier/reward",
    ):
        np.testing.assert_allclose(line[name], other[name], rtol=1e-5, atol=1e-6)


def test_on_policy_rollouts_are_drawn_and_measured_at_the_temperature_of_the_turns(
    ran, monkeypatch
):
    """Log-probs of the samples, and the KL, by log-softmax of logits / 0.6, one by one.

    The frontier's samples are others than those at temperature 1, which are kept too.
    """
    run = ran("ppo").with_name("heated")
    kept = {*(run.parent / "frontier_cache").glob("*.npz")}
    heat, drawn, draw, make = 0.6, [], sampled.Stage.draw, evaluation.make_stage

    def told(stage, sampler, params, n, tell):
        both = lambda rows, samples: (tell(rows, samples), samples)  # noqa: E731
        found, samples = draw(stage, sampler, params, n, both)
        drawn.append((stage.prompts, params, samples))
        return found

    def make_stage(config, *args):
        made.append(make(config, *args))
        return made[-1]

    made = []
    monkeypatch.setattr(evaluation, "make_stage", make_stage)
    monkeypatch.setattr(sampled.Stage, "draw", told)
    config = configured("ppo", rollout__temperature=heat, eval__at_start=False)
    build.run(config, run)
    monkeypatch.undo()
    (_, ref, _), _, (prompts, params, samples) = drawn
    spec = preset("tiny", vocab=len(made[0].tokenizer), max_positions=20)

    @jax.jit
    def log_probs(params, row, length):
        rows = prompt_rows(Prompts(row[None], length[None], np.zeros(1, int)))
        hidden, head = Decoder(spec).apply({"params": params}, rows)
        return jax.nn.log_softmax(hidden[0] @ head.kernel / heat)

    kls = np.zeros(samples.ended.shape)
    for i, n in np.ndindex(kls.shape):
        ids = samples.tokens[i, n][samples.mask[i, n]]
        row = np.zeros(20, int)
        row[: len(prompts[i]) + len(ids)] = [*prompts[i], *ids]
        at = np.arange(len(ids)) + len(prompts[i]) - 1
        length = np.int32(at[-1] + 2)
        ours, theirs = (np.asarray(log_probs(p, row, length)) for p in (params, ref))
        said = samples.logps[i, n][samples.mask[i, n]]
        np.testing.assert_allclose(said, ours[at, ids], atol=1e-4)
        kls[i, n] = (np.exp(ours[at]) * (ours[at] - theirs[at])).sum()
    line = evaluations(run)[-1]
    assert line["rollouts/kl"] == pytest.approx(kls.mean(), rel=1e-3) and kls.all()
    files = {*(run.parent / "frontier_cache").glob("*.npz")}
    assert kept < files and len(files) == 4  # samples and verdicts at each temperature


def rolled(rewards, kls):
    ones = np.ones(len(rewards))
    return Rollout(["a"] * len(ones), rewards, rewards, kls, ones, {}, {}, 0)


class Last:
    """Stands for rollouts that have been measured."""

    def __init__(self, policy):
        self.last = type("Sampled", (), {"policy": policy})


def test_what_lies_above_is_flagged_and_told_and_stops_nothing(tmp_path, caplog):
    """KL forgotten: the reward of the best of 8 at no KL at all."""
    ref = np.random.default_rng(0).normal(size=(32, 256))
    bound = frontier.bound_of(ref, "true reward")
    best = ref[:, :64].reshape(32, 8, 8).max(2).mean(1)
    state = type("State", (), {"step": 7})
    caplog.set_level(std_logging.WARNING)
    said = {}
    for kl in (0.0, np.log(8) - 7 / 8):
        measure = frontier.Above(Last(rolled(best, np.full(32, kl))), bound, tmp_path)
        said[kl > 0] = dict(measure(state))
    assert said[False]["frontier/flagged"] == 1 and said[True]["frontier/flagged"] == 0
    assert caplog.text.count("lies above the frontier") == 1 and "step 7" in caplog.text
    assert said[False]["frontier/excess"] > 3 * said[False]["frontier/excess_se"]
    far = dict(
        frontier.Above(Last(rolled(best, np.full(32, 9.0))), bound, tmp_path)(state)
    )
    assert far["frontier/trusted"] == 0 and far["frontier/excess"] < 0
    unjudged = rolled(np.full(32, np.nan), np.zeros(32))
    assert frontier.above(unjudged, bound) == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"eval.frontier": 31}, "eval.frontier=31 with .*32 samples of 2 prompts"),
        ({"eval.rollouts": 1}, "eval.rollouts=1: a frontier takes"),
        ({"eval.rollouts": 0}, "eval.frontier=40 is not used by eval.rollouts=0"),
        ({"eval.true_reward": "length"}, "not used by data.eval='sentiment'"),
    ],
)
def test_what_has_no_frontier_is_refused(given, said):
    config = configured("dpo")
    config.update_from_flattened_dict(given)
    with pytest.raises(ConfigError, match=said):
        checks.check(config, LOSSES)


def test_arrays_of_objects_are_not_opened(tmp_path, caplog):
    """They would be unpickled, and run what they hold."""
    path = epath.Path(tmp_path / "kept.npz")
    np.savez(path, x=np.array([{"a": 1}], dtype=object))
    assert frontier.read_arrays(path, {"x": np.zeros(1)}) is None
    assert "kept.npz cannot be read (Object arrays cannot be loaded" in caplog.text
    np.savez(path, x=np.ones(1))
    assert frontier.read_arrays(path, {"x": np.zeros(1)}) == {"x": 1.0}
