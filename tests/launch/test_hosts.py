"""Hosts that run each trial together: who is announced, who waits, who is killed."""

import collections
import signal
import sys
import time
from pathlib import Path

import pytest
from processes import starting, wait_for
from racing import planned

from dpo_jax.launch import states
from dpo_jax.launch.hosts import Call, Group, Hosts, Leader, own_address

SCRIPT = Path(__file__).with_name("two_hosts.py")
LIMIT = 240  # seconds


@pytest.fixture
def host(tmp_path, fake_gcs):
    """Starts hosts; none outlives the test."""
    variables = {"TWO_HOSTS_EVENTS": str(tmp_path)}
    variables["STORAGE_EMULATOR_HOST"] = fake_gcs.url
    with starting(variables) as start:
        yield lambda out, index, seconds=120: start(
            sys.executable, SCRIPT, out, index, seconds
        )


def events(folder):
    """Lists (time, trial, rank, address, what) of all that happened so far."""
    path = folder / "events.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    split = [line.split(" ", 4) for line in lines]
    return [(float(at), *rest) for at, *rest in split]


def assert_done_once(folder, out):
    """Each trial has ended once on both hosts; no two attempts have one address."""
    seen = events(folder)
    ends = collections.Counter(
        (trial, rank) for _, trial, rank, _, w in seen if w == "ends"
    )
    assert ends == {(f"t{i}", r): 1 for i in range(2) for r in "01"}
    for trial in planned(out)[:2]:
        kept = trial._replace(folder=str(folder / "runs" / trial.name))
        assert states.state_of(kept).word == "done"
    begun = collections.defaultdict(list)
    for at, trial, rank, place, what in seen:
        begun[trial, place].append((at, rank, what))
    for ranks in begun.values():
        assert {rank for _, rank, _ in ranks} == {"0", "1"}
    return seen


@pytest.mark.faults
@pytest.mark.parametrize(
    "kind", [pytest.param("disk", marks=pytest.mark.nightly), "bucket"]
)
def test_two_hosts_do_two_trials_and_a_follower_is_killed(tmp_path, host, kind):
    """It starts late, dies in a trial, and comes back: nobody meets a ghost."""
    out = tmp_path / "out" if kind == "disk" else "gs://bucket/out"
    leader = host(out, 0)
    wait_for(lambda: events(tmp_path))
    follower = host(out, 1)
    wait_for(lambda: any("step 3" in e[-1] for e in events(tmp_path)))
    follower.kill()
    time.sleep(2)
    again = host(out, 1)
    assert again.wait(LIMIT) == 0 and leader.wait(LIMIT) == 0
    seen = assert_done_once(tmp_path, out)
    lost = [e for e in seen if e[-1] == "lost"]
    assert [(trial, rank) for _, trial, rank, _, _ in lost] == [(seen[0][1], "0")]
    first = {place for _, trial, _, place, _ in seen if trial == seen[0][1]}
    assert len(first) == 2  # an address for each attempt
    last = max(at for at, trial, *_, place, _ in seen if place == lost[0][3])
    new = min(at for at, *_, place, _ in seen if place in first - {lost[0][3]})
    assert new > last  # no rank of the second attempt beside one of the first


@pytest.mark.faults
def test_a_leader_that_is_killed_comes_back_and_the_follower_goes_on(tmp_path, host):
    out = tmp_path / "out"
    leader, follower = host(out, 0), host(out, 1)
    wait_for(lambda: any("step 3" in e[-1] for e in events(tmp_path)))
    leader.send_signal(signal.SIGKILL)
    again = host(out, 0)
    assert again.wait(LIMIT) == 0 and follower.wait(LIMIT) == 0
    assert_done_once(tmp_path, out)


def test_hosts_that_are_missing_end_a_worker_in_time(tmp_path, host):
    """71, by which engines start it again; of a leader that says nothing as well."""
    follower = host(tmp_path / "out", 1, 2)
    assert follower.wait(LIMIT) == 71
    group = Group(str(tmp_path / "out"), Hosts(2, 0, "slice"))
    leader = Leader(group, Hosts(2, 0, "slice", "127.0.0.1", 0.1))
    assert leader.assemble(lambda: True) == ""
    leader.call("t0", 1, "")
    leader.dismiss()
    told = leader.assemble(lambda: True)
    assert told == "host 1 of slice: its rank of t0 has not ended"
    group.say(Call(1), "1.ended")
    assert leader.assemble(lambda: True) == ""


def test_every_host_has_an_address():
    assert own_address().count(".") == 3
