"""Files appear whole or not at all, on disks and where nothing can be renamed."""

import errno
import os

import pytest

from dpo_jax import files
from dpo_jax.errors import WriteError


def test_files_are_replaced_whole(tmp_path):
    files.write_whole(tmp_path / "a/b.txt", "one")
    files.write_whole(tmp_path / "a/b.txt", b"two")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.txt"]
    assert (tmp_path / "a" / "b.txt").read_text() == "two"
    with pytest.raises(WriteError, match=r"cannot write .*b.txt/c \(5 bytes\)"):
        files.write_whole(tmp_path / "a/b.txt/c", "three")


def test_a_file_is_forced_to_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    seen = []
    replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append("sync"))
    monkeypatch.setattr(os, "replace", lambda *a: (seen.append("replace"), replace(*a)))
    files.write_whole(tmp_path / "x", "1")
    assert seen == ["sync", "replace", "sync"]  # the second is of the folder


def test_links_are_replaced_and_not_followed(tmp_path):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "x").symlink_to(tmp_path / "precious")
    files.write_whole(tmp_path / "x", "new")
    assert (tmp_path / "precious").read_text() == "kept"
    assert not (tmp_path / "x").is_symlink()


def test_devices_are_written_to_and_stay():
    """By a superuser they could be replaced by a file, for all programs."""
    read, write = os.openpty()
    terminal = os.ttyname(write)
    files.write_whole(terminal, "one")
    assert os.read(read, 3) == b"one"
    assert os.ttyname(write) == terminal
    os.close(read)
    os.close(write)


@pytest.mark.parametrize(
    ("number", "way_out"), [(errno.ENOSPC, "free some"), (errno.EACCES, "name a place")]
)
def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch, number, way_out):
    files.write_whole(tmp_path / "x", "old")

    def fail(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(WriteError, match=f"{os.strerror(number)}; {way_out}"):
        files.write_whole(tmp_path / "x", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "old"


def test_set_aside_keeps_all(tmp_path):
    for text in ("one", "two", "three"):
        (tmp_path / "x").write_text(text)
        files.set_aside(tmp_path / "x")
    kept = {p.name: p.read_text() for p in tmp_path.iterdir()}
    assert kept == {"x.corrupt": "one", "x.2.corrupt": "two", "x.3.corrupt": "three"}


def test_set_aside_of_a_store_copies_and_deletes(store):
    root = store("gs://bucket/run")
    files.write_whole(root / "7/a/b", "deep")
    files.write_whole(root / "text", "flat")
    files.set_aside(root / "7")
    files.set_aside(root / "text")
    assert sorted(files.names_below(root)) == ["7.corrupt/a/b", "text.corrupt"]


def test_what_is_no_file(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    names = {
        "file": "",
        "none": "",
        "link": "a link",
        "pipe": "a pipe",
        ".": "a folder",
    }
    for name, kind in names.items():
        assert files.no_file(tmp_path / name) == kind


def test_folders_of_an_object_store_are_not_local():
    assert files.is_local("/tmp/x") and not files.is_local("gs://bucket/x")


ODD = {
    "it is a pipe": lambda path: os.mkfifo(path),
    "it is a folder": lambda path: path.mkdir(),
    "it is a device": lambda path: path.symlink_to("/dev/zero"),
    "more than 64 MiB": lambda path: path.write_bytes(b"") or os.truncate(path, 2**33),
    "symbolic links": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("said", ODD)
def test_what_would_wait_or_fill_the_memory_is_not_read(said, tmp_path):
    ODD[said](path := tmp_path / "config.json")
    with pytest.raises(OSError, match=said):
        files.read_json(path)
    with pytest.raises(OSError, match="null byte"):
        files.read_small("a\0b")


def test_json_is_bounded_and_says_one_thing_of_a_key():
    assert files.parse_json('{"a": [1, {"a": 1}], "b": 2, "b": 2}') == {
        "a": [1, {"a": 1}],
        "b": 2,
    }
    for text, said in (
        ('{"a": 1, "a": 1.0}', "'a' stands twice"),
        ("[" * 101 + "]" * 101, "more than 100 levels"),
        ("[" * 10**5, "too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "digits"),
    ):
        with pytest.raises(ValueError, match=said):
            files.parse_json(text)
    assert files.parse_json("[" * 100 + "]" * 100)
