"""metrics.jsonl: one JSON object a line, no line double, missing or extra."""

import itertools
import json

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from dpo_jax.errors import WriteError
from dpo_jax.train.metrics import TIMING_KEYS, MetricsLog, keep_until


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").open()]


def log(folder, steps, *, resume_step=0):
    written = MetricsLog(folder, resume_step=resume_step)
    for step in steps:
        written.write(step, "train", {"loss": 1.0 / step})
    written.close()


def test_line_is_step_split_and_plain_values(tmp_path):
    written = MetricsLog(tmp_path, resume_step=0)
    values = {"loss": np.float32(0.5), "n": 3, "note": "x", "ok": True}
    written.write(1, "eval", values)
    text = (tmp_path / "metrics.jsonl").read_text()  # before closing: it is flushed
    written.close()
    assert text == (
        '{"step": 1, "split": "eval", "loss": 0.5, "n": 3.0, "note": "x", "ok": true}\n'
    )


@pytest.mark.parametrize("value, text", [("nan",) * 2, ("inf",) * 2, ("-inf",) * 2])
def test_values_that_json_lacks_become_strings(tmp_path, value, text):
    written = MetricsLog(tmp_path, resume_step=0)
    written.write(1, "train", {"loss": float(value)})
    written.close()
    assert rows(tmp_path) == [{"step": 1, "split": "train", "loss": text}]


def test_resumed_log_drops_later_lines(tmp_path):
    log(tmp_path, [1, 2, 3, 4])
    log(tmp_path, [3, 4, 5], resume_step=2)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5]
    log(tmp_path, [1])
    assert [row["step"] for row in rows(tmp_path)] == [1]
    assert not list(tmp_path.glob("*.part"))


def test_keep_until_drops_a_line_that_was_cut():
    text = '{"step": 1, "loss": 1}\n{"step": 2, "loss": 2}\n'
    for end in range(len(text) // 2 + 1, len(text) - 1):
        assert keep_until(text[:end], 9) == text[: len(text) // 2]
    assert keep_until(text[:-1], 9) == text  # whole but for its line break
    assert keep_until(text, 1) == text[: len(text) // 2]
    assert keep_until("", 5) == keep_until(text, 0) == ""


def test_resumed_log_hides_later_tensorboard_events(tmp_path, monkeypatch):
    """A SessionLog START tells TensorBoard to purge events from that step on.

    The clock is turned on by a second at each look: event files are named after it.
    """
    clock = itertools.count(2e9)
    monkeypatch.setattr("tensorboardX.event_file_writer.time.time", clock.__next__)
    log(tmp_path, [1, 2, 3])
    log(tmp_path, [3], resume_step=2)
    log(tmp_path, [1])
    starts = []
    for path in sorted((tmp_path / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):  # u64 length, its crc32, the event, its crc32
            size = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + size])
            if event.HasField("session_log"):
                starts.append(event.step)
            at += 16 + size
    assert sorted(starts) == [0, 0, 3]


def test_disk_that_takes_nothing_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="metrics.jsonl"):
        MetricsLog(tmp_path / "file", resume_step=0)
    written = MetricsLog(tmp_path, resume_step=0)
    written._file.close()
    written._file = open("/dev/full", "w")
    for _ in range(2):  # what could not be written stays in the buffer
        with pytest.raises(WriteError, match="metrics.jsonl.*No space left"):
            written.write(1, "train", {"loss": 1.0})
    with pytest.raises(WriteError, match="metrics.jsonl.*No space left"):
        written.close()
    with pytest.raises(OSError):  # empties the buffer before the file is dropped
        written._file.close()


def test_timings_are_the_keys_that_may_differ_between_equal_runs():
    assert "loss" not in TIMING_KEYS and "padding_fraction" not in TIMING_KEYS
    assert {"step_seconds", "tokens_per_second", "mfu"} < TIMING_KEYS
