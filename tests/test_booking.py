"""A plan is of the program that runs, and never says more than it knows."""

import json

import jax
import pytest

from dpo_jax import booking, build
from dpo_jax.cli import common
from dpo_jax.config import stated
from dpo_jax.errors import ConfigError, DeviceError
from dpo_jax.sharding import chips
from dpo_jax.wiring import compiling, digests, forecast, programs

TINY = {"data.max_tokens": 32, "data.max_prompt_tokens": 8, "batch.pairs": 8}


def config(**keys):
    """DPO from scratch on the embedded data, two steps."""
    made = common.load_config("quickstart")
    given = {
        **{"model.path": "", "model.preset": "tiny", "eval.rollouts": 0},
        **{"data.eval": "", "train.steps": 2, "checkpoint.every_steps": 0},
        **TINY,
    }
    made.update_from_flattened_dict({**given, **keys})
    return made


@pytest.fixture(scope="module")
def made():
    """A plan for eight devices of a CPU, parameters spread over four."""
    keys = {"mesh.data": 2, "mesh.fsdp": 4, "data.layout": "padded"}
    return booking.plan(booking.Planned(config(**keys)), "cpu:8")


def test_a_run_logs_the_digest_that_its_plan_has(tmp_path, caplog):
    """The same function wires both; rows are read, so the shapes are equal too."""
    common.setup_logging()
    planned = booking.Planned(config(), rows=True)
    of_plan = booking.plan(planned, "cpu:8").programs[-1]
    with caplog.at_level("INFO"):
        build.run(config(), tmp_path / "run")
    said = [r.getMessage() for r in caplog.records if "digest" in r.getMessage()]
    assert [line for line in said if line.startswith("train step")] == [
        line for line in said if line.endswith(of_plan.digest)
    ]
    assert said


def test_one_changed_key_is_another_program():
    """β is an argument of the program, the width of its logits' chunks is not."""
    digest = lambda c: booking_digest(booking.Planned(c))  # noqa: E731
    same = digest(config())
    assert digest(config(**{"loss.beta": 0.7, "optimizer.lr": 1e-3})) == same
    assert digest(config(**{"model.logits_chunk": 8})) != same
    assert digest(config(**{"loss.name": "ipo"})) != same


def booking_digest(planned):
    """Lowers the step without compiling it."""
    parts = booking.parts_of(planned, jax.devices()[:2])
    with jax.sharding.use_abstract_mesh(parts.mesh.abstract_mesh):
        step = programs.of_step(parts)[-1]
        return digests.digest_of(step.run.lower(*step.given.values()))


def test_a_run_says_that_it_is_not_what_was_planned(tmp_path, made):
    (tmp_path / digests.PLAN).write_text(booking.as_json(made, {}))
    shape = (made.microbatches, made.shape.rows, made.shape.tokens)
    of_plan = made.programs[-1].digest
    assert digests.mismatches(tmp_path, "train step", shape, of_plan) == []
    assert digests.mismatches(tmp_path, "train step", (1, 2, 3), "other") == []
    assert digests.mismatches(tmp_path / "no", "train step", shape, "other") == []
    (fault,) = digests.mismatches(tmp_path, "train step", shape, "other")
    assert of_plan in fault and "run plan again" in fault
    text = (tmp_path / digests.PLAN).read_text().replace(jax.__version__, "0.0.1")
    (tmp_path / digests.PLAN).write_text(text)
    (fault,) = digests.mismatches(tmp_path, "train step", shape, "other")
    assert f"jax 0.0.1 → {jax.__version__}" in fault


def test_rows_are_as_long_as_the_configuration_allows(made):
    assert made.shape.tokens == 32 and made.shape.rows == 16  # a row a response
    assert made.shape.scored == 32 and made.microbatches == 1  # 24, in sixteens
    assert made.processes == {0: list(range(16))}


def test_what_lies_on_a_device_is_a_share_of_the_state(made):
    """Four shards of parameters, of both moments' one and of the reference."""
    whole = sum(leaf.size * 4 for leaf in jax.tree.leaves(params()))
    held = made.resident
    assert held["parameters"] == held["reference"]
    assert whole / 4 <= held["parameters"] < 1.2 * whole / 4  # norms are on each
    assert held["parameters"] == pytest.approx(held["optimizer"], rel=0.01)
    step = made.programs[-1]
    assert step.memory.aliased > 0.95 * (held["parameters"] + held["optimizer"])
    read = sum(step.held.values()) - held["reference"]  # its columns are in the batch
    assert read == pytest.approx(step.memory.arguments, rel=0.01)


def test_what_the_step_does_not_read_lies_beside_it(made):
    step, waiting = made.programs[-1], 2 * made.programs[-1].held["batch and rest"]
    needed = forecast.needed_of([step], sum(made.resident.values()))
    beside = needed - step.memory.peak - waiting
    assert beside == pytest.approx(made.resident["reference"], rel=0.01)


def params():
    planned = booking.Planned(config())
    return booking.parts_of(planned, jax.devices()[:1]).trainer.abstract.params


def test_a_number_that_the_compiler_does_not_give_is_unknown(made):
    """All-zero analyses were seen on a GPU: never a reason to say that it fits."""

    class Nothing:
        def memory_analysis(self):
            return None

    class Zero:
        argument_size_in_bytes = output_size_in_bytes = alias_size_in_bytes = 0
        temp_size_in_bytes = generated_code_size_in_bytes = 0

        def memory_analysis(self):
            return self

    assert compiling.memory_of(Nothing(), computes=True) is None
    assert compiling.memory_of(Zero(), computes=False) is None
    some = made.programs[-1]
    unknown = [some._replace(memory=None), some]
    assert forecast.needed_of(unknown, 0) is None
    assert forecast.fits(unknown, None, 2**40) is None
    assert forecast.fits([some], 1, None) is None
    assert forecast.fits([some], 95, 100) is True
    assert forecast.fits([some], 96, 100) is False
    assert forecast.fits([some._replace(refused="too large")], 1, 100) is False
    said = booking.as_text(made._replace(needed=None, fits=None), config().data)
    assert "unknown whether it fits" in said


def test_a_plan_is_json_and_text(made):
    said = json.loads(booking.as_json(made, {"XLA_FLAGS": "--x"}))
    assert said["identity"]["flags"] == {"XLA_FLAGS": "--x"}
    assert said["identity"]["programs"]["train step"] == made.programs[-1].digest
    assert said["needed"] == made.needed and said["fits"] is None
    text = booking.as_text(made, config().data)
    assert "cpu:8: 8 devices (cpu), 1 processes; mesh data 2 × fsdp 4" in text
    assert "all-reduce" in text and "state/params/layers/mlp/up/kernel" in text


def test_spans_of_rows():
    assert booking.spans([0, 1, 2, 5, 8, 9]) == "0-2, 5, 8-9"


def test_a_topology_that_is_written_wrong_is_refused():
    with pytest.raises(ConfigError, match="Known: cpu, v4, v5e, v5p, v6e"):
        chips.parse("v5:2x2")
    with pytest.raises(ConfigError, match="write it as"):
        chips.parse("v4:2*2")
    with pytest.raises(DeviceError, match="needs 9 devices.*DPO_JAX_CPU_DEVICES=9"):
        booking.devices_of("cpu:9")
    assert chips.parse("v4:2x2x4") == ("v4", (2, 2, 4))


def test_without_libtpu_a_cpu_stands_in_and_says_so(monkeypatch, made):
    monkeypatch.setattr(booking, "has_libtpu", lambda: False)
    devices, fake = booking.devices_of("v5e:2x4")
    assert len(devices) == 8 and fake
    said = booking.as_text(made._replace(fake=True, topology="v5e:2x4"), config().data)
    assert "libtpu is not installed: CPU devices stand in" in said
    with pytest.raises(ConfigError, match="with libtpu installed"):
        booking.check_flags("v5e:2x4", True)


def test_axes_that_do_not_divide_are_named():
    """The word-level vocabulary has 61 ids, which 2 does not divide."""
    planned = booking.Planned(config(**{"mesh.tensor": 2}))
    parts = booking.parts_of(planned, jax.devices()[:8])
    told = forecast.dropped(parts)
    assert any("tensor does not divide the 61 of embed/tokens" in line for line in told)
    assert stated(config(), {}) is not None
