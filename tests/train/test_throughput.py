"""FLOPs by hand, and the peak that they are held against."""

import itertools
import types

import jax
import pytest

from dpo_jax.train import throughput
from dpo_jax.train.throughput import Sizes


def test_forward_flops_by_hand():
    """2·(10·7 + 5·3) for kernels, 4·6·20 for attention: 170 + 480."""
    found = throughput.forward_flops(Sizes(10, 5, 6), tokens=7, scored=3, visible=20)
    assert found == 650


def test_the_backward_pass_costs_twice_the_forward_pass():
    assert throughput.step_flops(10.0) == 30.0
    assert throughput.step_flops(10.0, 4.0) == 34.0


@pytest.fixture
def on(monkeypatch):
    """Returns what puts the run on other devices; a matmul reaches 5 FLOP/s."""

    def put(kind, platform, count):
        device = types.SimpleNamespace(device_kind=kind, platform=platform)
        monkeypatch.setattr(jax, "devices", lambda: [device] * count)
        monkeypatch.setattr(jax, "device_count", lambda: count)
        throughput.peak.cache_clear()

    measured = lambda dtype, size: 5.0  # noqa: E731
    monkeypatch.setattr(throughput, "matmul_flops_per_second", measured)
    yield put
    throughput.peak.cache_clear()


@pytest.mark.parametrize(
    "kind, platform, dtype, value, words",
    [
        ("TPU v4", "tpu", "bfloat16", 4 * 275e12, "4 × TPU v4, bfloat16"),
        ("NVIDIA H200", "gpu", "bfloat16", 4 * 989.5e12, "NVIDIA H200, bfloat16"),
        ("NVIDIA H200", "gpu", "float32", 4 * 5.0, "float32 matmul as measured"),
        ("TPU v99", "tpu", "bfloat16", 4 * 5.0, "4 × TPU v99, bfloat16 matmul"),
        ("cpu", "cpu", "bfloat16", 5.0, "1 × cpu, bfloat16 matmul as measured"),
    ],
)
def test_peak_is_listed_or_measured(on, kind, platform, dtype, value, words):
    """Fake devices of a CPU share its cores, so they count once."""
    on(kind, platform, 4)
    found = throughput.peak(dtype)
    assert found.flops_per_second == value and words in found.source


def test_matmul_runs_on_one_device_whatever_the_mesh():
    """On all eight it would run eight times on the same cores."""
    seen = []
    keep = lambda run: seen.append(run()) or 1.0  # noqa: E731
    mesh = jax.make_mesh((8,), ("data",))
    with pytest.MonkeyPatch.context() as patch, jax.set_mesh(mesh):
        patch.setattr(throughput, "seconds_of", keep)
        patch.setattr(throughput, "MEASURING_SECONDS", 0.0)
        throughput.matmul_flops_per_second("float32", size=16)
    assert len(seen[0].sharding.device_set) == 1


def test_matmul_is_the_best_of_several(monkeypatch):
    """2·64³ operations; the best of what the watch says, not the first or the last."""
    watch = itertools.chain([0.5, 0.25, 2.0], itertools.repeat(1.0))
    runs = []

    def seconds_of(run):
        runs.append(run().shape)
        return next(watch)

    monkeypatch.setattr(throughput, "seconds_of", seconds_of)
    monkeypatch.setattr(throughput, "MEASURING_SECONDS", 0.1)
    found = throughput.matmul_flops_per_second("float32", size=64)
    assert found == 2 * 64**3 / 0.25
    assert len(runs) > 3 and set(runs) == {(64, 64)}
