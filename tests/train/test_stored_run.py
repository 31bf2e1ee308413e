"""A run on gs://: saved, killed, resumed to the same, read by every verb.

The store is the tests' own, over HTTP, for gcsfs and tensorstore alike (extra `gcs`).
"""

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
COPY, ROWS = "gs://bucket/copy", "gs://bucket/rows.jsonl"
SAID = "gs://bucket/said.jsonl"
ROW = {"chosen": " was good", "rejected": " was bad"}
SMALL = {
    "batch.pairs": 8,
    "data.limit": 64,
    "data.max_tokens": 24,
    "data.eval": "",
    "eval.rollouts": 0,
    "checkpoint.every_steps": 5,
}

VERBS = """
import json, sys
from dpo_jax import cli
for line in json.loads(sys.argv[1]):
    if code := cli.main(["dpo_jax", *line]):
        sys.exit(code)
"""

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
    """Starts verbs, one after the other in a process; none outlives the test."""
    variables = {
        "STORAGE_EMULATOR_HOST": fake.url,
        "TENSORSTORE_GCS_HTTP_URL": fake.url,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks over gRPC
        "GOOGLE_CLOUD_PROJECT": "none",
        "GCE_METADATA_HOST": "127.0.0.1:9",
        "DPO_JAX_COMPILE_CACHE": str(ROOT / ".cache" / "jax"),
    }
    with starting(variables, stderr=subprocess.STDOUT) as start:

        def verbs(*lines):
            return start(sys.executable, "-c", VERBS, json.dumps(lines, default=str))

        yield verbs


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
    first = verb(train(URL))
    pointer = "bucket/out/run/checkpoints/published.json"

    def saved():
        assert first.poll() is None
        return b"attempt-0001/5" in fake.objects.get(pointer, (b"",))[0]

    wait_for(saved, seconds=LIMIT)
    first.send_signal(signal.SIGKILL)
    first.wait()
    printed = ended(verb(train(URL)))
    assert "resumed from step" in printed and "took over stale lease" in printed
    quiet = tmp_path / "run"
    ended(verb(train(quiet)))
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
    rows = [{**ROW, "prompt": f"this {word}"} for word in ("movie", "film")]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    fake.change("POST", ROWS.removeprefix("gs://"), {}, text)
    held = [f"--config.data.eval={ROWS}", "--config.eval.rollouts=0"]
    greedy = [f"--prompts={ROWS}", "--temperature=0", "--max_new_tokens=8"]
    before = {name: fake.data(f"{URL}/{name}") for name in fake.names(URL)}
    printed = ended(
        verb(
            train(URL),
            ["report", URL, f"--out={tmp_path}/report.html"],
            ["export", f"--workdir={URL}", f"--out={tmp_path}/exported"],
            ["export", f"--workdir={URL}", f"--out={COPY}"],
            ["evaluate", *held, f"--workdir={URL}", f"--out={tmp_path}/there.json"],
            ["evaluate", *held, f"--workdir={quiet}", f"--out={tmp_path}/here.json"],
            ["sample", *greedy, f"--workdir={URL}", f"--model={COPY}", f"--out={SAID}"],
        )
    )
    assert "already complete: 20 steps" in printed and "report.html" in printed
    exported = (tmp_path / "exported" / "model.safetensors").read_bytes()
    assert exported == fake.data(f"{URL}/export/model.safetensors")
    assert exported == fake.data(f"{COPY}/model.safetensors")
    found = [
        json.loads((tmp_path / n).read_text()) for n in ("there.json", "here.json")
    ]
    assert found[0] == found[1] and found[0]["step"] == 20
    said = [json.loads(line) for line in fake.data(SAID).splitlines()]
    texts = {
        name: [r["text"] for r in said if r["policy"] == name] for name in (URL, COPY)
    }
    assert texts[URL] == texts[COPY] and len(texts[URL]) == 2
    # a reader leaves the run as it is
    assert {name: fake.data(f"{URL}/{name}") for name in fake.names(URL)} == before
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
