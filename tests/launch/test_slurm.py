"""Arrays of SLURM: what is submitted, and what the batch script makes of how they end.

Its commands are stand-ins on PATH here; tests/engines starts a real SLURM.
"""

import os
import signal
import subprocess
import time

import pytest
from launch_cases import chain, finish, shim

from dpo_jax.errors import ConfigError, RunFolderError, SweepError
from dpo_jax.launch import processes, slurm
from dpo_jax.launch.job import AGAIN, Here, Job, tasks

LIMIT = 60  # seconds


@pytest.fixture
def job(tmp_path):
    out = tmp_path / "out"
    return Job("beta", "a sweep.py", str(out), ("--failures=2",), chain(out), {})


@pytest.fixture
def batch(job, tmp_path, monkeypatch):
    """Runs the batch script of element 1, where `srun` is a script."""
    shim(tmp_path, monkeypatch, "scontrol", 'echo "$*" >> $HERE/calls; cat $HERE/hang')

    def run(srun, told=None):
        (tmp_path / "calls").write_text("")
        (tmp_path / "hang").write_text("")
        shim(tmp_path, monkeypatch, "srun", srun)
        array = slurm.Array(tuple(tasks(job)), ())
        script = slurm.script(job, array, slurm.Options())
        place = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}
        process = subprocess.Popen(
            ["bash", "-c", script],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **place},
        )
        if told is not None:
            until = time.monotonic() + LIMIT
            while not (tmp_path / "ready").exists() and time.monotonic() < until:
                time.sleep(0.02)
            process.send_signal(told)
        printed, _ = process.communicate(timeout=LIMIT)
        return process.returncode, (tmp_path / "calls").read_text().split("\n")[:-1]

    return run


def test_what_is_no_fault_of_the_trial_goes_back_to_the_queue_once(batch):
    """By the name of the element, not of the array; a fault of its own ends it."""
    assert {code: batch(f"exit {code}") for code in AGAIN} == {
        code: (code, ["requeue 7_1"]) for code in AGAIN
    }
    ends = (0, 1, 2, 6, 9, 70, 139)
    assert {code: batch(f"exit {code}") for code in ends} == {
        code: (code, []) for code in ends
    }
    assert batch("kill -9 $$") == (137, ["requeue 7_1"])


SAVES = """
trap 'sleep 0.5; exit 75' TERM
touch $HERE/ready
while :; do sleep 0.05; done
"""


def test_a_signal_is_passed_on_and_the_trial_waited_for(batch):
    """Before its time is over it is requeued by the script, once it has saved."""
    assert batch(SAVES, signal.SIGUSR1) == (75, ["requeue 7_1"])


def test_what_slurm_itself_requeues_or_cancels_is_left_to_it(batch):
    """Else a cancelled trial would come back, and a requeued one twice."""
    assert batch(SAVES, signal.SIGTERM) == (75, [])


def test_a_scontrol_that_hangs_is_given_up(batch, tmp_path, monkeypatch):
    """The job ends with the code of the trial; a relaunch of the sweep goes on."""
    monkeypatch.setattr(slurm, "PATIENCE", 1)
    hang = 'echo "$*" >> $HERE/calls; exec sleep 600'
    shim(tmp_path, monkeypatch, "scontrol", hang)
    assert batch("exit 71") == (71, ["requeue 7_1"])


def test_the_task_is_the_one_command(job, batch, tmp_path):
    """Its words arrive as they are; on several nodes each knows its place."""
    log = 'printf "%s\\n" "$@" > $HERE/words'
    assert batch(log) == (0, [])
    words = (tmp_path / "words").read_text().splitlines()
    at = words.index("-m")
    assert words[at:] == [
        *("-m", "dpo_jax", "sweep", "a sweep.py", f"--out={job.out}", "--worker"),
        *("--only=one", "--failures=2"),
    ]
    wide = job._replace(hosts=2)
    array = slurm.Array(tuple(tasks(wide)), ())
    script = slurm.script(wide, array, slurm.Options())
    assert "#SBATCH --nodes=2" in script and "--ntasks=2" in script
    assert 'exec "$@" --host_index="$SLURM_PROCID"' in script and "--hosts=2" in script


def test_scripts_hide_no_end(job):
    """No pipe, and no trap on EXIT, whose own code would be the job's."""
    script = slurm.render(job, slurm.Options())
    code = script.replace("|".join(map(str, AGAIN)), "")
    assert "|" not in code and "EXIT" not in code and "--requeue" in script


def test_who_waits_depends_on_those_it_needs(job, tmp_path, monkeypatch):
    """The printed text is a script that submits the same."""
    sbatch = """
    n=$(cat $HERE/count 2>/dev/null || echo 40); echo $((n + 1)) > $HERE/count
    echo "sbatch $*" >> $HERE/calls; grep '^names\\|--array' >> $HERE/calls; echo $n
    """
    shim(tmp_path, monkeypatch, "sbatch", sbatch)
    shim(tmp_path, monkeypatch, "squeue", "cat $HERE/queued 2>/dev/null; exit 0")
    told = []
    options = slurm.Options(args="--time=1:0:0 -A 'my account'", at_once=3)
    here = Here(processes.Stop(), told.append, None)
    slurm.launch(job, options, here)
    waits = "--kill-on-invalid-dep=yes --time=1:0:0 -A my account"
    expected = [
        "sbatch --parsable --time=1:0:0 -A my account",
        *("#SBATCH --array=0-0%3", "names=(base)"),
        f"sbatch --parsable --dependency=afterok:40_0 {waits}",
        *("#SBATCH --array=0-1%3", "names=(one two)"),
        f"sbatch --parsable --dependency=afterok:41_1 {waits}",
        *("#SBATCH --array=0-0%3", "names=(last)"),
    ]
    calls = tmp_path / "calls"
    assert calls.read_text().splitlines() == expected
    assert told[-1] == "last: submitted as 42_0"
    calls.unlink()
    (tmp_path / "count").unlink()
    subprocess.run(["bash", "-c", slurm.render(job, options)], check=True)
    assert calls.read_text().splitlines() == expected
    (tmp_path / "queued").write_text("40\n")
    with pytest.raises(RunFolderError, match="jobs of this sweep are in the queue: 40"):
        slurm.launch(job, options, here)


def test_workers_are_an_array_too_and_what_is_done_is_not_submitted(job):
    finish(job.trials[0])
    (first, second) = slurm.arrays(tasks(job))
    assert [t.only for t in first.tasks] == ["one", "two"] and not first.needs
    assert second.needs == ((0, 1),)
    (workers,) = slurm.arrays(tasks(job._replace(workers=3)))
    wide = job._replace(workers=3, hosts=2)
    script = slurm.script(wide, workers, slurm.Options())
    assert "#SBATCH --array=0-2\n" in script and "--only" not in script
    assert '"--group=$trial"' in script


def test_faults_of_slurm_are_told(job, tmp_path, monkeypatch):
    here = Here(processes.Stop(), print, None)
    shim(tmp_path, monkeypatch, "squeue", "echo 'no controller' >&2; exit 1")
    with pytest.raises(SweepError, match="ended with 1: no controller"):
        slurm.launch(job, slurm.Options(), here)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="squeue does not start"):
        slurm.launch(job, slurm.Options(), here)
    with pytest.raises(ConfigError, match="--slurm_at_once=-1 must be"):
        slurm.render(job, slurm.Options(at_once=-1))
