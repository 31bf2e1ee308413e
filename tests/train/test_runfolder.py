"""The run folder: one owner, one configuration, whole files."""

import fcntl
import json
import logging as std_logging
import os

import pytest
from absl import logging

import dpo_jax
from dpo_jax import files
from dpo_jax.errors import ConfigError, RunFolderError, WriteError
from dpo_jax.train import runfolder

OLD = {"loss": {"beta": 0.1}, "mesh": {"data": 8}}


def test_nothing_is_made_before_the_claim(tmp_path):
    run = tmp_path / "run"
    runfolder.check_same(run, OLD, fork=False)
    assert runfolder.read_json(run, "config.json") is None and not run.exists()
    with runfolder.claim(run, first=True):
        assert run.is_dir()


def test_same_configuration_and_free_keys_pass(tmp_path):
    runfolder.write_config(tmp_path, json.dumps(OLD))
    runfolder.check_same(tmp_path, OLD, fork=False)
    runfolder.check_same(tmp_path, {**OLD, "mesh": {"data": 1}}, fork=False)


def test_changed_configuration_needs_fork_and_keeps_the_old(tmp_path):
    new = {**OLD, "loss": {"beta": 0.2}}
    runfolder.write_config(tmp_path, json.dumps(OLD))
    with pytest.raises(RunFolderError, match="loss.beta: 0.1 → 0.2.*--fork"):
        runfolder.check_same(tmp_path, new, fork=False)
    runfolder.check_same(tmp_path, new, fork=True)
    runfolder.write_config(tmp_path, json.dumps(new))
    runfolder.write_config(tmp_path, json.dumps({**new, "mesh": {"data": 1}}))
    runfolder.write_config(tmp_path, json.dumps(OLD))
    kept = [tmp_path / f"config.before-fork-{n}.json" for n in (1, 2, 3)]
    assert json.loads(kept[0].read_text()) == OLD
    assert json.loads(kept[1].read_text())["loss"] == {"beta": 0.2}
    assert not kept[2].exists()
    assert runfolder.read_json(tmp_path, "config.json") == OLD


@pytest.mark.parametrize("name", ["checkpoints/1", "metrics.jsonl"])
def test_run_without_configuration_is_foreign(tmp_path, name):
    files.write_whole(tmp_path / name, "")
    with pytest.raises(RunFolderError, match="without config.json.*--workdir"):
        runfolder.check_same(tmp_path, OLD, fork=True)


def test_broken_configuration_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"loss": ')
    with pytest.raises(RunFolderError, match="config.json is not a JSON obj.*restore"):
        runfolder.check_same(tmp_path, OLD, fork=False)


def test_claim_refuses_a_second_owner_and_names_the_first(tmp_path):
    """flock acts between open files, so one process can stand for two."""
    words = rf"in use by pid {os.getpid()} on .* since 20\d\d-"
    with runfolder.claim(tmp_path, first=True):
        with pytest.raises(RunFolderError, match=words):
            with runfolder.claim(tmp_path, first=True):
                raise AssertionError("claimed twice")
    assert (tmp_path / ".lock").read_text() == ""
    with runfolder.claim(tmp_path, first=True):
        pass


def test_claim_takes_over_the_lock_of_a_dead_owner(tmp_path, caplog):
    (tmp_path / ".lock").write_text("pid 99999 on there since 2020-01-01")
    caplog.set_level("WARNING", logger="absl")
    with runfolder.claim(tmp_path, first=True):
        assert f"pid {os.getpid()}" in (tmp_path / ".lock").read_text()
    assert "took over stale lock of pid 99999 on there since 2020-01-01" in caplog.text


def test_claim_ends_with_an_exception_too(tmp_path):
    with pytest.raises(ZeroDivisionError), runfolder.claim(tmp_path, first=True):
        raise ZeroDivisionError
    with open(tmp_path / ".lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert (tmp_path / ".lock").read_text() == ""


def test_log_holds_what_is_ours_while_it_is_claimed(tmp_path, monkeypatch):
    """In a clone named dpo_jax as well, whose libraries lie below it."""
    logger = logging.get_absl_logger()

    def say(text, path, level=std_logging.INFO):
        raised = (ValueError, ValueError("why"), None)
        logger.handle(logger.makeRecord("absl", level, path, 1, text, (), raised))

    assert runfolder.PACKAGE == os.path.dirname(dpo_jax.__file__) + "/"
    monkeypatch.setattr(runfolder, "PACKAGE", "/x/dpo_jax/dpo_jax/")
    ours, theirs = "/x/dpo_jax/dpo_jax/build.py", "/x/dpo_jax/.venv/lib/orbax/y.py"
    with runfolder.claim(tmp_path, first=True):
        say("one", ours)
        say("two", theirs)
        say("three", theirs, std_logging.WARNING)
    say("four", ours)
    found = (tmp_path / "log.txt").read_text().splitlines()
    said = [line.rpartition("] ")[2] for line in found]
    assert said == ["one", "ValueError: why", "three"]  # theirs in a line each


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="cannot make the run folder .*file/run"):
        with runfolder.claim(tmp_path / "file" / "run", first=True):
            raise AssertionError("made a folder in a file")


def test_errors_keep_their_tracebacks_side_by_side(tmp_path):
    names = set()
    for word in ("one", "two"):
        try:
            raise RuntimeError(word)
        except RuntimeError as error:
            names.add(runfolder.write_error(tmp_path, error))
    texts = sorted(open(name).read() for name in names)
    assert len(texts) == 2 and "Traceback" in texts[0]
    assert texts[0].endswith("RuntimeError: one\n")
    (tmp_path / "file").write_text("")
    assert runfolder.write_error(tmp_path / "file", RuntimeError("x")) is None
    assert runfolder.write_error("nope://x", RuntimeError("x")) is None


def test_error_of_a_typing_error_makes_no_folder(tmp_path):
    assert runfolder.write_error(tmp_path / "tpyo", ConfigError("x")) is None
    assert not (tmp_path / "tpyo").exists()
    assert runfolder.write_error(tmp_path, ConfigError("x")) is not None


DAMAGED = (b"", b'{"step": 3', b"[]", b"7", b"\xff\xfe{}", b"[" * 200_000)


@pytest.mark.parametrize("data", DAMAGED)
def test_damaged_json_names_the_file_and_the_way_out(tmp_path, data):
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(RunFolderError, match="config.json is not a JSON.*attempts/"):
        runfolder.read_json(tmp_path, "config.json")
    (tmp_path / "results.json").write_bytes(data)
    (tmp_path / "report.html").write_text("")
    assert runfolder.finished_step(tmp_path) == -1  # its end is repeated


@pytest.mark.parametrize("name", runfolder.FILES)
@pytest.mark.parametrize("kind", ["a link", "a folder", "a pipe"])
def test_what_is_no_file_is_refused_before_anything_is_written(tmp_path, name, kind):
    """A pipe would be waited for, a link written through."""
    path = tmp_path / name
    if kind == "a link":
        path.symlink_to(path)
    elif kind == "a folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(RunFolderError, match=f"{name} is {kind}, not a file; move"):
        runfolder.check_same(tmp_path, OLD, fork=False)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_lock_that_is_not_text(tmp_path):
    (tmp_path / ".lock").write_bytes(b"\xff\xfe")
    with runfolder.claim(tmp_path, first=True):
        assert f"pid {os.getpid()}" in (tmp_path / ".lock").read_text()


def test_report_is_the_last_thing_that_a_run_owes(tmp_path):
    assert runfolder.finished_step(tmp_path) == -1
    files.write_whole(tmp_path / "results.json", '{"step": 3}')
    assert runfolder.finished_step(tmp_path) == -1
    (tmp_path / "report.html").write_text("")
    assert runfolder.finished_step(tmp_path) == 3


def test_launches_are_counted_with_their_configuration(tmp_path):
    for number in (1, 2):
        assert runfolder.begin_attempt(tmp_path, OLD, f"commit {number}") == number
    (tmp_path / "attempts" / "notes.txt").write_text("")
    (tmp_path / "attempts" / "0001.json").unlink()
    assert runfolder.begin_attempt(tmp_path, OLD, "commit 3") == 3
    kept = json.loads((tmp_path / "attempts" / "0003.json").read_text())
    assert (kept["config"], kept["code"]) == (OLD, "commit 3")
    runfolder.begin_attempt(tmp_path, OLD, "commit 2")
    (tmp_path / "attempts" / "0005.json").write_text("{")
    assert runfolder.codes(tmp_path) == ["commit 2", "commit 3"]
    assert runfolder.codes(tmp_path / "nothing") == []


def test_what_killed_writers_left_goes_with_the_claim(tmp_path):
    for name in (".1.part", "errors/.2.part", "other.part"):
        files.write_whole(tmp_path / name, "")
    with runfolder.claim(tmp_path, first=True):
        left = [p.name for p in tmp_path.rglob("*.part")]
    assert left == ["other.part"]


def test_store_that_nothing_reads_is_a_fault_of_the_command():
    for folder in ("nope://bucket/run", "s3://bucket/run"):
        with pytest.raises(ConfigError, match=f"{folder} lies in an object store"):
            runfolder.check_files(folder)
