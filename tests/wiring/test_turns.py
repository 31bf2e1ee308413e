"""Whole on-policy runs, small: each algorithm, resumed, on other meshes, misjudged."""

import functools
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from dpo_jax import build, schema
from dpo_jax.data.sources import sentiment
from dpo_jax.errors import ConfigError, DataError
from dpo_jax.losses import LOSSES
from dpo_jax.rewards import REWARDS
from dpo_jax.sharding.mesh import make_mesh
from dpo_jax.train.turn import rows_of_updates
from dpo_jax.wiring import checks
from tests.equal_runs import TIMING_KEYS
from tests.night import by_day
from tests.tiny_base import write_base

pytestmark = pytest.mark.losses
ALGORITHMS = ("ppo", "rloo", "awr", "online")
LIKE_THE_PAPERS = {
    "ppo": {"ppo.epochs": 2, "ppo.minibatches": 2, "ppo.kl_target": 6.0},
    "rloo": {"rloo.epochs": 2},
    "awr": {},
    "online": {"batch.pairs": 8},
}


def configured(name, **given):
    config = schema.base()
    config.update_from_flattened_dict(
        {
            "objective": name,
            "model.preset": "tiny",
            "data.train": "sentiment",
            "data.limit": 40,
            "data.max_tokens": 20,
            "data.max_prompt_tokens": 12,
            "reward.name": "sentiment",
            "rollout.prompts": 16,
            "rollout.samples": 2,
            "rollout.max_new_tokens": 8,
            "train.steps": 12 if name == "ppo" else 6,
            "checkpoint.every_steps": 1,
            "optimizer.name": "adamw",
            "optimizer.lr": 1e-3,
            "optimizer.warmup_steps": 0,
            **LIKE_THE_PAPERS[name],
            **given,
        }
    )
    return config.lock()


def lines_of(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in TIMING_KEYS} for line in lines]


def exported(run):
    return (run / "export" / "model.safetensors").read_bytes()


@functools.cache
def trained(name, root):
    build.run(configured(name), root / name)
    return root / name


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("name", ALGORITHMS)
def test_each_algorithm_trains_and_says_what_the_field_asks(name, root):
    lines = lines_of(trained(name, root))
    assert [line["turn"] for line in lines] == [*range(1, 1 + len(lines))]
    assert lines[-1]["step"] == configured(name).train.steps
    shared = {"reward", "reward_std", "rewards/sentiment/mean", "kl", "entropy", "loss"}
    shared |= {"completions/mean_length", "completions/clipped_ratio", "absent_rewards"}
    for line in lines:
        assert shared <= line.keys()
    moved = 0.01 if name == "online" else 1e-4  # a mean over the turn's two updates
    assert lines[0]["kl"] == pytest.approx(0.0, abs=moved) and lines[-1]["kl"] != 0
    if name == "ppo":
        assert {"ratio", "clip_ratio", "policy_loss", "value_loss"} <= lines[0].keys()
        assert lines[0]["kl_coef"] == pytest.approx(0.05)
        # the KL is far below its target: 32 samples of a horizon of 10,000
        assert lines[1]["kl_coef"] == pytest.approx(0.05 * (1 - 0.2 * 32 / 1e4))
    assert (trained(name, root) / "export" / "model.safetensors").exists()


@pytest.fixture(scope="module")
def base(root):
    return write_base(root / "base")


@pytest.mark.parametrize(
    "name", by_day(("ppo", "online"), [*ALGORITHMS, "each_round", "by_ref"])
)
def test_each_algorithm_trains_adapters(name, base, tmp_path):
    """Beside a base that policy and reference share; a critic is trained in full."""
    given = {"model.preset": "", "model.path": str(base), "lora.rank": 2}
    given |= {"checkpoint.every_steps": 0, "optimizer.lr": 1e-2}
    others = {
        "each_round": ("online", {"online.ref": "each_round", "batch.pairs": 16}),
        "by_ref": ("awr", {"awr.sampler": "ref", "train.steps": 3}),
    }
    algorithm, more = others.get(name, (name, {}))
    build.run(configured(algorithm, **given, **more), tmp_path / "run")
    lines = lines_of(tmp_path / "run")
    assert len(lines) >= 3 and all(np.isfinite(line["loss"]) for line in lines)
    if name == "each_round":
        assert all(line["loss"] == pytest.approx(np.log(2), abs=1e-6) for line in lines)
    else:
        # over samples of the reference, the mean of log π/ref is −KL(ref‖π)
        sign = -1 if name == "by_ref" else 1
        assert sign * lines[-1]["kl"] > 10 * abs(lines[0]["kl"])
    found = load_file(tmp_path / "run" / "export" / "adapter_model.safetensors")
    assert len(found) == 28 and all(value.any() for value in found.values())


@pytest.mark.parametrize("name", ["ppo", "online"])
def test_a_reward_that_fails_costs_nothing_and_the_run_resumes_bit_equal(
    name, root, tmp_path
):
    """It is named with its prompt; the last whole turn is committed.

    Each launch takes one turn and fails in the next, so that the run is resumed at each
    boundary of its turns.
    """
    run, turns = tmp_path / "run", len(lines_of(trained(name, root)))
    updates = configured(name).train.steps // turns
    for taken in range(1, turns):
        asked = []

        def failing(asked=asked, **given):
            asked.append(len(given["prompts"]))
            if len(asked) == 2:
                raise RuntimeError("the judge is out")
            return REWARDS["sentiment"](**given)

        with pytest.raises(DataError, match="'sentiment' raised RuntimeError: the ju"):
            build.run(configured(name), run, rewards={**REWARDS, "sentiment": failing})
        assert asked[:2] == [32, 32]  # then one by one, to name the prompt
        assert [line["turn"] for line in lines_of(run)] == [*range(1, taken + 1)]
        assert (run / "checkpoints" / str(taken * updates)).is_dir()
    assert build.run(configured(name), run).resumed_from == (turns - 1) * updates
    assert lines_of(run) == lines_of(trained(name, root))
    assert exported(run) == exported(trained(name, root))


@pytest.mark.parametrize("name", by_day(("ppo",), ["ppo", "rloo", "online"]))
def test_one_device_and_eight_give_the_same_numbers(name, root, tmp_path, monkeypatch):
    with_eight = lines_of(trained(name, root))  # before there is one
    alone = lambda **shape: make_mesh(**shape, devices=jax.devices()[:1])  # noqa: E731
    monkeypatch.setattr(build, "make_mesh", alone)
    build.run(configured(name), tmp_path / "run")
    for one, eight in zip(lines_of(tmp_path / "run"), with_eight, strict=True):
        assert one.keys() == eight.keys()
        for key in one.keys() - {"mfu", "split"}:
            assert one[key] == pytest.approx(eight[key], rel=1e-4, abs=1e-5), key


@pytest.mark.parametrize("dtype", by_day(("bfloat16",), ["", "bfloat16"]))
def test_nothing_moved_means_a_ratio_of_one_and_no_kl(dtype, tmp_path):
    """At learning rate 0, in every epoch; at another temperature as well.

    And whatever the sampler keeps: what it says of its tokens is not believed.
    """
    given = {"optimizer.lr": 0.0, "rollout.temperature": 0.7}
    config = configured("ppo", **given, **{"rollout.cache_dtype": dtype})
    build.run(config, tmp_path / "run")
    for line in lines_of(tmp_path / "run"):
        assert line["ratio"] == pytest.approx(1.0, abs=1e-5)
        assert line["clip_ratio"] == 0 and abs(line["kl"]) < 1e-4


def test_a_sample_without_a_verdict_is_counted_and_weighs_nothing(tmp_path):
    def half(prompts, **given):
        return [None if i % 4 == 1 else 0.5 for i in range(len(prompts))]

    config = configured("rloo", **{"reward.name": "half", "train.steps": 2})
    build.run(config, tmp_path / "run", rewards={"half": half})
    line = lines_of(tmp_path / "run")[0]
    assert line["absent_rewards"] == 8 and line["reward"] == 0.5
    assert line["grad_norm"] == pytest.approx(0.0, abs=1e-6)


def test_rewards_are_given_the_columns_of_the_rows(tmp_path):
    rows = [{"prompt": "the movie was", "answer": str(i)} for i in range(16)]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sentiment.tokenizer().save_pretrained(tmp_path / "tokenizer")
    seen = []

    def judge(prompts, completions, answer):
        seen.append(answer)
        return [float(a) for a in answer]

    given = {"data.train": str(file), "data.limit": 0, "train.steps": 2}
    given |= {"reward.name": "judge", "tokenizer.path": str(tmp_path / "tokenizer")}
    build.run(configured("rloo", **given), tmp_path / "run", rewards={"judge": judge})
    assert sorted(map(int, seen[0])) == sorted([*range(16)] * 2)
    assert seen[0][::2] == seen[0][1::2]  # the samples of a prompt stand together


def test_prompts_of_a_mixture_are_drawn_by_their_weights(tmp_path):
    """12 and 4 of each turn's 16; a row has the columns of its own file alone."""
    for name, column in (("films", "star"), ("books", "pages")):
        rows = [{"prompt": "the movie was", column: str(i)} for i in range(8)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    sentiment.tokenizer().save_pretrained(tmp_path / "tokenizer")
    seen = []

    def judge(prompts, completions, star, pages):
        seen.append([*zip(star, pages, strict=True)][::2])
        return [float(s or p) for s, p in zip(star, pages, strict=True)]

    mixed = f"{tmp_path}/films.jsonl:0.75+{tmp_path}/books.jsonl:0.25"
    given = {"data.train": mixed, "data.limit": 0, "train.steps": 4}
    given |= {"reward.name": "judge", "tokenizer.path": str(tmp_path / "tokenizer")}
    build.run(configured("rloo", **given), tmp_path / "run", rewards={"judge": judge})
    for line, rows in zip(lines_of(tmp_path / "run"), seen, strict=True):
        assert (line["films/share"], line["books/share"]) == (0.75, 0.25)
        assert sum(pages is None for _, pages in rows) == 12
        assert all((star is None) != (pages is None) for star, pages in rows)
    assert sorted(int(pages) for rows in seen for _, pages in rows if pages) == [
        *range(8)
    ]
    told = json.loads((tmp_path / "run" / "data.json").read_text())
    assert told["train"]["sources"]["films"]["kept"] == 8


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("ppo", {"reward.name": ""}, "needs a reward"),
        ("ppo", {"reward.name": "nobody"}, "nobody"),
        ("ppo", {"batch.pairs": 8}, "batch.pairs"),
        ("ppo", {"loss.name": "ipo"}, "loss.name"),
        ("ppo", {"rloo.clip": 0.1}, "rloo.clip"),
        ("ppo", {"ppo.minibatches": 3}, "ppo.minibatches=3"),
        ("ppo", {"ref.mode": "cached"}, "ref.mode"),
        ("ppo", {"ref.mode": "none"}, "needs a reference"),
        ("ppo", {"ref.sync_every_steps": 2}, "ref.sync_every_steps"),
        ("ppo", {"data.layout": "padded"}, "data.layout"),
        ("ppo", {"rollout.max_new_tokens": 9}, "exceed data.max_tokens"),
        ("rloo", {"rollout.samples": 1}, "at least 2"),
        ("awr", {"awr.sampler": "ref", "ref.mode": "none"}, "needs a reference"),
        ("online", {"batch.pairs": 7}, "batch.pairs=7"),
        ("online", {"online.ref": "following"}, "ref.sync_every_steps"),
        ("online", {"loss.name": "kto"}, "kto"),
        ("online", {"loss.name": "aot", "online.labels": "soft"}, "couples pairs"),
        ("online", {"loss.name": "orpo", "online.labels": "soft"}, "chosen tokens"),
        ("ppo", {"online.labels": "soft"}, "online.labels"),
        ("ppo", {"rollout.temperature": 0.0}, "rollout.temperature"),
        ("online", {"loss.name": "tdpo2", "rollout.temperature": 0.7}, "as it is"),
        ("online", {"loss.name": "tdpo2", "online.ref": "each_round"}, "that stays"),
        ("ppo", {"data.max_prompt_tokens": 2}, "prompt too long"),
    ],
)
def test_what_an_algorithm_cannot_use_is_refused_before_anything_runs(
    name, given, said, tmp_path
):
    with pytest.raises((ConfigError, DataError), match=said):
        build.run(configured(name, **given), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_every_row_is_used_once_an_epoch():
    order = rows_of_updates(3, 5, rows=24, epochs=3, minibatches=4, microbatches=2)
    assert order.shape == (12, 2, 3)
    for epoch in order.reshape(3, -1):
        assert sorted(epoch) == [*range(24)]
    other = rows_of_updates(3, 6, rows=24, epochs=3, minibatches=4, microbatches=2)
    assert not np.array_equal(order, other)


def test_online_with_a_reference_reset_each_round_starts_at_ln_2(tmp_path):
    config = configured("online", **{"online.ref": "each_round", "batch.pairs": 16})
    build.run(config, tmp_path / "run")
    for line in lines_of(tmp_path / "run"):
        assert line["loss"] == pytest.approx(np.log(2), abs=1e-6)


def test_pairs_are_scored_at_the_temperature_that_they_were_drawn_at(tmp_path):
    """Policy and reference alike: where nothing has moved, the loss is ln 2."""
    config = configured(
        "online", **{"optimizer.lr": 0.0, "rollout.temperature": 0.7, "train.steps": 2}
    )
    build.run(config, tmp_path / "run")
    for line in lines_of(tmp_path / "run"):
        assert line["loss"] == pytest.approx(np.log(2), abs=1e-6)
        assert abs(line["kl"]) < 1e-4


def test_equal_rewards_move_nothing_online(tmp_path):
    config = configured("online", **{"train.steps": 2, "reward.name": "same"})
    rewards = {"same": lambda prompts, **given: [1.0] * len(prompts)}
    build.run(config, tmp_path / "run", rewards=rewards)
    assert all(line["grad_norm"] == 0 for line in lines_of(tmp_path / "run"))


def test_losses_are_looked_up_for_pairs_of_samples():
    bound = checks.check(configured("online", **{"loss.name": "ipo"}), LOSSES)
    assert bound[0].name == "ipo"
