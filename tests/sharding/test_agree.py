"""What processes say to each other arrives, whoever is slow."""

import datetime
import threading
from types import SimpleNamespace
from unittest import mock

import jax
from jax._src import distributed

from dpo_jax.configs import quickstart
from dpo_jax.sharding import agree
from dpo_jax.wiring import data


class Store:
    """Holds texts of two threads that stand for ranks, until rank 0 leaves."""

    def __init__(self):
        self.texts, self.gone = {}, False
        self.met = threading.Barrier(2)
        self.rank_0_left = threading.Event()

    def key_value_set(self, key, text):
        assert key not in self.texts, f"{key} was said already"
        self.texts[key] = text
        self.met.wait()

    def blocking_key_value_get(self, key, milliseconds):
        del milliseconds
        if of.rank == 1:
            self.rank_0_left.wait(0.2)  # slow enough for a rank 0 that waits for none
        if self.gone:
            raise jax.errors.JaxRuntimeError("UNAVAILABLE")
        return self.texts[key]

    def wait_at_barrier(self, name, milliseconds):
        del name, milliseconds
        self.met.wait()


of = threading.local()


def both(store, process):
    """Runs a function of the rank on both ranks."""
    state = SimpleNamespace(client=store)
    with (
        mock.patch.object(jax, "process_count", lambda: 2),
        mock.patch.object(jax, "process_index", lambda: of.rank),
        mock.patch.object(distributed, "global_state", state),
    ):
        threads = [threading.Thread(target=process, args=(r,)) for r in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def test_rank_0_waits_until_all_have_read():
    """The store is rank 0's: one that left at once took from others what it said."""
    store, heard = Store(), {}

    def process(rank):
        of.rank = rank
        heard[rank] = agree.exchange("facts", f"of {rank}", seconds=5)
        if rank == 0:
            store.gone = True
            store.rank_0_left.set()

    both(store, process)
    assert heard == {rank: ["of 0", "of 1"] for rank in range(2)}


class Clock(datetime.datetime):
    """A clock that stands an hour later on each rank."""

    @classmethod
    def now(cls, tz=None):
        return cls(2026, 7, 26, 8 + of.rank)


def test_all_processes_take_the_time_of_the_first(monkeypatch):
    """Of two policies, each by a key of its own, behind a template that asks."""
    monkeypatch.setattr(data.datetime, "datetime", Clock)
    dated = SimpleNamespace(chat_template="{{ strftime_now('%H:%M') }}")
    given = quickstart.get_config().data
    heard = {}

    def process(rank):
        of.rank = rank
        heard[rank] = [
            data.launch_time(given, dated, seconds=60.0, whose=name)
            for name in ("one", "two")
        ]

    both(Store(), process)
    assert heard == {rank: ["2026-07-26T08:00:00"] * 2 for rank in range(2)}
