"""A worker walks a list: with trials that end at once, as they are told."""

import signal
import threading
import time
from pathlib import Path

import pytest
from launch_cases import Stub, chain, finish, load, walk

from dpo_jax.folders import Bucket
from dpo_jax.launch import processes, states, worker
from dpo_jax.launch.attempts import Claims, folder_of, read_all
from dpo_jax.launch.hosts import LEASE
from dpo_jax.launch.logs import Log
from dpo_jax.launch.trial import Trial, plan
from dpo_jax.launch.worker import Rules, Worker, watched
from dpo_jax.train import runfolder


@pytest.fixture
def planned(tmp_path):
    return chain(tmp_path)


def made(out, name):
    return [(a.code, a.line) for a in read_all(folder_of(str(out), name))]


def test_all_is_done_once_in_order_and_not_again(tmp_path, planned):
    stub = Stub(planned)
    ended, told = walk(tmp_path, planned, stub)
    assert ended == (0, {}, []) and stub.started == ["base", "one", "two", "last"]
    assert "one: done, step 3" in told
    assert stub.environments[0]["A"] == "1"
    assert stub.environments[0][LEASE] == f"{tmp_path}/.sweep/base/0002.json"
    ended, told = walk(tmp_path, planned, stub)
    assert ended.code == 0 and len(stub.started) == 4
    assert told == [f"{n}: done, step 3" for n in ("base", "one", "two", "last")]


def test_who_waits_for_a_failure_fails_by_name_and_the_rest_is_done(tmp_path, planned):
    """I5; and a sweep that is launched again tries each failure once more."""
    stub = Stub(planned, {"two": [6, 6]})
    ended, _ = walk(tmp_path, planned, stub)
    assert ended.code == 9 and stub.started == ["base", "one", "two"]
    assert ended.failed == {
        "two": "error[6]: two said 6",
        "last": "last waits for two, which failed",
    }
    assert walk(tmp_path, planned, stub)[0] == ended
    assert stub.started == ["base", "one", "two", "two"]
    assert walk(tmp_path, planned, stub)[0].code == 0
    assert made(tmp_path, "two") == [(6, "error[6]: two said 6")] * 2 + [(0, "")]


@pytest.mark.parametrize(
    "preemptions", [20, pytest.param(200, marks=pytest.mark.nightly)]
)
def test_budget_of_failures_and_many_preemptions(tmp_path, planned, preemptions):
    """I4: being told to stop costs nothing, a fault of one's own is counted."""
    stub = Stub(planned, {"base": preemptions * [75] + 3 * [70]})
    for _ in range(preemptions):
        ended, _ = walk(tmp_path, planned, stub)
        assert ended == (75, {}, ["base", "one", "two", "last"])
    for _ in range(3):
        ended, _ = walk(tmp_path, planned, stub)
        assert ended.code == 9 and ended.failed["base"] == "error[70]: base said 70"
    ended, _ = walk(tmp_path, planned, stub)
    assert len(stub.started) == preemptions + 3 and ended.code == 9
    assert "after 3 failures it is not tried again; see --fail" in ended.failed["base"]
    assert walk(tmp_path, planned, stub, failures=4)[0].code == 0


def test_kills_and_lost_peers_are_launched_again_at_once(tmp_path, planned):
    stub = Stub(planned, {"base": [137, 71, 124, 143]})
    assert walk(tmp_path, planned, stub)[0].code == 0
    assert stub.started[:5] == ["base"] * 5
    stub = Stub(planned, {"one": 40 * [137]})
    (tmp_path / "one" / "results.json").unlink()
    ended, _ = walk(tmp_path, planned, stub)
    assert ended.code == 9 and stub.started == ["one"] * 20
    assert "the last of 20 like it" in ended.failed["one"]


def test_an_end_with_0_and_nothing_done_is_a_failure(tmp_path, planned):
    """Done is what the run folder says, not what a launcher's code says."""
    stub = Stub(planned)

    def start(arguments, log, environment):
        process = stub(arguments, log, environment)
        (tmp_path / "base" / "report.html").unlink()
        return process

    ended, _ = walk(tmp_path, planned, start)
    assert ended.code == 9
    assert ended.failed["base"] == f"it ended with 0 and left {tmp_path}/base undone"


def test_a_trial_of_anothers_is_not_started(tmp_path, planned):
    other = Claims("other", 60.0).take(folder_of(str(tmp_path), "one"), "id")
    assert other is not None
    stop = processes.Stop()
    stub = Stub(planned)

    def start(arguments, log, environment):
        process = stub(arguments, log, environment)
        if stub.started[-1] == "last":
            stop.take(signal.SIGTERM, None)
        return process

    ended, _ = walk(tmp_path, planned, start, stop)
    assert ended == (75, {}, ["one"]) and stub.started == ["base", "two", "last"]


def test_only_runs_one_and_comes_back_when_it_is_too_early(tmp_path, planned):
    stub = Stub(planned)
    assert walk(tmp_path, planned, stub, only="two")[0] == (75, {}, ["two"])
    assert not stub.started
    assert walk(tmp_path, planned, stub, only="base")[0].code == 0
    assert walk(tmp_path, planned, stub, only="two")[0] == (0, {}, [])
    assert stub.started == ["base", "two"]


def test_too_early_pauses_and_goes_on_when_the_other_is_done(tmp_path, planned):
    """An engine that starts it again at once does not spin; a signal ends the pause."""
    stub, began = Stub(planned), time.monotonic()
    timer = threading.Timer(0.3, lambda: finish(planned[0]))
    timer.start()
    assert planned[0].name == "base"
    ended, told = walk(tmp_path, planned, stub, only="one", pause=60)
    timer.join()
    assert ended.code == 0 and stub.started == ["one"] and time.monotonic() - began < 50
    assert told[0] == "one: waits for base"
    stop = processes.Stop()
    timer = threading.Timer(0.3, stop.take, (signal.SIGTERM, None))
    timer.start()
    ended, _ = walk(tmp_path, planned, stub, stop, only="last", pause=60)
    timer.join()
    assert ended == (75, {}, ["last"]) and time.monotonic() - began < 50


def test_eight_workers_at_once_do_each_trial_once(tmp_path, fake_gcs, monkeypatch):
    """On a store that loses answers, and none can see the others' processes."""
    monkeypatch.setattr(Bucket, "rest", 0.05)
    monkeypatch.setattr(worker, "REST", 0.05)
    monkeypatch.setattr(processes, "mark", lambda pid: "")
    for number in range(8):
        what = ("lost", 429, 503)[number % 3]
        fake_gcs.fault("POST", "/lease/.*json", what, after=3 * number)
        fake_gcs.fault("GET", "/lease/.*json", "dropped", after=7 * number)
    trials = [Trial(f"t{i}", "tiny", {"seed": i}) for i in range(12)]
    planned, walks = plan(trials, str(tmp_path), load), []
    stub = Stub(planned)

    def start(*arguments):
        time.sleep(0.05)  # so that others come by
        return stub(*arguments)

    def work(number):
        told = []
        rules = Rules(first=number)
        mine = Worker("gs://bucket/out", f"w{number}", rules, {}, told.append, start)
        walks.append(mine.walk(planned, processes.Stop()))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert walks == [(0, {}, [])] * 8
    assert sorted(stub.started) == sorted(trial.name for trial in trials)
    for trial in trials:
        made = read_all(folder_of("gs://bucket/out", trial.name))
        assert [a.code for a in made][0] == 0 and {a.code for a in made} == {0}


def test_too_early_fails_by_name_when_the_other_failed(tmp_path, planned):
    """It does not come back for ever to a trial that nobody runs."""
    stub = Stub(planned, {"base": [6]})
    assert walk(tmp_path, planned, stub, only="base")[0].code == 9
    ended, _ = walk(tmp_path, planned, stub, only="one")
    assert ended == (9, {"one": "one waits for base, which failed"}, [])
    assert walk(tmp_path, planned, stub, only="base")[0].code == 0
    assert walk(tmp_path, planned, stub, only="one")[0].code == 0


def test_a_signal_reaches_the_trial(tmp_path, planned):
    """It commits and ends with 75; before it takes signals it ends with 143."""
    for code in (75, 143):
        stop, stub = processes.Stop(), Stub(planned, {"base": [code]})
        process = []

        def start(*arguments, stop=stop, stub=stub, process=process):
            process.append(stub(*arguments))
            stop.take(signal.SIGTERM, None)
            return process[0]

        ended, _ = walk(tmp_path, planned, start, stop)
        assert ended.code == 75 and ended.left[0] == "base"
        assert process[0].signals == [signal.SIGTERM]
    assert [code for code, _ in made(tmp_path, "base")] == [75, 75]


def test_what_the_plan_says_of_run_folders(tmp_path, planned):
    base, one, two, last = planned
    words = lambda: [s.word for s in states.states_of(planned).values()]  # noqa: E731
    assert words() == ["new", "waiting", "waiting", "waiting"]
    finish(base)
    assert words() == ["done", "new", "new", "waiting"]
    finish(one)
    (tmp_path / "one" / "results.json").unlink()
    assert states.state_of(one) == ("begun", "from the beginning")
    (tmp_path / "one" / "checkpoints" / "20").mkdir(parents=True)
    (tmp_path / "one" / "checkpoints" / "20.corrupt").mkdir()
    assert states.state_of(one) == ("begun", "from step 20")
    (tmp_path / "one" / "results.json").write_text('{"step": 2}')
    assert states.state_of(one).word == "begun"  # of 3 steps
    finish(two._replace(config=one.config), two.folder)
    state = states.state_of(two)
    assert state.word == "damaged" and "loss.beta: 0.1 → 0.2" in state.detail
    (tmp_path / "last").mkdir()
    (tmp_path / "last" / "config.json").write_text("{")
    state = states.state_of(last)
    assert (
        state.word == "damaged" and "config.json is not a JSON object" in state.detail
    )


def test_what_a_trial_compiled_is_told(tmp_path, planned):
    """A sweep over floats compiles once: the second trial reads."""
    timing = tmp_path / "base" / "timing.json"
    timing.parent.mkdir()
    timing.write_text('{"programs": {"compiled": 1, "read": 2}}')
    _, told = walk(tmp_path, planned, Stub(planned))
    assert "base: done, step 3; 1 programs compiled, 2 read" in told
    assert "one: done, step 3" in told
    timing.write_text('{"programs": []}')
    assert states.programs(planned[0]) == ""


def test_a_run_that_a_process_holds_is_running(tmp_path, planned):
    base = planned[0]
    with runfolder.claim(base.folder, first=True):
        state = states.state_of(base)
        assert state.word == "running" and state.detail.startswith("pid ")
    assert states.state_of(base).word == "new"
    (Path(base.folder) / ".lock").write_text("pid 1 on nowhere")  # it was killed
    assert states.state_of(base).word == "new"
    assert (Path(base.folder) / ".lock").read_text() == "pid 1 on nowhere"


def test_a_process_that_prints_nothing_is_ended(tmp_path):
    """Its worker beats, and would for ever; what it prints is its progress."""
    lease, _ = Claims("me", 60.0).take(folder_of(str(tmp_path), "one"), "id")
    folder = folder_of(str(tmp_path), "one")
    log = Log(folder, "0001.log")
    script = "i=0; while [ $i -lt 8 ]; do echo $i; i=$((i+1)); sleep 0.3; done; "
    started = processes.spawn(["sh", "-c", script + "sleep 600"], log.path, {})
    assert watched(started, lease, log, silent_seconds=1.5) == 124
    assert log.tail(100).split() == [b"%d" % i for i in range(8)]
    quick = processes.spawn(["sh", "-c", "sleep 1; exit 3"], log.path, {})
    assert watched(quick, lease, log, silent_seconds=0.0) == 3


def test_a_damaged_folder_fails_without_a_launch(tmp_path, planned):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("[]")
    stub = Stub(planned)
    ended, _ = walk(tmp_path, planned, stub)
    assert ended.code == 9 and not stub.started
    assert ended.failed["base"].startswith("error[8]: ")
    assert ended.failed["last"] == "last waits for two, which failed"
