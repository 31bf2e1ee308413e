"""Tasks of Ray: what is planned and refused; tests/engines starts a real cluster."""

import subprocess
import sys
import types

import pytest
from launch_cases import chain

from dpo_jax.errors import ConfigError
from dpo_jax.launch import processes, ray
from dpo_jax.launch.job import Here, Job

SLICE = ray.Options(topology="2x2x2", version="v4")


@pytest.fixture
def job(tmp_path):
    return Job("beta", "s.py:0.1", "out", (), chain(tmp_path), {}, hosts=2)


def test_dry_run_says_what_runs_where_and_behind_which(job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = ray.render(job, SLICE).splitlines()
    base, one = lines[0].partition(":")[0], lines[2]
    assert lines[0] == f"{base}: 2 × (v4 2x2x2)"
    assert one.endswith(f"2 × (v4 2x2x2) after {base}")
    assert lines[3] == (
        f"    python -m dpo_jax sweep {tmp_path}/s.py:0.1 --out={tmp_path}/out "
        "--worker --only=one --hosts=2 '--host_index={index}'"
    )
    assert "(CPU=4,GPU=8)" in ray.render(job, ray.Options(resources="CPU=4,GPU=8"))


def test_options_that_make_no_sense_are_refused(job):
    with pytest.raises(ConfigError, match="are given together"):
        ray.render(job, ray.Options(topology="2x2x2"))
    with pytest.raises(ConfigError, match="--ray_resources='GPU' is not NAME=NUMBER"):
        ray.render(job, ray.Options(resources="GPU"))


def test_ray_that_is_missing_is_told(job, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="pip install 'dpo_jax\\[ray\\]'"):
        ray.launch(job, SLICE, Here(processes.Stop(), print, None))


@pytest.mark.parametrize(
    "rounds, ends, expected",
    [
        ([[0, 0]], 1, 0),
        ([[71, 137], [75, 0], [0, 0]], 3, 0),  # nobody's fault: again, hosts afresh
        ([[0, 71], [0, 6]], 2, 6),  # the worst rank is the trial's end
        ([[9, 9]], 1, 9),
    ],
)
def test_retries_are_counted_here_and_never_by_ray(monkeypatch, rounds, ends, expected):
    given_back = []

    def reserved(place):
        codes = rounds.pop(0)
        group = types.SimpleNamespace(shutdown=lambda: given_back.append(1))
        return group, lambda line: codes

    monkeypatch.setattr(ray, "reserved", reserved)
    monkeypatch.setattr(ray, "result_of", lambda code: code)
    monkeypatch.setattr(ray, "REST", 0)
    place = ray.Place("", "", 2, {})
    assert ray.run_trial(["sweep"], place) == expected
    assert len(given_back) == ends and not rounds
    assert ray.run_trial(["sweep"], place, 0, 9) == 9  # what it waits for has failed


def test_the_module_imports_no_ray():
    code = "import sys, dpo_jax.launch.ray; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
