"""The verbs, called in this process: usage, exports, evaluations, reports."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dpo_jax
from dpo_jax import build, cli, schema, trl
from dpo_jax.cli import common
from dpo_jax.cli import train as train_verb
from dpo_jax.cli.own_functions import losses_of
from dpo_jax.data.kinds import KINDS
from dpo_jax.errors import ConfigError, DataError
from dpo_jax.losses import LOSSES
from dpo_jax.train import optimizer, runfolder
from dpo_jax.train.throughput import Peak
from dpo_jax.types import PairLogps

ROOT = Path(__file__).parent.parent.parent
CONFIG = "--config=configs/quickstart.py"
SMALL = [
    "--config.train.steps=3",
    "--config.batch.pairs=8",
    "--config.data.limit=64",
    "--config.eval.rollouts=4",
    "--config.data.max_tokens=24",
]
SETTINGS = (
    "jax_default_matmul_precision",
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture(scope="module", autouse=True)
def settings():
    """Runs where `configs` lies; gives the other tests back jax's settings."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("DPO_JAX_COMPILE_CACHE", before["jax_compilation_cache_dir"])
        yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of three steps, and what `train` printed."""
    run = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("sys.stdout.write", printed.append)
        flags = [CONFIG, f"--workdir={run}", *SMALL]
        code = cli.main(["dpo_jax", "train", *flags])
    return code, "".join(printed), run


def call(capsys, *arguments):
    capsys.readouterr()
    code = cli.main(["dpo_jax", *map(str, arguments)])
    return code, *capsys.readouterr()


def last_eval(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    return [row for row in rows if row["split"] == "eval"][-1]


def test_usage_lists_the_verbs(capsys):
    code, out, _ = call(capsys, "--help")
    assert code == 0 and all(verb in out for verb in cli.VERBS)
    assert cli.main(["dpo_jax"]) == 2
    assert "usage: " in capsys.readouterr().out


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_explains_its_flags(capsys, verb):
    code, out, err = call(capsys, verb, "--help")
    assert code == 0 and "--" in out and not err
    code, _, err = call(capsys, verb, CONFIG, "--nosuch=1")
    assert code == 2 and err.startswith("error[2]: ") and err.count("\n") == 1


def test_help_begins_with_an_example_and_lists_every_key(capsys):
    code, printed, _ = call(capsys, "train", "--help")
    assert code == 0 and "dpo-jax train --config=dpo" in printed
    assert "flagfile" not in printed
    for name in schema.KEYS:
        assert f"\n  {name}=" in printed
    assert call(capsys, "--version")[:2] == (0, f"dpo_jax {dpo_jax.__version__}\n")


@pytest.mark.parametrize(
    "flag, said",
    [
        ("--learning_rate=1e-4", "did you mean '--config.optimizer.lr'?"),
        ("--config.learning_rate=1e-4", "did you mean 'config.optimizer.lr'?"),
        ("--config.train.max_length=9", "did you mean 'config.data.max_tokens'?"),
        ("--config.report_to=wandb", "did you mean 'config.log.to'?"),
        ("--config.loss.name=sigmoid", "did you mean 'dpo'?"),
        ("--config.optimizer.name=adamw_torch", "did you mean 'adamw'?"),
    ],
)
def test_names_of_trl_are_known(flag, said, capsys, tmp_path):
    code, _, err = call(capsys, "train", CONFIG, flag, f"--workdir={tmp_path}")
    assert code == 2 and said in err, err


def test_all_that_trl_calls_otherwise_is_here():
    assert set(trl.KEYS.values()) <= set(schema.KEYS)
    tables = {
        "loss.name": LOSSES,
        "optimizer.name": optimizer.OPTIMIZERS,
        "optimizer.schedule": optimizer.SCHEDULES,
    }
    for key, values in trl.VALUES.items():
        assert set(values.values()) <= set(tables.get(key, schema.KEYS[key].choices))


def test_debug_prints_the_traceback(capsys):
    assert call(capsys, "train", CONFIG)[2].count("\n") == 1
    err = call(capsys, "train", CONFIG, "--debug")[2]
    assert "Traceback" in err and err.endswith(
        "error[2]: --workdir is missing: the run folder\n"
    )


def test_a_nul_in_a_flag_is_named(capsys):
    code, _, err = call(capsys, "sample", "--workdir=x", "--out=a\0b")
    assert code == 2 and "'--out=a\\x00b' holds a NUL character" in err


def test_bug_of_our_own_is_70_with_the_path_of_its_traceback(capsys, tmp_path):
    flags = ["--debug=0", f"--workdir={tmp_path}"]
    assert cli.report_error(AssertionError("ü" * 3000), flags) == 70
    err = capsys.readouterr().err
    (kept,) = (tmp_path / "errors").iterdir()
    assert err.startswith("error[70]: AssertionError: ü")
    assert err.endswith(f"(traceback: {kept})\n") and len(err.encode()) <= 1001
    assert cli.report_error(KeyError("x"), ["--workdir", f"{tmp_path}/a"]) == 70
    assert f"{tmp_path}/a/errors/" in capsys.readouterr().err
    assert cli.report_error(KeyError("x"), []) == 70
    assert "--debug shows the traceback" in capsys.readouterr().err


def test_config_is_loaded_with_its_argument_and_overrides():
    values = common.parse(
        ["--config", "configs/quickstart.py:steps=7", "--config.loss.beta", "2"],
        config=True,
        define=lambda values: None,
    )
    config = values["config"].value
    assert (config.train.steps, config.loss.beta) == (7, 2.0)
    assert config.is_locked and not values["debug"].value


@pytest.mark.parametrize("text", ["0", "-1", "eight", "1.5", "1000000", "9" * 5000])
def test_device_count_must_be_one(monkeypatch, text):
    monkeypatch.setenv("DPO_JAX_CPU_DEVICES", text)
    with pytest.raises(ConfigError, match=f"DPO_JAX_CPU_DEVICES='{text[:80]}'"):
        common.setup_jax(common.load_config("configs/dpo.py"), debug=False)


def test_train_prints_what_it_ended_with(trained):
    code, out, run = trained
    assert code == 0
    assert out.startswith("finished 3 steps\n")
    assert "data.train: 64 of 64 rows; dropped 0" in out
    assert f"eval {'loss':<28} {last_eval(run)['loss']:.4f}" in out
    assert "before (reference)" in out and f"policy: {run}/export" in out
    names = {"config.json", "metrics.jsonl", "checkpoints", "export", "report.html"}
    names |= {"data.json", "log.txt", "results.json", "samples.json", "tensorboard"}
    names |= {"timing.json", "rollouts.json"}
    assert names <= {path.name for path in run.iterdir()}
    assert not (run / "errors").exists()


def test_what_was_measured_of_each_prompt_is_kept(trained):
    """Its means are those of the last evaluation, and of the table of results."""
    run = trained[2]
    kept = json.loads((run / "rollouts.json").read_text())
    assert kept["step"] == 3 and kept["measure"] == "true reward"
    assert len(kept["prompts"]) == 16
    last, policy = last_eval(run), kept["policy"]
    for name in ("reward", "kl", "length"):
        assert np.mean(policy[name]) == pytest.approx(last[f"rollouts/{name}"])
    rows = json.loads((run / "results.json").read_text())["rows"]
    before = rows[0]["values"]["true reward"][0]
    assert np.mean(kept["reference"]["reward"]) == pytest.approx(before)
    assert not np.any(kept["reference"]["kl"])
    assert {len(values) for values in policy.values()} == {len(policy["kl"])}


@pytest.mark.parametrize("name", ["ppo", "rloo", "awr", "online"])
def test_every_algorithm_of_its_config_takes_three_steps(name, capsys, tmp_path):
    """`train --config=configs/ppo.py:algorithm=NAME`, small, one update a turn."""
    small = {"model.preset": "tiny", "data.train": "sentiment", "data.limit": 24}
    small |= {"reward.name": "sentiment", "rollout.prompts": 8, "rollout.samples": 2}
    small |= {"rollout.max_new_tokens": 4, "data.max_tokens": 20, "train.steps": 3}
    small["data.max_prompt_tokens"] = 12
    small |= {"ppo.epochs": 1} if name == "ppo" else {}
    small |= {"batch.pairs": 8} if name == "online" else {}
    words = [f"--config.{key}={value}" for key, value in small.items()]
    config, run = f"--config=configs/ppo.py:algorithm={name}", tmp_path / "run"
    code = cli.main(["dpo_jax", "train", config, f"--workdir={run}", *words])
    assert code == 0, capsys.readouterr().err
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["turn"]) for line in lines] == [(1, 1), (2, 2), (3, 3)]
    assert all(line["rollout_seconds"] > 0 for line in lines)
    assert (run / "export" / "model.safetensors").exists()


def test_trace_begins_behind_the_first_step_and_ends(monkeypatch):
    calls, step = [], None
    start = lambda folder, profiler_options: calls.append((step, folder))  # noqa: E731
    monkeypatch.setattr(jax.profiler, "start_trace", start)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(step))
    with train_verb.Trace("F") as trace, train_verb.Trace("") as none:
        for step in range(11, 30):  # noqa: B007
            trace(step)
            none(step)
    assert calls == [(11, "F"), 11 + train_verb.TRACED_STEPS]


def test_evaluate_finds_what_the_run_found(capsys, trained, tmp_path):
    """What a run is need not be typed again."""
    run, out = trained[2], tmp_path / "found.json"
    code, printed, _ = call(capsys, "evaluate", f"--workdir={run}", f"--out={out}")
    assert code == 0 and printed.startswith(f"step 3 of {run}\n")
    found, wanted = json.loads(out.read_text()), last_eval(run)
    assert found["step"] == 3
    assert found["values"].keys() == wanted.keys() - {"step", "split"}
    for name, value in found["values"].items():
        assert value == pytest.approx(wanted[name], rel=1e-6, abs=1e-6), name
    ran = json.loads((run / "results.json").read_text())["values"]
    assert found["values"] == pytest.approx(ran, rel=1e-5)


def test_a_run_folder_has_its_configuration(capsys, trained, tmp_path):
    """It may be typed again, too; overrides lie on top."""
    run, out = trained[2], tmp_path / "values.json"
    flags = [f"--workdir={run}", f"--out={out}", "--config.eval.rollouts=0"]
    losses = []
    for more in ([CONFIG, *SMALL], ["--config.eval.limit=8"]):
        code, _, err = call(capsys, "evaluate", *more, *flags)
        assert code == 0, err
        losses.append(json.loads(out.read_text())["values"]["loss"])
    assert losses[0] == pytest.approx(last_eval(run)["loss"]) != losses[1]
    shown = call(capsys, "show", f"--workdir={run}")
    assert shown == call(capsys, "show", CONFIG, *SMALL) and shown[0] == 0
    code, _, err = call(capsys, "show", f"--workdir={tmp_path}")
    assert code == 2 and f"of a run; {tmp_path} holds none" in err


def test_evaluate_needs_a_run(capsys, tmp_path):
    flags = [f"--workdir={tmp_path}", *SMALL]
    code, _, err = call(capsys, "evaluate", CONFIG, *flags)
    assert code == 8 and "holds no run: config.json is missing" in err
    assert not list(tmp_path.iterdir())


def test_evaluate_takes_from_the_folder_what_the_run_is(capsys, trained):
    run = trained[2]
    flags = [f"--workdir={run}", *SMALL, "--config.loss.beta=0.5"]
    code, _, err = call(capsys, "evaluate", CONFIG, *flags)
    assert code == 8 and "loss.beta: 1.0 → 0.5; what a run is is read from" in err
    assert not (run / "errors").exists()


def test_export_writes_the_folder_that_the_run_wrote(capsys, trained, tmp_path):
    run, out = trained[2], tmp_path / "out"
    code, printed, _ = call(capsys, "export", f"--workdir={run}", f"--out={out}")
    assert code == 0 and printed == f"{out}\n"
    found = {path.name: path.read_bytes() for path in out.iterdir()}
    wanted = {path.name: path.read_bytes() for path in (run / "export").iterdir()}
    assert found == wanted and "model.safetensors" in found


def test_export_refuses_what_is_no_run_and_unknown_dtypes(capsys, trained, tmp_path):
    flags = [f"--workdir={tmp_path}", f"--out={tmp_path}/out"]
    code, _, err = call(capsys, "export", *flags)
    assert code == 8 and "holds no run: config.json is missing" in err
    flags = [f"--workdir={trained[2]}", f"--out={tmp_path}/out", "--dtype=float23"]
    code, _, err = call(capsys, "export", *flags)
    assert code == 2 and "did you mean 'float32'" in err
    assert not (tmp_path / "out").exists()


def test_report_of_a_run(capsys, trained, tmp_path):
    out = tmp_path / "page.html"
    code, printed, _ = call(capsys, "report", trained[2], f"--out={out}")
    assert code == 0 and printed == f"{out}\n"
    page = out.read_text()
    assert "before (reference)" in page and "<svg" in page
    code, _, err = call(capsys, "report", f"--out={out}")
    assert code == 2 and "at least one run folder" in err
    code, _, err = call(capsys, "report", tmp_path / "none")
    assert code == DataError.code and f"{tmp_path}/none" in err


def test_summary_of_a_finished_run():
    data = {"train": {"kept": 9, "read": 10, "summary": "dropped 1 (1 empty)"}}
    summary = build.Summary(40, 40, True, {"loss": 0.5}, {}, data)
    text = train_verb.summary_text(summary, "R")
    assert text.startswith("already complete: 40 steps in R\n")
    assert "data.train: 9 of 10 rows; dropped 1 (1 empty)\n" in text
    assert "wall time" not in text and "mfu" not in text
    resumed = summary._replace(
        already_complete=False,
        resumed_from=30,
        seconds={"compile": 2.5, "step": 1.25},
        peak=Peak(1.4e11, "measured"),
    )
    assert "finished 40 steps, resumed from 30\n" in train_verb.summary_text(
        resumed, "R"
    )
    text = train_verb.summary_text(resumed, "R")
    assert "wall time 3.8 s = compile 2.5 + step 1.2\n" in text
    assert "mfu is a share of 0.14 TFLOP/s (measured)\n" in text


def test_sample_lays_policies_side_by_side(capsys, trained, tmp_path):
    """The run and what it exported are one policy, so they say the same."""
    run, out = trained[2], tmp_path / "samples.jsonl"
    names = [str(run), f"{run}/export"]
    flags = [f"--workdir={run}", f"--model={names[1]}", f"--out={out}", "--limit=3"]
    flags += ["--n=2", "--max_new_tokens=12", "--top_k=20", "--batch=8", "--stop=."]
    code, printed, err = call(capsys, "sample", CONFIG, *flags)
    assert code == 0, err
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["policy"] for row in rows] == 3 * (2 * names[:1] + 2 * names[1:])
    for at in range(0, 12, 4):
        for first, second in zip(rows[at : at + 2], rows[at + 2 : at + 4], strict=True):
            assert first["tokens"] == second["tokens"]
            assert first["prompt"] == second["prompt"] and first["text"] in printed
            assert first["logps"] == pytest.approx(second["logps"], abs=1e-4)
            assert len(first["tokens"]) == len(first["logps"]) <= 12
            assert "." not in first["text"]
    assert len({tuple(row["tokens"]) for row in rows}) > 2


def test_sample_takes_prompts_of_a_file(capsys, trained, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "the movie was"}\n{"prompt": "i loved"}\n')
    flags = [f"--workdir={trained[2]}", f"--prompts={file}", "--temperature=0"]
    flags += ["--max_new_tokens=12", "--batch=8"]
    code, printed, err = call(capsys, "sample", CONFIG, *flags)
    assert code == 0, err
    assert "[0] 'the movie was'\n" in printed and "[1] 'i loved'\n" in printed
    file.write_text('{"text": "the movie was"}\n')
    code, _, err = call(capsys, "sample", CONFIG, *flags)
    assert code == DataError.code and f"{file}:1: column 'prompt' is missing" in err


OWN_REWARD = """
import json


def shortest(completion_ids, answer, **columns):
    assert answer == ["a"] * 4 + ["b"] * 4
    return [-float(len(ids)) for ids in completion_ids]


def never(prompts, completions, **columns):
    return [None if "loved" in prompt else 1.0 for prompt in prompts]


def bad(prompts, completions, **columns):
    return [float("nan")] * len(prompts)
"""


def test_sample_keeps_the_best_by_a_reward_of_ones_own(capsys, trained, tmp_path):
    """What is kept is among all that is drawn without it, and none is better."""
    own, out = tmp_path / "own.py", tmp_path / "out.jsonl"
    own.write_text(OWN_REWARD)
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "the movie was", "answer": "a"}]
    rows += [{"prompt": "i loved", "answer": "b"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [f"--workdir={trained[2]}", f"--prompts={file}", "--n=4", f"--out={out}"]
    flags += ["--max_new_tokens=12", "--batch=8"]
    code, _, err = call(capsys, "sample", CONFIG, *flags)
    assert code == 0, err
    drawn = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(drawn) == 8 and "reward" not in drawn[0]
    assert all(row["ended"] == (row["tokens"][-1] == 2) for row in drawn)
    assert drawn[0]["prompt_ids"][0] == 1 and len(drawn[0]["prompt_ids"]) == 4
    raw = KINDS["completions"](drawn[0])
    assert raw.ids == (drawn[0]["prompt_ids"], drawn[0]["tokens"])
    flags += ["--best", f"--rewards={own}"]
    name = "--config.reward.name=shortest"
    code, printed, err = call(capsys, "sample", CONFIG, name, *flags)
    assert code == 0, err
    kept = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["index"] for row in kept] == [0, 1] and "reward" in printed
    for row in kept:
        mine = drawn[4 * row["index"] :][:4]
        assert row["reward"] == -min(len(other["tokens"]) for other in mine)
        assert row.pop("reward") == -len(row["tokens"])
        assert row == mine[row["sample"]]
    code, printed, err = call(
        capsys, "sample", CONFIG, "--config.reward.name=never", *flags
    )
    assert code == 0 and "1 prompts have no verdict" in err
    assert len(out.read_text().splitlines()) == 1
    code, _, err = call(capsys, "sample", CONFIG, "--config.reward.name=bad", *flags)
    assert code == 3 and "reward 'bad' returned nan, at prompt 0 ('the movie" in err
    code, _, err = call(capsys, "sample", CONFIG, *flags[:2], "--best")
    assert code == 2 and "set --config.reward.name" in err and "set --n > 1" in err


def test_sample_refuses_what_makes_no_sense(capsys, trained, tmp_path):
    code, _, err = call(capsys, "sample", CONFIG)
    assert code == 2 and "give --workdir=RUN or --model=FOLDER" in err
    code, _, err = call(
        capsys, "sample", CONFIG, f"--workdir={trained[2]},{trained[2]}"
    )
    assert code == 2 and "name something twice" in err
    flags = [f"--workdir={trained[2]}", "--n=0", "--top_p=2", "--stop="]
    code, _, err = call(capsys, "sample", CONFIG, *flags)
    assert code == 2 and "--n=0 must be ≥ 1" in err and "--top_p=2.0" in err
    assert "--stop='' is empty" in err
    code, _, err = call(capsys, "sample", CONFIG, f"--workdir={tmp_path}")
    assert code == 8 and "holds no run" in err


def test_the_working_folder_is_never_on_the_path(tmp_path):
    """G5: files of a downloaded folder are not run; `-P` = as the installed command."""
    canary = tmp_path / "canary"
    for name in ("jax", "jinja2", "numpy", "absl", "ml_collections", "configs"):
        (tmp_path / f"{name}.py").write_text(f"open({str(canary)!r}, 'w')")
    code = "import sys; from dpo_jax.cli import main; sys.exit(main(sys.argv))"
    for verb in (["report", "nowhere"], ["show", "--config=quickstart", "--nosuch=1"]):
        done = subprocess.run(
            [sys.executable, "-P", "-c", code, *verb],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode and "error[" in done.stderr, done.stderr
    assert not canary.exists()


def test_the_handler_of_errors_cannot_fail(capsys, monkeypatch):
    """M5: a run folder that cannot even be named once ended as a traceback, exit 1."""

    def broken(*_):
        raise ImportError("gcsfs is missing")

    monkeypatch.setattr(runfolder, "write_error", broken)
    assert cli.report_error(ConfigError("bad"), ["--workdir=gs://nope/run"]) == 2
    assert capsys.readouterr().err == "error[2]: bad\n"


def test_sigterm_before_the_run_takes_signals_is_a_preemption():
    """G7: with no handler it was exit 143, which no scheduler relaunches."""
    code = (
        "import os, signal; from dpo_jax import cli\n"
        "with cli.preempted_early('train'): os.kill(os.getpid(), signal.SIGTERM)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 75
    assert done.stderr == "preempted before step 1; relaunch to go on\n"


OWN = "--config.loss.options.simpo"


def test_a_loss_of_a_mixture_is_given_its_own_options(capsys, tmp_path):
    """β = 2 of SimPO alone stands in config.json and in the card, and is guarded.

    Profiled: it ends before the last step that would have been traced.
    """
    off = ["--config.eval.rollouts=0", "--config.data.eval="]
    flags = [CONFIG, *SMALL, "--config.loss.name=dpo+simpo", *off]
    own, profiled = f"{OWN}.beta=2", [f"--workdir={tmp_path}", "--profile"]
    code, _, err = call(capsys, "train", *flags, own, *profiled)
    assert code == 0, err
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert b"train_step" in trace.read_bytes()
    kept = json.loads((tmp_path / "config.json").read_text())["loss"]
    assert kept["options"] == {"simpo": {"beta": 2.0}} and kept["beta"] == 1.0
    assert "simpo.beta 2.0" in (tmp_path / "export" / "README.md").read_text()
    code, _, err = call(capsys, "train", *flags, f"{own}.5", f"--workdir={tmp_path}")
    assert code == 8 and "loss.options.simpo.beta: 2.0 → 2.5" in err


@pytest.mark.parametrize(
    "flag, said",
    [
        (f"{OWN}.betta=2", "did you mean 'config.loss.options.simpo.beta'"),
        (f"{OWN}.beta=two", "it is 0.1 by default"),
        (f"{OWN}.beta=-1", "loss.options.simpo.beta=-1.0 is out of range"),
        (f"{OWN}o.beta=2", "loss.options='simpoo' is not known; did you mean 'simpo'"),
        (f"{OWN}.discopop_tau=2", "loss.options.simpo='discopop_tau' is not known"),
        ("--config.loss.options.dpo.divergence=js2", "did you mean 'js'"),
    ],
)
def test_options_of_a_loss_that_it_cannot_have_are_refused(
    flag, said, capsys, tmp_path
):
    flags = [CONFIG, "--config.loss.name=dpo+simpo", flag]
    code, _, err = call(capsys, "train", *flags, f"--workdir={tmp_path}")
    assert code == 2 and said in err, err


OWN_LOSS = '''
"""A loss of one's own."""

from typing import Annotated

import jax

from dpo_jax.losses import Loss
from dpo_jax.schema import NOT_NEGATIVE


def _helper(x):
    return -jax.nn.log_sigmoid(x)


def plain(logps, *, beta):
    return _helper(beta * (logps.chosen - logps.rejected))


def _focal(delta, *, beta, focal_gamma: Annotated[float, NOT_NEGATIVE] = 2.0):
    x = beta * delta
    return _helper(x) * jax.nn.sigmoid(-x) ** focal_gamma


focal = Loss(_focal, of="delta")


def unfinished(logps, *, power):
    return logps.chosen**power
'''


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    file = tmp_path_factory.mktemp("own") / "mine.py"
    file.write_text(OWN_LOSS)
    return file


def test_a_loss_of_a_file_is_trained_with_options_of_its_own(capsys, own, tmp_path):
    """ln 2 · ½² = 0.1733 at the start, with γ = 2; ln 2 · ½^½ = 0.4901 with γ = ½."""
    flags = [CONFIG, *SMALL, "--config.loss.name=focal", f"--losses={own}"]
    flags += ["--config.eval.rollouts=0", "--config.eval.at_start=False"]
    gamma = "--config.loss.options.focal.focal_gamma"
    cases = ("a", "--config.data.eval=", 0.1733), ("b", f"{gamma}=0.5", 0.4901)
    for name, more, loss in cases:
        run = tmp_path / name
        code, _, err = call(capsys, "train", *flags, more, f"--workdir={run}")
        assert code == 0, err
        first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
        assert first["loss"] == pytest.approx(loss, abs=1e-4)
    code, _, err = call(capsys, "evaluate", f"--workdir={run}")
    assert code == 2 and "give --losses=FILE" in err
    code, _, err = call(capsys, "evaluate", f"--workdir={run}", f"--losses={own}")
    assert code == 0, err
    code, _, err = call(capsys, "train", *flags, f"--workdir={run}")
    assert code == 8 and "loss.options.focal.focal_gamma: 0.5 → None" in err
    own.write_text(OWN_LOSS + "\n# changed\n")
    code, _, err = call(capsys, "train", *flags, f"{gamma}=0.5", f"--workdir={run}")
    assert code == 8 and "losses: " in err


@pytest.mark.parametrize(
    "name, more, said",
    [
        ("focal", "focal.focal_gamma=-1", "focal_gamma=-1 is out of range: 0 ≤ "),
        ("focal", "focal.gama=1", "'gama' is not known"),
        ("plain", "focal.focal_gamma=1", "loss.options='focal' is not known"),
        ("_helper", "", "loss.name='_helper' is not known"),
        ("unfinished", "", "option 'power' that no key gives"),
    ],
)
def test_options_of_a_file_are_checked(name, more, said, capsys, own, tmp_path):
    flags = [CONFIG, f"--config.loss.name={name}", f"--losses={own}"]
    flags += [f"--config.loss.options.{more}"] if more else []
    code, _, err = call(capsys, "train", *flags, f"--workdir={tmp_path}/run")
    assert code == 2 and said in err, err


def test_a_file_without_losses_is_refused(capsys, tmp_path):
    for text, said in [("x = 1\n", "no public function"), ("1 / 0\n", "ZeroDivision")]:
        (tmp_path / "bad.py").write_text(text)
        flags = [CONFIG, f"--losses={tmp_path}/bad.py", f"--workdir={tmp_path}/run"]
        code, _, err = call(capsys, "train", *flags)
        assert code == 2 and said in err, err
    flags = [CONFIG, f"--losses={tmp_path}/none.py", f"--workdir={tmp_path}/run"]
    code, _, err = call(capsys, "train", *flags)
    assert code == 2 and "none.py cannot be read" in err


@pytest.mark.parametrize(
    "text, said",
    [
        ("raise SystemExit(3)", "cannot be loaded (SystemExit: 3)"),
        ("def own(pairs):\n  return 1 / 0", "own raises ZeroDivisionError"),
        ("def own(pairs):\n  return pairs.chosen.sum()", "own returns an array ()"),
        ("def own(pairs):\n  return 'x'", "own returns str"),
    ],
)
def test_faults_of_a_file_of_losses_name_it(text, said, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(text)
    pairs = PairLogps(*[jnp.zeros(2)] * 6)
    with pytest.raises(ConfigError, match=re.escape(f"--losses={file}")) as raised:
        losses_of(str(file))["own"](pairs)
    assert said in str(raised.value)


def test_a_flag_file_that_is_not_there(capsys, tmp_path):
    flags = [CONFIG, "--flagfile=/nope", f"--workdir={tmp_path}/run"]
    code, _, err = call(capsys, "train", *flags)
    assert code == 2 and "flagfile" in err


OWN_CONFIG = """
from dpo_jax.configs import dpo

class Odd(BaseException):
    pass

def get_config(arg=None):
    config = dpo.get_config().unlock()
    {body}
    return config
"""


@pytest.mark.parametrize(
    "body, said",
    [
        ("raise Odd('no')", "cannot be loaded (Odd: no)"),
        ("raise SystemExit(3)", "cannot be loaded (SystemExit: 3)"),
        ("raise GeneratorExit", "cannot be loaded (GeneratorExit: )"),
        ("1/0", "cannot be loaded (ZeroDivisionError: division by zero)"),
        ("config.mesh = config", "cannot be loaded (RecursionError: maximum recurs"),
        ("return config.to_dict()", "gives a dict; return a ConfigDict"),
    ],
)
def test_whatever_a_configuration_of_ones_own_raises_is_one_line(
    capsys, tmp_path, body, said
):
    own = tmp_path / "own.py"
    own.write_text(OWN_CONFIG.format(body=body))
    code, _, err = call(capsys, "train", f"--config={own}", f"--workdir={tmp_path}/run")
    assert code == 2 and err.startswith(f"error[2]: --config={own} {said}")
    assert len(err.splitlines()) == 1
