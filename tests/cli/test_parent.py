"""Parents and children that compute nothing: who ends how, and what is said of it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dpo_jax.cli import peers
from dpo_jax.errors import ConfigError

ROOT = Path(__file__).parent.parent.parent
CHILD = """
import os, sys, time
from dpo_jax.cli import parent, peers
code = parent.split()
if code is not None:
    sys.exit(code)
link = parent.link()
def join(seconds=20):
    port = link.join(peers.place_of(os.environ["DPO_JAX_DISTRIBUTED"]), seconds)
    print("met", port, flush=True)
def forever():
    while True:
        time.sleep(60)
"""
STEPS = "join(); link.tell('step 1'); print('stepping', flush=True); "


class Ranks:
    """Processes of one run, each with code of its own."""

    def __init__(self, codes, count=None, port=None):
        port = port or peers.free_port()
        self.processes = []
        for rank, code in enumerate(codes):
            place = f"localhost:{port},{count or len(codes)},{rank}"
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", CHILD + code],
                    env={
                        **os.environ,
                        "PYTHONPATH": str(ROOT),
                        "DPO_JAX_DISTRIBUTED": place,
                    },
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )

    def wait_for(self, word):
        """Waits until each rank has printed a line that begins with `word`."""
        for process in self.processes:
            while not process.stdout.readline().startswith(word):
                assert process.poll() is None

    def child(self, rank):
        (found,) = psutil.Process(self.processes[rank].pid).children()
        return found

    def ends(self):
        """Returns what each rank ended with, and its stderr."""
        said = [process.communicate(timeout=60)[1] for process in self.processes]
        codes = [process.returncode for process in self.processes]
        return [code if code >= 0 else 128 - code for code in codes], said


@pytest.fixture
def start():
    """Starts ranks; leaves no process behind."""
    started = []

    def start(*codes, **options):
        started.append(Ranks(codes, **options))
        return started[-1]

    yield start
    for ranks in started:
        for process in ranks.processes:
            process.kill()
            process.communicate()


@pytest.mark.parametrize(
    "named, why",
    [
        ("localhost:1,2,5", "INDEX < COUNT"),
        ("localhost:1,0,0", "INDEX < COUNT"),
        ("localhost:0,2,1", "0 < PORT"),
        ("localhost:70000,2,1", "PORT < 65536"),
        ("localhost,2,1", "not 'auto' or HOST:PORT,COUNT,INDEX"),
        ("localhost:1,2,-1", "not 'auto' or HOST:PORT,COUNT,INDEX"),
        ("automatic", "not 'auto' or HOST:PORT,COUNT,INDEX"),
    ],
)
def test_malformed_places_are_refused(named, why):
    with pytest.raises(ConfigError, match=f"DPO_JAX_DISTRIBUTED='{named}'") as raised:
        peers.place_of(named)
    assert why in str(raised.value)


def test_places_are_read():
    assert peers.place_of("") is None and peers.place_of("auto") is None
    assert peers.place_of("h.local:80,3,2") == ("h.local", 80, 3, 2)
    assert peers.place_of("[::1]:80,3,2").host == "[::1]"


def test_a_clean_end_is_nobodys_concern(start):
    codes, said = start("join()", "join(); time.sleep(1)", "join()").ends()
    assert codes == [0, 0, 0] and said == ["", "", ""]


def test_ranks_may_start_in_any_order(start):
    codes, _ = start("time.sleep(2); join()", "join()", "time.sleep(1); join()").ends()
    assert codes == [0, 0, 0]


def test_missing_ranks_are_named(start):
    """Of four ranks two came: both say who did not."""
    codes, said = start("join(1)", "join(9)", count=4).ends()
    assert codes == [5, 5]
    assert "error[5]: ranks 2, 3 did not appear at localhost:" in said[0]
    assert "within distributed.timeout_seconds=1; start all" in said[0]
    assert "error[5]: rank 0 ended: ranks 2, 3 did not appear" in said[1]


def test_the_first_rank_missing(start):
    codes, said = start("sys.exit(2)", "join(1)").ends()
    assert codes == [2, 5]
    assert "error[5]: rank 0 did not appear at localhost:" in said[1]


def test_two_processes_of_one_rank_are_refused(start):
    port = peers.free_port()
    first = start("join(3)", "join(3)", count=3, port=port)
    time.sleep(1)
    second = start("time.sleep(30)", "join(3)", count=3, port=port)
    assert second.processes[1].wait(20) == 5
    assert "two processes have this rank" in second.processes[1].stderr.read()
    assert first.ends()[0] == [5, 5]


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_killed_parent_takes_its_child_along_and_is_named(start, rank):
    ranks = start(*[STEPS + "forever()"] * 3)
    ranks.wait_for("stepping")
    child = ranks.child(rank)
    ranks.processes[rank].kill()
    codes, said = ranks.ends()
    assert codes == [137 if other == rank else 71 for other in range(3)]
    for other in {0, 1, 2} - {rank}:
        assert f"error[71]: lost rank {rank}" in said[other]
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_killed_child_is_named(start):
    ranks = start(*[STEPS + "forever()"] * 3)
    ranks.wait_for("stepping")
    ranks.child(1).kill()
    codes, said = ranks.ends()
    assert codes == [71, 137, 71]
    assert all("lost rank 1 (killed by SIGKILL)" in said[rank] for rank in (0, 2))


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("code", [70, 3, 124])
def test_an_error_ends_all_with_its_code_and_words(start, rank, code):
    """Users' faults leave the others a moment, to say the same themselves."""
    codes = [STEPS + "forever()"] * 3
    codes[rank] = STEPS + f"link.leave({code}, 'error[{code}]: no luck')"
    found, said = start(*codes).ends()
    assert found == [code] * 3
    for other in {0, 1, 2} - {rank}:
        assert f"error[{code}]: rank {rank} ended: no luck" in said[other]


def test_a_rank_that_says_the_same_is_not_said_twice(start):
    again = STEPS + "time.sleep({}); link.leave(5, 'differs')"
    codes, said = start(again.format(0), again.format(1)).ends()
    assert codes == [5, 5] and said == ["", ""]


def test_an_abort_is_a_lost_peer_or_missing_processes(start):
    codes, said = start("os.abort()", "time.sleep(.1)").ends()
    assert codes == [5, 0] and "error[5]: jax aborted this process" in said[0]
    codes, said = start("join(); os.abort()", "join(); forever()").ends()
    assert codes == [71, 71]
    assert "error[71]: jax aborted this process" in said[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_first_step_ends_all_at_once(start, number):
    ranks = start(*["join(); forever()"] * 3)
    ranks.wait_for("met")
    ranks.processes[2].send_signal(number)
    codes, said = ranks.ends()
    assert codes == [75, 75, 75]
    assert "preempted before step 1 of this launch; relaunch to go on\n" == said[2]
    assert all("launch, as rank 2 was; relaunch" in said[rank] for rank in (0, 1))


def test_a_signal_in_the_first_moment(start):
    ranks = start("forever()")
    while not psutil.Process(ranks.processes[0].pid).children():
        time.sleep(0.01)
    time.sleep(0.1)
    ranks.processes[0].terminate()
    assert ranks.ends()[0] == [75]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_later_a_signal_reaches_the_child_as_sigterm(start, number):
    """Jax agrees on a step upon SIGTERM alone; exit 75 is then everybody's own."""
    asks = "import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); "
    ranks = start(asks + STEPS + "forever()", STEPS + "time.sleep(3); sys.exit(75)")
    ranks.wait_for("stepping")
    ranks.processes[0].send_signal(number)
    assert ranks.ends() == ([75, 75], ["", ""])


def test_a_second_interrupt_does_not_wait(start):
    ranks = start(
        "import signal; signal.signal(15, signal.SIG_IGN);" + STEPS + "forever()"
    )
    ranks.wait_for("stepping")
    for _ in range(2):
        ranks.processes[0].send_signal(signal.SIGINT)
        time.sleep(0.3)
    assert ranks.ends()[0] == [130]


def test_a_child_that_gives_no_beat_is_killed(start):
    """A stopped process cannot end itself; the others follow."""
    beats = "parent.GRACE = 0; link.keep_beating(2.0); "
    ranks = start(*[STEPS + beats + "forever()"] * 2)
    ranks.wait_for("stepping")
    time.sleep(3)
    assert ranks.processes[0].poll() is None
    ranks.child(1).suspend()
    codes, said = ranks.ends()
    assert codes == [124, 124]
    assert "error[124]: rank 1 gave no beat for train.watchdog_seconds" in said[1]
    assert "error[124]: rank 1 ended: rank 1 gave no beat" in said[0]


def test_a_child_stops_and_goes_on_with_its_parent(start):
    ranks = start(STEPS + "link.keep_beating(0); forever()")
    ranks.wait_for("stepping")
    child = ranks.child(0)
    for change, status in (("suspend", "stopped"), ("resume", "sleeping")):
        getattr(psutil.Process(ranks.processes[0].pid), change)()
        until = time.monotonic() + 20
        while child.status() != status:
            assert time.monotonic() < until
            time.sleep(0.05)
