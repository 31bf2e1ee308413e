"""The loop with three-line stubs: order of events, late reading, stops, skips.

The stub's state is the number of steps taken, its batches are step numbers, and every
call writes its name into one list.
"""

import dataclasses
import functools
import itertools

import pytest

from dpo_jax.errors import NonFiniteError, Preempted
from dpo_jax.train import loop

LAST = 6


PAIRS = {"pairs": 0}


class Stub:
    """Parts that write down what is asked of them."""

    def __init__(
        self, *, first=0, bad=(), stop_at=None, measures=PAIRS, compiling=(), turn=1
    ):
        self.compiling, self.turn = compiling, turn
        self.events, self.lines, self.saved = [], [], {}
        self.bad, self.stop_at, self.first = set(bad), stop_at, first
        self.now = functools.partial(next, itertools.count(1.0))
        self.functions = loop.Functions(
            step=self.step,
            next_batch=lambda state: state + 1,
            facts=lambda step, values: {
                "tokens": 8.0,
                "pairs": 4.0,
                "flops": 2.0,
                "pad": 0.5,
            },
            compiles=lambda step: step in self.compiling,
            now=self.now,
            evaluators={n: self.evaluator(n, every) for n, every in measures.items()},
            save=self.save,
            wait=lambda: self.events.append("wait"),
            log=lambda step, split, values: self.lines.append((step, split, values)),
            progress=lambda step, values: self.events.append(f"read {step}"),
            on_bad=lambda step: f"rows [{step}]",
            to_host=dict,
            stop=lambda step: step == self.stop_at,
        )

    def step(self, state, batch):
        assert batch == state + 1, "the batch of another step"
        self.events.append(f"step {batch}")
        return state + self.turn, {"loss": 1.0 / batch, "ok": batch not in self.bad}

    def evaluator(self, name, every):
        def measure(state):
            what = "evaluate" if name == "pairs" else name
            self.events.append(f"{what} {state}")
            yield ("loss" if name == "pairs" else name), 10.0 + state

        return loop.Evaluator(measure, every)

    def save(self, step, state, values):
        assert step == state
        self.events.append(f"save {step}")
        self.saved[step] = values

    def run(self, *, log=1, checkpoint=0, skip=False, measured=True, at_start=True):
        return loop.run(
            self.first,
            self.functions,
            first=self.first,
            last=LAST,
            cadence=loop.Cadence(log, checkpoint, self.turn),
            skip_nonfinite=skip,
            measured=measured,
            at_start=at_start,
        )

    def logged(self, split):
        return [step for step, name, _ in self.lines if name == split]


def test_metrics_are_read_one_step_late():
    stub = Stub(measures={})
    assert stub.run() == (LAST, {})
    assert stub.events[:5] == ["step 1", "step 2", "read 1", "step 3", "read 2"]
    assert stub.events[-4:] == ["read 5", "read 6", f"save {LAST}", "wait"]


def test_metrics_are_read_before_a_step_that_compiles():
    """Else the compiler's time, which no clock counts, would hide that of a step."""
    stub = Stub(measures={}, compiling=(1, 3))
    stub.run()
    assert stub.events[:4] == ["step 1", "step 2", "read 1", "read 2"]
    assert stub.events[4:7] == ["step 3", "step 4", "read 3"]


def test_metrics_are_read_before_an_evaluation_and_a_save():
    stub = Stub(measures={"pairs": 2})
    stub.run(checkpoint=3)
    assert stub.events == (
        ["evaluate 0", "step 1", "step 2", "read 1", "read 2", "evaluate 2"]
        + ["step 3", "read 3", "save 3", "step 4", "read 4", "evaluate 4"]
        + ["step 5", "step 6", "read 5", "read 6", "evaluate 6", "save 6", "wait"]
    )


def test_cadence_of_lines_evaluations_and_saves():
    stub = Stub(measures={"pairs": 4})
    state, results = stub.run(log=4, checkpoint=5)
    assert (state, results) == (LAST, {"loss": 10.0 + LAST})
    assert stub.logged("train") == [1, 4, 6]  # the first, every fourth, the last
    assert stub.logged("eval") == [0, 4, 6]
    assert list(stub.saved) == [5, 6]


def test_zero_means_at_the_end_only():
    stub = Stub()
    stub.run()
    assert stub.logged("eval") == [0, 6] and list(stub.saved) == [6]


def test_nothing_is_measured_at_the_start_if_so_asked():
    """A resumed run still makes up for what a stop left out."""
    stub = Stub(measures={"pairs": 3})
    stub.run(at_start=False)
    assert [e for e in stub.events if "evaluate" in e] == ["evaluate 3", "evaluate 6"]
    late = Stub(first=3, measures={"pairs": 3})
    late.run(at_start=False, measured=False)
    assert [e for e in late.events if "evaluate" in e] == ["evaluate 3", "evaluate 6"]


def test_save_carries_the_evaluation_of_its_own_state_only():
    """keep_best compares these: those of an older state would crown the wrong step."""
    stub = Stub(measures={"pairs": 2})
    stub.run(checkpoint=1)
    measured = {step: values.get("loss") for step, values in stub.saved.items()}
    assert measured == {1: None, 2: 12.0, 3: None, 4: 14.0, 5: None, 6: 16.0}


def test_line_holds_values_facts_and_timings():
    """The stub's watch moves by 1 s whenever it is read.

    That is twice around a batch (the next one's) and once when metrics are read, so
    step 2 takes 3 s.
    """
    stub = Stub()
    stub.run()
    step, split, values = stub.lines[2]
    assert (step, split, values["loss"], values["pad"]) == (2, "train", 0.5, 0.5)
    assert (values["step_seconds"], values["data_wait_seconds"]) == (3.0, 1.0)
    assert values["tokens_per_second"] == pytest.approx(8.0 / 3.0)
    assert values["pairs_per_second"] == pytest.approx(4.0 / 3.0)
    assert values["mfu"] == pytest.approx(2.0 / 3.0)
    assert not {"ok", "flops", "tokens", "pairs"} & values.keys()


def test_a_step_faster_than_the_peak_becomes_the_peak():
    """Of steps of 3 s, the fourth has work for 6: twice the peak.

    The last is read at once: 1 s with work for 2, as fast as the fourth.
    """
    stub = Stub()
    facts = stub.functions.facts

    def worth(step, values):
        return {**facts(step, values), "flops": 6.0 if step == 4 else 2.0}

    stub.functions = dataclasses.replace(stub.functions, facts=worth)
    stub.run()
    found = [v["mfu"] for _, split, v in stub.lines if split == "train"]
    assert found[1:] == pytest.approx([2 / 3, 2 / 3, 1.0, 1 / 3, 1.0])


def test_resumed_run_takes_the_steps_that_are_left():
    stub = Stub(first=4, measures={"pairs": 5})
    stub.run()
    assert stub.logged("train") == [5, 6] and stub.logged("eval") == [5, 6]
    assert "evaluate 4" not in stub.events


def test_run_resumed_behind_its_last_step_is_evaluated_and_nothing_else():
    stub = Stub(first=LAST)
    assert stub.run(checkpoint=1) == (LAST, {"loss": 10.0 + LAST})
    assert stub.lines == [] and stub.saved == {}


def test_stop_saves_waits_and_tells():
    stub = Stub(stop_at=3, measures={"pairs": 2})
    with pytest.raises(Preempted) as caught:
        stub.run(checkpoint=5)
    assert caught.value.step == 3
    assert stub.events[-4:] == ["step 3", "read 3", "save 3", "wait"]
    assert stub.logged("train") == [1, 2, 3]


def test_stop_saves_and_leaves_what_was_due_to_the_resumed_run():
    """The grace of a preemption is short, and no line of the run may be missing."""
    whole, cut = (Stub(measures={"pairs": 2}, stop_at=at) for at in (None, 4))
    whole.run()
    with pytest.raises(Preempted):
        cut.run()
    assert cut.events[-5:] == ["step 4", "read 3", "read 4", "save 4", "wait"]
    assert cut.saved == {4: {}}
    resumed = Stub(first=4, measures={"pairs": 2})
    resumed.run(measured=False)
    assert resumed.events[:2] == ["evaluate 4", "step 5"]
    lines = [(step, split) for step, split, _ in cut.lines + resumed.lines]
    assert sorted(lines) == sorted((step, split) for step, split, _ in whole.lines)
    unowed = Stub(first=3, measures={"pairs": 2})
    unowed.run(measured=False)  # after 3 steps nothing was due
    assert unowed.events[0] == "step 4"


def test_each_evaluator_has_its_cadence():
    stub = Stub(measures={"pairs": 2, "rollouts": 3})
    _, results = stub.run()
    assert [e for e in stub.events if e.startswith(("evaluate", "rollouts"))] == (
        ["evaluate 0", "rollouts 0", "evaluate 2", "rollouts 3", "evaluate 4"]
        + ["evaluate 6", "rollouts 6"]
    )
    assert results == {"loss": 16.0, "rollouts": 16.0}
    lines = {step: set(values) for step, split, values in stub.lines if split == "eval"}
    assert lines[2] == {"loss"} and lines[3] == {"rollouts"}
    assert lines[0] == lines[6] == {"loss", "rollouts"}


def test_things_happen_at_the_first_end_of_a_turn_at_or_behind_their_step():
    """Turns of 3 updates: what is due after 2 and 4 happens after 3 and 6."""
    stub = Stub(turn=3, measures={"pairs": 2})
    state, _ = stub.run(log=100, checkpoint=4)
    assert state == LAST and stub.logged("train") == [3, 6]  # the first, the last
    assert stub.logged("eval") == [0, 3, 6] and list(stub.saved) == [6]


def test_stop_at_the_last_step_is_the_end():
    stub = Stub(stop_at=LAST)
    assert stub.run()[0] == LAST
    assert list(stub.saved) == [LAST]


def test_non_finite_step_halts_before_the_next_save():
    stub = Stub(bad=[3])
    with pytest.raises(NonFiniteError, match=r"at step 3, rows \[3\].*of step 2"):
        stub.run(log=100, checkpoint=4)
    assert stub.logged("train") == [1, 3]  # its line is kept, whatever the cadence
    assert stub.saved == {}
    at_save = Stub(bad=[4])
    with pytest.raises(NonFiniteError):
        at_save.run(checkpoint=4)
    assert at_save.saved == {}


@pytest.mark.parametrize("bad", [[2], [1, 2, 3], [1, 2, 3, 5, 6], [1, 3, 5]])
def test_skips_within_the_budget_go_on(bad, caplog):
    stub = Stub(bad=bad)
    with caplog.at_level("WARNING", logger="absl"):
        assert stub.run(skip=True)[0] == LAST
    told = [f"step {step} is not finite, rows [{step}]; skipped" for step in bad]
    assert all(text in caplog.text for text in told)
    assert caplog.text.count("is not finite") == len(bad)


def test_skips_beyond_the_budget_stop():
    stub = Stub(bad=[2, 3, 4, 5])
    with pytest.raises(NonFiniteError, match="4 steps in a row.*last 5.*is 3"):
        stub.run(skip=True)
    assert stub.saved == {}
