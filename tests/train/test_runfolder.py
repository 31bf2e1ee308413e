"""The run folder: one owner, one configuration, whole files."""

import fcntl
import json
import logging as std_logging
import os

import pytest
from absl import logging

from dpo_jax.errors import RunFolderError, WriteError
from dpo_jax.train import runfolder

OLD = {"loss": {"beta": 0.1}, "mesh": {"data": 8}}


def test_nothing_is_made_before_the_claim(tmp_path):
    run = tmp_path / "run"
    runfolder.check_same(run, OLD, fork=False)
    assert runfolder.read_config(run) is None and not run.exists()
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
    assert runfolder.read_config(tmp_path) == OLD


@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl"])
def test_run_without_configuration_is_foreign(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(RunFolderError, match="without config.json.*--workdir"):
        runfolder.check_same(tmp_path, OLD, fork=True)


def test_broken_configuration_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"loss": ')
    with pytest.raises(RunFolderError, match="config.json is not JSON.*restore"):
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


def test_log_holds_what_is_ours_while_it_is_claimed(tmp_path):
    logger = logging.get_absl_logger()

    def say(text, path, level=std_logging.INFO):
        logger.handle(logger.makeRecord("absl", level, path, 1, text, (), None))

    ours, theirs = "/x/dpo_jax/build.py", "/x/orbax/y.py"
    with runfolder.claim(tmp_path, first=True):
        say("one", ours)
        say("two", theirs)
        say("three", theirs, std_logging.WARNING)
    say("four", ours)
    found = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split("] ")[1] for line in found] == ["one", "three"]


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="cannot make the run folder .*file/run"):
        with runfolder.claim(tmp_path / "file" / "run", first=True):
            raise AssertionError("made a folder in a file")


def test_files_are_written_whole(tmp_path):
    runfolder.write_text(tmp_path, "a/b.txt", "one")
    runfolder.write_text(tmp_path, "a/b.txt", "two")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.txt"]
    assert (tmp_path / "a" / "b.txt").read_text() == "two"
    with pytest.raises(WriteError, match="cannot write .*b.txt/c"):
        runfolder.write_text(tmp_path, "a/b.txt/c", "three")


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


def test_read_json_of_nothing_is_empty(tmp_path):
    assert runfolder.read_json(tmp_path, "results.json") == {}
    runfolder.write_text(tmp_path, "results.json", '{"step": 3}')
    assert runfolder.read_json(tmp_path, "results.json") == {"step": 3}


def test_folders_of_an_object_store_are_not_local():
    assert runfolder.is_local("/tmp/x") and not runfolder.is_local("gs://bucket/x")


def test_report_is_the_last_thing_written(tmp_path):
    assert not runfolder.is_whole(tmp_path)
    (tmp_path / "report.html").write_text("")
    assert runfolder.is_whole(tmp_path)
    assert runfolder.is_whole("gs://bucket/run")  # where no report is written
