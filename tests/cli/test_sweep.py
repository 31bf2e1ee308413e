"""`sweep`, called in this process; its trials are processes where they really run."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sweep_cases

from dpo_jax import cli
from dpo_jax.cli import common, hosts, sweep
from dpo_jax.errors import SweepError
from dpo_jax.launch import trial
from dpo_jax.launch.worker import Walk
from dpo_jax.train import runfolder

CACHE = Path(__file__).parents[2] / ".cache" / "jax"
LIMIT = 600  # seconds
FILE = """
from dpo_jax.launch import Trial

SMALL = {"batch.pairs": 8, "data.limit": 64, "data.max_tokens": 24, "data.eval": "",
         "eval.rollouts": 0, "checkpoint.every_steps": 50}


def get_sweep(arg=None):
    start = {"model.preset": "", "model.path": "{sft}", "train.steps": 10}
    return [
        Trial("dpo", "quickstart", {**SMALL, **start, "loss.beta": float(arg or 0.1)}),
        Trial("sft", "quickstart:stage=sft,steps=200", SMALL),
        Trial("bad", "quickstart", {**SMALL, **start, "data.train": "/nowhere.jsonl"}),
    ]
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "sweep.py"
    path.write_text(FILE)
    return str(path)


def call(capsys, *arguments):
    capsys.readouterr()
    code = cli.main(["dpo_jax", "sweep", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_dry_run_prints_the_plan_and_touches_nothing(capsys, file, tmp_path):
    out = tmp_path / "out"
    code, printed, _ = call(capsys, f"{file}:0.7", f"--out={out}", "--dry_run")
    assert code == 0 and not out.exists()
    lines = printed.splitlines()
    assert lines[0] == f"3 trials in {out}: 2 waiting, 1 new"
    assert lines[1] == "new      sft" and lines[3] == "waiting  dpo  for sft"
    assert "python -m dpo_jax train --config=quickstart:stage=sft,steps=200" in lines[2]
    assert f"--config.model.path={out}/sft/export" in lines[4]
    assert lines[4].endswith(f"--config.loss.beta=0.7 --workdir={out}/dpo")


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--launcher=slurn"], "--launcher='slurn' is not known; did you mean"),
        (["--workers=0", "--failures=0"], "--workers=0 must be ≥ 1 · --failures=0"),
        (["--lease_seconds=1"], "--lease_seconds=1.0 must be ≥ 5.0"),
        (["--only=dpo", "--workers=2"], "--workers beside --worker or --only"),
        (["--worker", "--local_cpus=4096"], "--local_cpus=4096 for each of 1 workers"),
        (["--only=dpoo"], "--only='dpoo' is not known; did you mean 'dpo'?"),
        (["more.py"], "sweep needs one file"),
        (["--hosts=0"], "--hosts=0 must be ≥ 1"),
        (["--group=a"], "--group is of a worker of --hosts=2 or more; leave it out"),
        (["--hosts=2"], "--group='': 1 to 100 of A-Z"),
        (
            ["--hosts=2", "--group=a", "--host_index=2"],
            "--host_index=2 must be in 0 … 1",
        ),
        (["--hosts=2", "--group=a", "--host_index=0"], "needs --worker, or --only"),
        (["--hosts=2", "--group=a", "--worker"], "no variable of an engine says it"),
    ],
)
def test_flags_that_make_no_sense_are_refused(capsys, file, tmp_path, flags, said):
    if "slurn" in flags[0]:
        said = "--launcher='slurn' is not known"
    code, _, err = call(capsys, file, f"--out={tmp_path}/out", *flags)
    assert code == 2 and said in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_dry_run_says_what_each_worker_has(capsys, file, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.delenv("DPO_JAX_CPU_DEVICES", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    out = f"--out={tmp_path}/out"
    code, printed, _ = call(capsys, file, out, "--dry_run", "--workers=2")
    assert code == 0 and printed.splitlines()[-2:] == [
        "worker 0: CUDA_VISIBLE_DEVICES=4,5",
        "worker 1: CUDA_VISIBLE_DEVICES=6,7",
    ]


def test_files_that_are_no_sweep_are_refused(capsys, tmp_path):
    out = f"--out={tmp_path}/out"
    code, _, err = call(capsys, tmp_path / "none.py", out)
    assert code == 2 and "there is no such Python file" in err
    for text, said in (
        ("x = 1", "AttributeError"),
        ("def get_sweep(): return [('a', 'dpo', {})]", "must return a list of Trial"),
        ("def get_sweep(): raise SystemExit(3)", "cannot be loaded (SystemExit: 3)"),
    ):
        (tmp_path / "s.py").write_text(text)
        code, _, err = call(capsys, tmp_path / "s.py", out)
        assert code == 2 and said in err, err
    code, _, err = call(capsys, tmp_path / "s.py")
    assert code == 2 and "--out is missing: " in err


def test_a_sweep_is_of_one_process_a_trial(capsys, file, tmp_path, monkeypatch):
    monkeypatch.setenv("DPO_JAX_DISTRIBUTED", "localhost:1,2,0")
    code, _, err = call(capsys, file, f"--out={tmp_path}/out")
    assert code == 2 and "DPO_JAX_DISTRIBUTED is set" in err


def test_how_a_sweep_ends(capsys):
    """0, 75 and 9: each failure with its line, then one line of the sweep."""
    assert sweep.ended(Walk(0, {}, []), []) == 0
    assert sweep.ended(Walk(75, {}, ["a", "b"]), []) == 75
    assert capsys.readouterr().err == "preempted; left: a, b; relaunch to go on\n"
    failed = {"a": "error[6]: it is nan", "b": "b waits for a, which failed"}
    with pytest.raises(SweepError, match="2 of 3 trials failed: a, b; the") as raised:
        sweep.ended(Walk(9, failed, []), [None] * 3)
    told = capsys.readouterr().err
    assert told == "a: error[6]: it is nan\nb: b waits for a, which failed\n"
    assert raised.value.code == 9


@pytest.mark.faults
def test_a_sweep_is_stopped_goes_on_and_ends(file, tmp_path, monkeypatch):
    """SIGTERM to the sweep is passed on; the relaunch does what is missing alone."""
    monkeypatch.setenv("DPO_JAX_COMPILE_CACHE", str(CACHE))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "dpo_jax", "sweep", file, f"--out={out}"]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    until = time.monotonic() + LIMIT
    while not (out / "sft" / "metrics.jsonl").exists() and time.monotonic() < until:
        time.sleep(0.05)
    started.send_signal(signal.SIGTERM)
    printed, _ = started.communicate(timeout=LIMIT)
    assert started.returncode == 75, printed
    ended = json.loads((out / ".sweep/sft/0001.json").read_text())
    assert ended["code"] == 75 and "sft: preempted" in printed
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 9, done.stderr
    assert "sft: done, step 200" in done.stdout and "dpo: done, step 10" in done.stdout
    assert "bad: error[" in done.stderr and "1 of 3 trials failed: bad" in done.stderr
    lines = (out / "sft" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 201))


TABLED = """
from dpo_jax.launch import Trial


def get_sweep(arg=None):
    return [
        Trial(f"{beta}.{seed}", "quickstart", {"loss.beta": beta, "seed": seed})
        for beta in (1.0, 2.0)
        for seed in (0, 1, 2)
    ]
"""


def test_table_compares_what_is_done_and_runs_nothing(
    capsys, tmp_path, store, fake_gcs, monkeypatch
):
    """Rewards are .4 + .1 β; the last trial is not done; β = 1 is quickstart's.

    And of the same sweep on gs:// it is the same.
    """
    (tmp_path / "sweep.py").write_text(TABLED)
    file, out = str(tmp_path / "sweep.py"), tmp_path / "out"
    code, _, err = call(capsys, file, f"--out={out}", "--table")
    assert code == 3 and "no finished trial was evaluated" in err
    planned = trial.plan(sweep.load_sweep(file), str(out), sweep.load)
    for each in planned[:-1]:
        rewards = [0.4 + 0.1 * each.config.loss.beta + i / 50 for i in range(8)]
        sweep_cases.finish_whole(each, rewards)
    for at, version in ((0, "a"), (1, "a"), (1, "b")):  # relaunched with other code
        runfolder.begin_attempt(planned[at].folder, {}, f"commit {version}")
    code, printed, _ = call(capsys, file, f"--out={out}", "--table")
    assert code == 0 and printed.endswith(f"{out}/table.csv, .md, .tex, .png, .html\n")
    assert "| beta=1 | 3 | 0 | 3 |" in printed and "| beta=2 | 2 of 3 |" in printed
    assert "HALF FINISHED: 5 of 6 trials are done." in printed
    mixed = "MIXED VERSIONS: commit a: 1.0.0, 1.0.1; commit b: 1.0.1."
    assert mixed in printed
    assert "− beta=1" in printed  # the base: what the configuration says
    names = {path.name for path in out.iterdir() if path.name.startswith("table")}
    assert names == {"table.csv", "table.md", "table.tex", "table.png", "table.html"}
    assert not (out / "2.0.2").exists() and not (out / ".sweep").exists()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake_gcs.url)
    made = {name: (out / name).read_bytes() for name in names}
    for path in [p for p in out.rglob("*") if p.is_file() and p.name not in names]:
        target = store("gs://bucket/out") / str(path.relative_to(out))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    code, again, err = call(capsys, file, "--out=gs://bucket/out", "--table")
    assert code == 0, err
    assert again == printed.replace(f"\n{out}/table", "\ngs://bucket/out/table")
    stored = {name: (store("gs://bucket/out") / name).read_bytes() for name in names}
    assert stored == made
    assert not fake_gcs.changes  # nobody's lease is touched


def test_table_imports_no_jax(tmp_path):
    (tmp_path / "sweep.py").write_text(TABLED)
    file, out = str(tmp_path / "sweep.py"), tmp_path / "out"
    for each in trial.plan(sweep.load_sweep(file), str(out), sweep.load):
        sweep_cases.finish_whole(each, [0.5, 0.6, 0.7, 0.8])
    words = ["dpo_jax", "sweep", file, f"--out={out}", "--table"]
    code = f"import sys; from dpo_jax import cli; cli.main({words!r})"
    code += "; sys.exit('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert done.returncode == 0, done.stderr


ENGINES = {  # that say, and contradict each other, that this is one of several
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://192.0.2.1:1",
    "KUBERNETES_SERVICE_HOST": "192.0.2.2",
    "JOB_COMPLETION_INDEX": "5",
    "TPU_WORKER_ID": "1",
    "TPU_WORKER_HOSTNAMES": "192.0.2.3,192.0.2.4",
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_COORDINATOR_ADDRESS": "192.0.2.5",
}


@pytest.mark.faults
def test_a_trial_of_one_process_is_one_whatever_engines_say(tmp_path, monkeypatch):
    """It waits for nobody, and sees the devices that it was given."""
    for name, value in ENGINES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DPO_JAX_COMPILE_CACHE", str(CACHE))
    monkeypatch.setenv("DPO_JAX_CPU_DEVICES", "2")
    text = FILE.replace("steps=200", "steps=2")
    (tmp_path / "s.py").write_text(text)
    line = [sys.executable, "-m", "dpo_jax", "sweep", f"{tmp_path}/s.py"]
    line += [f"--out={tmp_path}/out", "--only=sft"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    log = (tmp_path / "out" / "sft" / "log.txt").read_text()
    assert "{rows: steps}: {4: 2}" in log  # two rows a device


def test_which_host_this_is_is_said_by_a_flag_or_the_engine(monkeypatch):
    """Two engines that disagree are no answer."""
    flags = ["--hosts=3", "--group=slice-a", "--worker", "--host_address=10.0.0.1"]

    def parsed(*more):
        given = ["--out=o", *flags, *more]
        return common.parse(given, config=False, define=sweep.define)

    engine = {"TPU_WORKER_ID": "2", "JOB_COMPLETION_INDEX": "2"}
    assert not hosts.faults(parsed(), engine)
    assert hosts.read(parsed(), engine) == (3, 2, "slice-a", "10.0.0.1", 600.0)
    assert hosts.read(parsed("--host_index=0"), engine).index == 0
    (fault,) = hosts.faults(parsed(), {**engine, "SLURM_NODEID": "1"})
    assert fault.startswith("give --host_index: TPU_WORKER_ID=2, JOB_")
    (fault,) = hosts.faults(parsed(), {"SLURM_NODEID": "3"})
    assert fault == "SLURM_NODEID=3 is no index of --hosts=3"
