"""Tokens on disk: named by all they are made of, and never damaged ones."""

import hashlib
import multiprocessing
import os
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

from dpo_jax.data import token_cache
from dpo_jax.data.prepare import Prepared
from dpo_jax.data.sources import sentiment
from dpo_jax.data.tokens import Gathered, fingerprint

SETTINGS = {"kind": "pairs", "max_tokens": 8, "chat_template": None}


def prepared(label=1, scored=()):
    gathered = Gathered()
    for index, ids in enumerate(([1], [2, 3], [4])):
        judged = {"labels": (label, -1), "ratings": (0.1, 1e-30)}
        parts = (ids, [5, 6], [7])
        gathered.add(index, parts, judged, ranked=True, scored=scored)
    records = gathered.records()
    return Prepared(records, {"kept": 3, "dropped": {}}, fingerprint(records))


def refuse():
    raise AssertionError("made once more")


@pytest.mark.parametrize("scored", [(), ([True, False], [True])])
def test_tokens_are_made_once_and_come_back_as_they_were(tmp_path, scored):
    made = prepared(scored=scored)
    assert token_cache.kept(tmp_path / "cache", "a" * 32, lambda: made) is made
    back = token_cache.kept(tmp_path / "cache", "a" * 32, refuse)
    assert (back.report, back.fingerprint) == (made.report, made.fingerprint)
    assert fingerprint(back.records) == made.fingerprint
    for one, other in zip(back.records, made.records, strict=True):
        np.testing.assert_array_equal(one.prompt, other.prompt)
        assert one[3:5] == other[3:5] and one.response == other.response
        assert [m.tolist() for m in one.token.get("scored", ())] == [*map(list, scored)]
    other = prepared(label=-1)
    assert token_cache.kept(tmp_path / "cache", "b" * 32, lambda: other) is other


@pytest.mark.parametrize("how", ["altered", "cut", "emptied"])
def test_damaged_tokens_are_set_aside_and_made_again(tmp_path, caplog, how):
    token_cache.kept(tmp_path, "a" * 32, prepared)
    (path,) = tmp_path.glob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    damaged = {"altered": data, "cut": data[:-40], "emptied": b""}[how]
    path.write_bytes(damaged)
    made = []
    token_cache.kept(tmp_path, "a" * 32, lambda: made.append(0) or prepared())
    assert made and "sha256 mismatch" in caplog.text
    assert path.with_name(path.name + ".corrupt").read_bytes() == damaged
    token_cache.kept(tmp_path, "a" * 32, refuse)


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    made = prepared()
    assert token_cache.kept(tmp_path / "file", "a" * 32, lambda: made) is made
    assert "the next launch tokenizes again" in caplog.text


def test_the_name_changes_with_all_that_tokens_are_made_of(tmp_path):
    """And with nothing else: neither with the file's name."""
    rows, copy = tmp_path / "rows.jsonl", tmp_path / "copy.jsonl"
    rows.write_text("{}\n")
    copy.write_text("{}\n")
    tokenizer = sentiment.tokenizer()
    usual = token_cache.name_of(SETTINGS, [str(rows)], tokenizer)
    assert usual == token_cache.name_of(dict(SETTINGS), [str(copy)], tokenizer)
    more = sentiment.tokenizer()
    more.add_tokens(["thefilm"])
    chat = sentiment.tokenizer()
    chat.chat_template = "{{ messages }}"
    names = [
        token_cache.name_of(SETTINGS | {"max_tokens": 9}, [str(rows)], tokenizer),
        token_cache.name_of(SETTINGS, [str(rows), str(copy)], tokenizer),
        token_cache.name_of(SETTINGS, [str(rows)], more),
        token_cache.name_of(SETTINGS, [str(rows)], chat),
    ]
    rows.write_text("{} \n")
    names.append(token_cache.name_of(SETTINGS, [str(rows)], tokenizer))
    assert len({usual, *names}) == 6
    tokenizer(["was good"], add_special_tokens=False)  # encoding leaves no trace
    assert usual == token_cache.name_of(SETTINGS, [str(copy)], tokenizer)


def one_of_many(folder):
    def make():
        with open(f"{folder}/made", "a") as file:
            file.write(f"{os.getpid()}\n")
        return prepared()

    token_cache.kept(folder, "a" * 32, make)


def test_processes_of_a_host_make_them_once(tmp_path):
    """Forked from a process without threads of jax: the room imports none."""
    context = multiprocessing.get_context("spawn")
    several = [context.Process(target=one_of_many, args=(tmp_path,)) for _ in range(2)]
    for process in several:
        process.start()
    for process in several:
        process.join(60)
    assert [process.exitcode for process in several] == [0, 0]
    assert len((tmp_path / "made").read_text().splitlines()) == 1


@pytest.mark.parametrize("data", [b"", b"\x02" + b"\0" * 7 + b"{}", b"\xff" * 99])
def test_a_file_that_is_none_of_tokens_is_passed_over(tmp_path, data):
    """Its name is right for its bytes, so only the bytes can tell."""
    digest = hashlib.sha256(data).hexdigest()[:32]
    (tmp_path / f"name.{digest}.safetensors").write_bytes(data)
    made = SimpleNamespace()
    with mock.patch.object(token_cache, "_write"):
        assert token_cache.kept(tmp_path, "name", lambda: made) is made
