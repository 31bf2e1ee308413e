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


class Stub:
    """Parts that write down what is asked of them."""

    def __init__(self, *, first=0, bad=(), stop_at=None, evaluates=True, compiling=()):
        self.compiling = compiling
        self.events, self.lines, self.saved = [], [], {}
        self.bad, self.stop_at, self.first = set(bad), stop_at, first
        self.now = functools.partial(next, itertools.count(1.0))
        self.parts = loop.Parts(
            step=self.step,
            next_batch=functools.partial(next, itertools.count(first + 1)),
            facts=lambda step: {"tokens": 8.0, "pairs": 4.0, "flops": 2.0, "pad": 0.5},
            compiles=lambda step: step in self.compiling,
            now=self.now,
            evaluate=self.evaluate if evaluates else None,
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
        return state + 1, {"loss": 1.0 / batch, "ok": batch not in self.bad}

    def evaluate(self, state):
        self.events.append(f"evaluate {state}")
        return {"loss": 10.0 + state}

    def save(self, step, state, values):
        assert step == state
        self.events.append(f"save {step}")
        self.saved[step] = values

    def run(self, *, log=1, evaluate=0, checkpoint=0, skip=False):
        return loop.run(
            self.first,
            self.parts,
            first=self.first,
            last=LAST,
            cadence=loop.Cadence(log, evaluate, checkpoint),
            skip_nonfinite=skip,
        )

    def logged(self, split):
        return [step for step, name, _ in self.lines if name == split]


def test_metrics_are_read_one_step_late():
    stub = Stub(evaluates=False)
    assert stub.run() == (LAST, {})
    assert stub.events[:5] == ["step 1", "step 2", "read 1", "step 3", "read 2"]
    assert stub.events[-4:] == ["read 5", "read 6", f"save {LAST}", "wait"]


def test_metrics_are_read_before_a_step_that_compiles():
    """Else the compiler's time, which no clock counts, would hide that of a step."""
    stub = Stub(evaluates=False, compiling=(1, 3))
    stub.run()
    assert stub.events[:4] == ["step 1", "step 2", "read 1", "read 2"]
    assert stub.events[4:7] == ["step 3", "step 4", "read 3"]


def test_metrics_are_read_before_an_evaluation_and_a_save():
    stub = Stub()
    stub.run(evaluate=2, checkpoint=3)
    assert stub.events == (
        ["evaluate 0", "step 1", "step 2", "read 1", "read 2", "evaluate 2"]
        + ["step 3", "read 3", "save 3", "step 4", "read 4", "evaluate 4"]
        + ["step 5", "step 6", "read 5", "read 6", "evaluate 6", "save 6", "wait"]
    )


def test_cadence_of_lines_evaluations_and_saves():
    stub = Stub()
    state, results = stub.run(log=4, evaluate=4, checkpoint=5)
    assert (state, results) == (LAST, {"loss": 10.0 + LAST})
    assert stub.logged("train") == [1, 4, 6]  # the first, every fourth, the last
    assert stub.logged("eval") == [0, 4, 6]
    assert list(stub.saved) == [5, 6]


def test_zero_means_at_the_end_only():
    stub = Stub()
    stub.run()
    assert stub.logged("eval") == [0, 6] and list(stub.saved) == [6]


def test_save_carries_the_evaluation_of_its_own_state_only():
    """keep_best compares these: those of an older state would crown the wrong step."""
    stub = Stub()
    stub.run(evaluate=2, checkpoint=1)
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
    facts = stub.parts.facts
    worth = lambda step: {**facts(step), "flops": 6.0 if step == 4 else 2.0}  # noqa: E731
    stub.parts = dataclasses.replace(stub.parts, facts=worth)
    stub.run()
    found = [v["mfu"] for _, split, v in stub.lines if split == "train"]
    assert found[1:] == pytest.approx([2 / 3, 2 / 3, 1.0, 1 / 3, 1.0])


def test_resumed_run_takes_the_steps_that_are_left():
    stub = Stub(first=4)
    stub.run(evaluate=5)
    assert stub.logged("train") == [5, 6] and stub.logged("eval") == [5, 6]
    assert "evaluate 4" not in stub.events


def test_run_resumed_behind_its_last_step_is_evaluated_and_nothing_else():
    stub = Stub(first=LAST)
    assert stub.run(checkpoint=1) == (LAST, {"loss": 10.0 + LAST})
    assert stub.lines == [] and stub.saved == {}


def test_stop_saves_waits_and_tells():
    stub = Stub(stop_at=3)
    with pytest.raises(Preempted) as caught:
        stub.run(evaluate=2, checkpoint=5)
    assert caught.value.step == 3
    assert stub.events[-4:] == ["step 3", "read 3", "save 3", "wait"]
    assert stub.logged("train") == [1, 2, 3]


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
