"""A run on gs://: saved, killed, resumed to the same, read by every verb.

The store is the tests' own, over HTTP, for gcsfs and tensorstore alike (extra `gcs`).
"""

import functools
import json
import signal
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest
from fake_gcs import FakeStore
from processes import starting, wait_for

ROOT = Path(__file__).parents[2]
LIMIT = 900  # seconds
URL = "gs://bucket/out/run"
SMALL = {
    "batch.pairs": 8,
    "data.limit": 64,
    "data.max_tokens": 24,
    "data.eval": "",
    "eval.rollouts": 0,
    "checkpoint.every_steps": 5,
}

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(util.find_spec("gcsfs") is None, reason="needs the extra gcs"),
]


@pytest.fixture(scope="module")
def fake():
    store = FakeStore()
    yield store
    store.close()


@pytest.fixture
def verb(fake):
    """Starts a verb that speaks to the store; none outlives the test."""
    variables = {
        "STORAGE_EMULATOR_HOST": fake.url,
        "TENSORSTORE_GCS_HTTP_URL": fake.url,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks over gRPC
        "GOOGLE_CLOUD_PROJECT": "none",
        "GCE_METADATA_HOST": "127.0.0.1:9",
        "DPO_JAX_COMPILE_CACHE": str(ROOT / ".cache" / "jax"),
    }
    with starting(variables, stderr=subprocess.STDOUT) as start:
        yield functools.partial(start, sys.executable, "-m", "dpo_jax")


def ended(process):
    printed, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, printed[-3000:]
    return printed


def train(workdir, steps=20):
    flags = [f"--config.{key}={value}" for key, value in SMALL.items()]
    config = f"--config=quickstart:stage=sft,steps={steps}"
    return ["train", config, *flags, f"--workdir={workdir}"]


def lines_of(texts):
    """The lines of metrics without what takes time."""
    timed = ("seconds", "per_second", "mfu")
    rows = [json.loads(line) for text in texts for line in text.splitlines()]
    return [{k: v for k, v in r.items() if not k.endswith(timed)} for r in rows]


def test_killed_and_resumed_it_is_the_run_that_a_disk_has(fake, verb, tmp_path):
    """kill -9 behind the second checkpoint; another attempt goes on from it."""
    first = verb(*train(URL))
    pointer = "bucket/out/run/checkpoints/published.json"

    def saved():
        assert first.poll() is None
        return b"attempt-0001/5" in fake.objects.get(pointer, (b"",))[0]

    wait_for(saved, seconds=LIMIT)
    first.send_signal(signal.SIGKILL)
    first.wait()
    printed = ended(verb(*train(URL)))
    assert "resumed from step" in printed and "took over stale lease" in printed
    quiet = tmp_path / "run"
    ended(verb(*train(quiet)))
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        here = (quiet / "export" / name).read_bytes()
        assert fake.data(f"{URL}/export/{name}") == here
    published = json.loads(fake.data(f"{URL}/checkpoints/published.json"))
    assert published["attempt"] == 2 and max(map(int, published["steps"])) == 20
    assert all(place.startswith("attempt-") for place in published["steps"].values())
    assert not fake.too_fast()
    names = fake.names(URL)
    assert "report.html" in names and "metrics.jsonl" not in names
    assert [n for n in names if n.startswith("log/0002-")]
    text = ended(verb("report", URL, f"--out={tmp_path}/report.html"))
    assert "report.html" in text
    ended(verb("export", f"--workdir={URL}", f"--out={tmp_path}/exported"))
    exported = (tmp_path / "exported" / "model.safetensors").read_bytes()
    assert exported == fake.data(f"{URL}/export/model.safetensors")
    again = ended(verb(*train(URL)))
    assert "already complete: 20 steps" in again
    merged = merged_lines(fake)
    assert lines_of(merged) == lines_of([(quiet / "metrics.jsonl").read_text()])


def merged_lines(fake):
    """The parts of all attempts as a reader merges them: the last attempt wins."""
    parts = [n for n in fake.names(URL) if n.startswith("metrics/")]
    rows = {}
    for name in sorted(parts):
        for line in fake.data(f"{URL}/{name}").decode().splitlines():
            rows[json.loads(line)["step"]] = line
    return [rows[step] for step in sorted(rows)]
