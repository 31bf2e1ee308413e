"""Beats keep a process alive; without them stacks are shown and it is ended."""

import threading
import time

import jax
import jax.numpy as jnp

from dpo_jax.errors import EXIT_WATCHDOG
from dpo_jax.train import watchdog
from dpo_jax.train.clock import COMPILING


class Ends:
    """Takes the place of `os._exit`."""

    def __init__(self):
        self.codes, self.ended = [], threading.Event()

    def __call__(self, code):
        self.codes.append(code)
        self.ended.set()


def test_silence_ends_the_process_and_shows_every_thread(tmp_path, capsys):
    ends = Ends()
    with watchdog.Watchdog(0.2, tmp_path, leave=ends):
        watchdog.beat(17)
        assert ends.ended.wait(20)
    assert ends.codes[0] == EXIT_WATCHDOG
    said = capsys.readouterr().err
    assert "error[124]: no progress since step 17 for 0.2 s" in said
    assert "train.watchdog_seconds=0.2" in said and "relaunch to go on" in said
    stacks = (tmp_path / "errors" / "stacks0.txt").read_text()
    assert "test_silence_ends" in stacks and "_watch" in stacks


def test_beats_of_any_part_keep_it_alive(tmp_path):
    ends = Ends()
    with watchdog.Watchdog(1.0, tmp_path, leave=ends):
        for _ in range(15):
            time.sleep(0.1)
            watchdog.beat()
    time.sleep(1.5)  # left: nobody watches
    assert not ends.codes and not list(tmp_path.iterdir())


def test_compiling_has_a_limit_of_its_own(tmp_path, monkeypatch):
    ends = Ends()
    (event,) = [name for name in COMPILING if "backend" in name]
    with watchdog.Watchdog(0.2, tmp_path, leave=ends) as dog:
        jax.monitoring.record_scalar(event, 0.0)
        time.sleep(1)
        assert not ends.codes
        monkeypatch.setattr(watchdog, "COMPILE_SECONDS", 0.1)
        assert ends.ended.wait(20)
        del dog


def test_jax_says_when_it_compiles(tmp_path):
    """The events by which compiling is known come in pairs, in this version of jax."""
    depths = []
    with watchdog.Watchdog(60, tmp_path, leave=Ends()) as dog:

        def traced(x):
            depths.append(dog._compiling)
            return x * 3.25 + 1

        jax.jit(traced)(jnp.arange(7.0))
        depths.append(dog._compiling)
    assert depths[0] > 0 and depths[-1] == 0


def test_zero_is_off(tmp_path):
    before = threading.active_count()
    with watchdog.Watchdog(0, tmp_path, leave=Ends()):
        assert threading.active_count() == before
        watchdog.beat(1)


def test_a_disk_that_hangs_does_not_keep_the_process(tmp_path, monkeypatch):
    ends = Ends()
    monkeypatch.setattr(watchdog, "FILE_SECONDS", 0.1)
    monkeypatch.setattr(watchdog.faulthandler, "dump_traceback", lambda file: None)
    disk = threading.Event()
    monkeypatch.setattr(watchdog.Path, "mkdir", lambda *_, **__: disk.wait())
    with watchdog.Watchdog(0.1, tmp_path / "run", leave=ends):
        assert ends.ended.wait(20)
    disk.set()
    time.sleep(0.5)  # for what it prints to be this test's
