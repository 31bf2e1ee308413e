"""J of FAULTS: rewards that say nonsense or nothing, and runs killed within a turn."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from dpo_jax.report import html

ROOT = Path(__file__).parent.parent.parent
STEPS = 24  # six turns of two epochs of two minibatches
SMALL = {
    "model.preset": "tiny",
    "data.train": "sentiment",
    "data.limit": 40,
    "data.max_tokens": 20,
    "data.max_prompt_tokens": 12,
    "rollout.prompts": 16,
    "rollout.samples": 2,
    "rollout.max_new_tokens": 8,
    "checkpoint.every_steps": 1,
    "optimizer.lr": 1e-3,
    "reward.name": "sentiment",
    "train.steps": STEPS,
    "ppo.epochs": 2,
    "ppo.minibatches": 2,
    "ppo.kl_target": 6.0,
}
JUDGE = '''
"""Says of words what the environment asks for, from its second turn on."""
import os, time

asked = []


def judge(prompts, completion_ids, **columns):
    asked.append(len(prompts))
    well = [float(sum(ids) % 7) for ids in completion_ids]
    how = os.environ["HOW"]
    if how == "silent":
        return [None] * len(prompts)
    if how == "well" or len(asked) < int(os.environ["FROM"]):
        return well
    if how == "raises":
        raise KeyError("no such film")
    if how == "sleeps":
        time.sleep(60)
    spoiled = {"few": well[:-1], "text": ["good", *well[1:]]}
    spoiled |= {"nan": [float("nan"), *well[1:]], "inf": [float("inf"), *well[1:]]}
    return spoiled[how]
'''
SAID = {
    "few": "returned 31 values for 32 samples",
    "text": "returned 'good' (str)",
    "nan": "returned nan",
    "inf": "returned inf",
    "raises": "raised KeyError: 'no such film'",
    "sleeps": "did not judge 32 samples within 3 s",
}


def flags(workdir, **given):
    given = SMALL | {key.replace("__", "."): value for key, value in given.items()}
    values = [f"--config.{key}={value}" for key, value in given.items()]
    config = f"--config={ROOT / 'configs' / 'ppo.py'}"
    return [config, f"--workdir={workdir}", *values]


@pytest.fixture
def judged(call, tmp_path, monkeypatch):
    """Trains by the reward of `JUDGE`: -> (exit code, stdout, stderr)."""
    file = tmp_path / "judges.py"
    file.write_text(JUDGE)

    def train(workdir, how, first=1):
        monkeypatch.setenv("HOW", how)
        monkeypatch.setenv("FROM", str(first))
        given = {"train__steps": 8, "reward__name": "judge"}
        given["reward__timeout_seconds"] = 3.0
        with mock.patch.object(html, "write_report", lambda *_: None):
            words = flags(workdir, **given)
            return call("train", *words, f"--rewards={file}")

    return train


def test_rewards_that_say_no_verdict_name_it_and_cost_nothing(judged, runs, tmp_path):
    """J1, one after the other in the second turn of one run, which then ends equal."""
    run, straight = tmp_path / "run", tmp_path / "straight"
    for first, (how, said) in enumerate(SAID.items()):
        code, out, err = judged(run, how, first=1 if first else 2)
        assert code == 3 and not out, err
        (line,) = [x for x in err.splitlines() if x.startswith("error[3]")]
        assert f"reward 'judge' {said}" in line and ", at prompt " in line
        assert len(line.encode()) <= 1024
        assert [row["step"] for row in runs.lines(run)] == [4]
        assert (run / "checkpoints" / "4" / "MANIFEST.json").exists()
    assert judged(run, "well")[0] == 0 == judged(straight, "well")[0]
    assert runs.lines(run) == runs.lines(straight)
    weights = [f / "export" / "model.safetensors" for f in (run, straight)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_no_verdict_at_all_is_counted_and_nothing_is_learned(judged, runs, tmp_path):
    """J2."""
    assert judged(tmp_path / "run", "silent")[0] == 0
    for line in runs.lines(tmp_path / "run"):
        assert line["absent_rewards"] == 32 and "reward" not in line
        assert line["grad_norm"] == line["loss"] == 0


@pytest.mark.faults
def test_killed_in_a_turn(call, runs, tmp_path):
    """J3: in the rollout, in the reward, in the updates; each time of a later turn.

    The save of the turn before may be under way, so that two turns are taken again.
    """
    run, straight = tmp_path / "run", tmp_path / "straight"
    env = {
        **os.environ,
        "DPO_JAX_COMPILE_CACHE": str(ROOT / ".cache" / "jax"),
        "DPO_JAX_CPU_DEVICES": "8",
    }
    reached = 0
    for where, turn in (("rollout", 3), ("reward", 3), ("update", 3)):
        words = [sys.executable, "-m", "tests.faults.killed_in_turn", where, str(turn)]
        with open(f"{run}.{where}", "w") as told:
            code = subprocess.call(
                [*words, "train", *flags(run)], cwd=ROOT, env=env, stderr=told
            )
        told = Path(f"{run}.{where}").read_text()
        assert code == -signal.SIGKILL, told[-3000:]
        lines = runs.lines(run)
        assert lines[-1]["step"] > reached and ("resumed from" in told) == (reached > 0)
        reached = lines[-1]["step"]
    with mock.patch.object(html, "write_report", lambda *_: None):
        code, _, err = call("train", *flags(run))
        assert code == 0, err
        assert call("train", *flags(straight))[0] == 0
    runs.assert_equal(run, straight)
