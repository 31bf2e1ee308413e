"""The store's preconditions, and what a client makes of answers that say nothing."""

import threading

import pytest

from dpo_jax import gcs
from dpo_jax.errors import ConfigError, WriteError
from dpo_jax.folders import Bucket, Disk, folder_at, has

URL = "gs://bucket/run/0001.json"


def test_the_fake_itself_has_one_winner_of_each_race(fake_gcs):
    """Calibration: two threads race a thousand times to create an object."""
    won = [[], []]
    barrier = threading.Barrier(2)

    def race(mine):
        for number in range(1000):
            barrier.wait()
            data = b"%d" % mine
            url = f"gs://bucket/{number}"
            if gcs.create(url, data, data) is not None:
                won[mine].append(number)

    racing = [threading.Thread(target=race, args=(i,)) for i in range(2)]
    for each in racing:
        each.start()
    for each in racing:
        each.join()
    assert sorted(won[0] + won[1]) == list(range(1000))
    assert all(fake_gcs.data(f"gs://bucket/{n}") == b"0" for n in won[0])


def test_an_object_is_changed_on_condition_of_its_generation(fake_gcs):
    assert gcs.read(URL) is None and not gcs.exists(URL)
    first = gcs.create(URL, b"a1", b"a")
    assert first and gcs.exists(URL) and gcs.read(URL) == (b"a1", first)
    assert gcs.create(URL, b"b1", b"b") is None
    second = gcs.replace(URL, b"a2", first, b"a")
    assert second and second > first and gcs.read(URL) == (b"a2", second)
    assert gcs.replace(URL, b"b2", first, b"b") is None
    assert not gcs.delete(URL, first) and gcs.delete(URL, second)
    assert gcs.replace(URL, b"a3", second, b"a") is None  # never made again
    assert not fake_gcs.objects


def test_names_are_listed_page_by_page_and_folders_are_none(fake_gcs):
    for name in [f"{i:05}" for i in range(1100)] + ["more/x"]:
        fake_gcs.change("POST", f"bucket/run/{name}", {}, b"")
    assert gcs.names("gs://bucket/run") == [f"{i:05}" for i in range(1100)]
    assert gcs.names("gs://bucket/none") == []


@pytest.mark.parametrize("what", ["lost", "dropped", 408, 409, 429, 500, 503])
def test_a_change_is_repeated_until_it_is_known(fake_gcs, what):
    """I3: the store applies a write and loses the answer; or says that it is busy."""
    for method in ("POST", "GET"):
        fake_gcs.fault(method, "run/", what)
    first = gcs.create(URL, b"a1", b"a")
    assert first and gcs.read(URL) == (b"a1", first)
    for method in ("POST", "GET"):
        fake_gcs.fault(method, "run/", what)
    second = gcs.replace(URL, b"a2", first, b"a")
    assert second and gcs.read(URL) == (b"a2", second)
    fake_gcs.fault("POST", "run/", what)
    assert gcs.create(URL, b"b1", b"b") is None
    assert not [fault for fault in fake_gcs.faults if fault.times]


def test_a_write_of_ones_own_that_was_lost_is_renewed(fake_gcs):
    """A beat whose fate was never known is found by its mark, and beaten once more."""
    first = gcs.create(URL, b"a1", b"a")
    assert first is not None
    fake_gcs.change("POST", "bucket/run/0001.json", {}, b"a2")  # unheard
    third = gcs.replace(URL, b"a3", first, b"a")
    assert third and fake_gcs.data(URL) == b"a3"
    fake_gcs.change("POST", "bucket/run/0001.json", {}, b"b9")
    assert gcs.replace(URL, b"a4", third, b"a") is None and fake_gcs.data(URL) == b"b9"


def test_an_object_that_goes_between_refusal_and_look_is_lost(fake_gcs):
    first = gcs.create(URL, b"a1", b"a")
    fake_gcs.fault("POST", "run/", 412)
    fake_gcs.fault("GET", "run/", 404)
    assert gcs.replace(URL, b"a2", first, b"a") is None


def test_a_store_that_does_not_answer_is_unreachable_in_time(fake_gcs, monkeypatch):
    monkeypatch.setattr(gcs, "WITHIN", 0.3)
    fake_gcs.fault("POST", "run/", "dropped", times=99)
    with pytest.raises(gcs.Unreachable, match="gcs|bucket"):
        gcs.create(URL, b"a1", b"a")
    fake_gcs.fault("GET", "run/", 403)
    with pytest.raises(ConfigError, match="it answers 403"):
        gcs.read(URL)
    fake_gcs.faults.clear()
    fake_gcs.fault("POST", "run/", 403)
    with pytest.raises(WriteError, match="it answers 403"):
        gcs.create(URL, b"a1", b"a")


@pytest.mark.parametrize("kind", ["disk", "bucket"])
def test_a_folder_is_the_same_on_a_disk_and_in_a_bucket(fake_gcs, tmp_path, kind):
    place = tmp_path / "run" if kind == "disk" else "gs://bucket/run"
    folder = folder_at(place)
    assert isinstance(folder, Disk if kind == "disk" else Bucket)
    assert folder.names() == [] and folder.read("a") is None and not folder.has("a")
    first = folder.create("a", b"1", b"1")
    assert first is not None and folder.create("a", b"2", b"2") is None
    found = folder.read("a")
    assert found and found.data == b"1" and folder.has("a") and has(folder.path("a"))
    assert folder.replace("a", b"11", found.generation, b"1") is not None
    assert folder.names() == ["a"] and not has(folder.path("b"))
