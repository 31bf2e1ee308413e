"""metrics.jsonl: one JSON object a line, no line double, missing or extra."""

import json

import numpy as np
import pytest

from dpo_jax import files, lines
from dpo_jax.errors import WriteError
from dpo_jax.train import metrics
from dpo_jax.train.metrics import MetricsLog


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").open()]


def log(folder, steps, *, seals=(), **resumed):
    """Writes a line a step; returns what was sealed behind some of them."""
    written = MetricsLog(folder, **{"resume_step": 0, **resumed})
    sealed = {}
    for step in steps:
        written.write(step, "train", {"loss": 1.0 / step})
        if step in seals:
            sealed[step] = written.seal()
    written.close()
    return sealed


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


def damage(path, how):
    text = path.read_text()
    if how == "line":
        path.write_text(text.replace('"loss": 0.5}', '"los\x00'))
    elif how == "value":
        path.write_text(text.replace('"loss": 0.5}', '"loss": 0.6}'))
    elif how == "cut":
        path.write_text(text[:60])
    elif how == "bytes":
        path.write_bytes(text.replace('"loss": 0.5}', "\xff\xfe").encode("latin1"))
    elif how == "kinds":
        path.write_text(text.replace('{"step": 2, ', '5\n{"a": 1}\n{"step": null, '))
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["line", "value", "cut", "bytes", "kinds", "deleted"])
def test_damaged_lines_are_recovered_and_told(tmp_path, caplog, how):
    """Saved behind 2 and 4, stopped behind 5: what checkpoint 4 stands on is back."""
    sealed = log(tmp_path, range(1, 6), seals=(2, 4))
    path = tmp_path / "metrics.jsonl"
    before = path.read_text()
    damage(path, how)
    old = path.read_bytes() if path.exists() else None
    caplog.set_level("ERROR", logger="absl")
    log(tmp_path, [5, 6], resume_step=4, attempt=2, sealed=sealed[4])
    assert path.read_text().startswith(before[: before.index('{"step": 5')])
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6]
    count = {"cut": 3, "deleted": 4}.get(how, 1)
    assert f"{count} lines recovered from metrics/, 0 lost" in caplog.text
    kept = tmp_path / "metrics.jsonl.corrupt"
    assert (kept.read_bytes() if kept.exists() else None) == old


def test_sound_lines_are_not_told_of(tmp_path, caplog):
    sealed = log(tmp_path, range(1, 6), seals=(2, 4))
    caplog.set_level("WARNING", logger="absl")
    log(tmp_path, [3, 4], resume_step=2, attempt=2, sealed=sealed[2])
    assert not caplog.text and not list(tmp_path.glob("*.corrupt"))


def test_lines_that_nothing_kept_are_counted(tmp_path, caplog):
    """Checkpoints of the first edition say nothing of the lines."""
    caplog.set_level("ERROR", logger="absl")
    sealed = log(tmp_path, range(1, 5), seals=(4,))
    damage(tmp_path / "metrics.jsonl", "line")
    for part in (tmp_path / "metrics").iterdir():
        part.unlink()
    log(tmp_path, [5], resume_step=4, attempt=2, sealed=sealed[4])
    assert "0 lines recovered from metrics/, 1 lost" in caplog.text
    assert [row["step"] for row in rows(tmp_path)] == [1, 3, 4, 5]
    (tmp_path / "metrics.jsonl").unlink()
    for part in (tmp_path / "metrics").iterdir():
        part.unlink()
    log(tmp_path, [5], resume_step=4, attempt=3)
    assert "damaged, cut or missing: 0 lines recovered" in caplog.text


def test_a_part_holds_what_was_written_since_the_one_before(tmp_path):
    log(tmp_path, range(1, 6), seals=(2, 4))
    parts = {p.name: p.read_text() for p in (tmp_path / "metrics").iterdir()}
    assert sorted(parts) == [f"0001-0000000{n}.jsonl" for n in (0, 3, 5)]
    assert "".join(parts[n] for n in sorted(parts)) == (
        (tmp_path / "metrics.jsonl").read_text()
    )


def test_lines_of_the_first_edition_are_kept_in_the_first_part(tmp_path):
    log(tmp_path, range(1, 4))
    for part in (tmp_path / "metrics").iterdir():
        part.unlink()
    log(tmp_path, [3], resume_step=2)
    assert lines.merged(tmp_path) == lines.read(tmp_path)
    assert [p.name for p in (tmp_path / "metrics").iterdir()] == ["0001-00000000.jsonl"]


def steps_of(folder):
    return [lines.parsed(line)["step"] for line in lines.read(folder)]


def test_a_store_holds_parts_and_no_object_is_written_twice(store, monkeypatch):
    """Two launches, the second from step 4: its lines take the place of the first's."""
    run, puts = store("gs://bucket/run"), []
    put = files.write_whole
    monkeypatch.setattr(
        files, "write_whole", lambda path, data: (puts.append(path), put(path, data))
    )
    sealed = log(run, range(1, 8), seals=(2, 4))
    assert len(puts) == len(set(puts)) == 3 and steps_of(run) == [*range(1, 8)]
    log(run, [5], resume_step=4, attempt=2, sealed=sealed[4])
    assert steps_of(run) == [1, 2, 3, 4, 5]
    assert not (run / "metrics.jsonl").exists()
    log(run, [1], attempt=3)
    assert steps_of(run) == [1]


def test_a_store_shows_lines_now_and_then(store, monkeypatch):
    """A part goes out by time as well, with all lines of the steps that it holds."""
    run = store("gs://bucket/run")
    monkeypatch.setattr(metrics, "PART_SECONDS", -1.0)
    written = MetricsLog(run, resume_step=0)
    for step, split in [(0, "eval"), (1, "train"), (2, "train"), (2, "eval"), (3, "x")]:
        written.write(step, split, {})
    assert steps_of(run) == [0, 1, 2, 2]
    written.close()
    assert steps_of(run) == [0, 1, 2, 2, 3]


def test_a_run_is_copied_to_a_store_and_back(store, tmp_path):
    run = store("gs://bucket/run")
    sealed = log(tmp_path, range(1, 5), seals=(4,))
    for name in files.names_below(tmp_path):
        files.write_whole(run / name, (tmp_path / name).read_bytes())
    more = log(run, [5, 6], resume_step=4, attempt=2, sealed=sealed[4], seals=(6,))
    assert steps_of(run) == [*range(1, 7)] and not (run / "metrics.jsonl").exists()
    home = tmp_path / "home"
    for name in files.names_below(run):
        files.write_whole(home / name, (run / name).read_bytes())
    assert steps_of(home) == [*range(1, 7)]
    log(home, [7], resume_step=6, attempt=3, sealed=more[6])
    assert [row["step"] for row in rows(home)] == [*range(1, 8)]
