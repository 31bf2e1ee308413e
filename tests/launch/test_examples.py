"""The files beside launchers: a Dockerfile, and a job of SkyPilot."""

import shutil
import subprocess
from pathlib import Path

import yaml
from launch_cases import shim

from dpo_jax.launch.job import AGAIN

ROOT = Path(__file__).parents[2]


def test_the_image_is_made_of_what_there_is():
    lines = (ROOT / "examples" / "gke" / "Dockerfile").read_text().splitlines()
    copied = [w for x in lines if x.startswith("COPY ") for w in x.split()[1:-1]]
    assert "dpo_jax" in copied and all((ROOT / name).exists() for name in copied)


def test_a_job_of_skypilot_is_the_one_command(tmp_path, monkeypatch):
    """Its end is that of the worker: no pipe and no trap lies between."""
    job = yaml.safe_load((ROOT / "examples" / "sky.yaml").read_text())
    recovery = job["resources"]["job_recovery"]
    assert tuple(recovery["recover_on_exit_codes"]) == AGAIN
    assert recovery["max_restarts_on_errors"] == 0
    shim(tmp_path, monkeypatch, "python", 'printf "%s\\n" "$@" > $HERE/words; exit 71')
    variables = {**job["envs"], "TRIAL": "a b", "SKYPILOT_NUM_NODES": "2"}
    for name, value in {**variables, "SKYPILOT_NODE_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([shutil.which("bash") or "bash", "-c", job["run"]])
    assert done.returncode == 71
    assert (tmp_path / "words").read_text().splitlines() == [
        *("-m", "dpo_jax", "sweep", "beta.py", "--out=gs://BUCKET/beta", "--worker"),
        *("--only=a b", "--hosts=2", "--host_index=1"),
    ]
