"""FLOPs by hand, and the peak that they are held against."""

import itertools
import types

import jax
import numpy as np
import pytest
from etils import epath

from dpo_jax.train import throughput
from dpo_jax.train.throughput import Sizes


def test_forward_flops_by_hand():
    """2·(10·7 + 5·3) for kernels, 4·6·20 for attention: 170 + 480."""
    found = throughput.forward_flops(Sizes(10, 5, 6), tokens=7, scored=3, visible=20)
    assert found == 650


@pytest.fixture
def on(monkeypatch):
    """Returns what puts the run on other devices; a matmul reaches 5 FLOP/s."""

    def put(kind, platform, count):
        device = types.SimpleNamespace(device_kind=kind, platform=platform)
        monkeypatch.setattr(jax, "devices", lambda: [device] * count)
        monkeypatch.setattr(jax, "device_count", lambda: count)
        throughput.peak.cache_clear()

    measured = lambda dtype, size, seconds: 5.0  # noqa: E731
    monkeypatch.setattr(throughput, "matmul_flops_per_second", measured)
    monkeypatch.setattr(throughput, "best_so_far", lambda measure, file: measure(0.1))
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
        throughput.matmul_flops_per_second("float32", size=16, seconds=0.0)
    assert len(seen[0].sharding.device_set) == 1


def test_matmul_is_the_best_of_several(monkeypatch):
    """2·64³ operations; the best of what the watch says, not the first or the last."""
    watch = itertools.chain([0.5, 0.25, 2.0], itertools.repeat(1.0))
    runs = []

    def seconds_of(run):
        runs.append(run().shape)
        return next(watch)

    monkeypatch.setattr(throughput, "seconds_of", seconds_of)
    found = throughput.matmul_flops_per_second("float32", size=64, seconds=0.1)
    assert found == 2 * 64**3 / 0.25
    assert len(runs) > 3 and set(runs) == {(64, 64)}


def test_a_large_matrix_repeats_the_drawn_numbers(monkeypatch):
    monkeypatch.setattr(throughput, "DRAWN", 16)
    seen = []
    monkeypatch.setattr(throughput, "seconds_of", lambda run: seen.append(run()) or 1.0)
    throughput.matmul_flops_per_second("float32", size=64, seconds=0.0)
    assert seen[0].shape == (64, 64)
    np.testing.assert_array_equal(seen[0][:16, :16], seen[0][48:, 16:32])


def test_a_busy_moment_does_not_lower_what_a_host_has_reached(tmp_path):
    file, asked = epath.Path(tmp_path / "cache" / "matmul"), []

    def reach(value):
        return lambda seconds: asked.append(seconds) or value

    values = [throughput.best_so_far(reach(v), file) for v in (3.0, 1.5, 4.0, 2.0)]
    assert values == [3.0, 3.0, 4.0, 4.0]
    first, again = throughput.FIRST_SECONDS, throughput.AGAIN_SECONDS
    assert asked == [first, again, again, again]
    assert throughput.best_so_far(reach(2.0), None) == 2.0
    file.write_text("damaged")
    assert throughput.best_so_far(reach(2.0), file) == float(file.read_text()) == 2.0
    nowhere = epath.Path(tmp_path / "cache" / "matmul" / "below")
    assert throughput.best_so_far(reach(1.0), nowhere) == 1.0


def test_what_is_kept_lies_beside_the_compilation_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(
        throughput, "matmul_flops_per_second", lambda dtype, size, seconds: 7.0
    )
    monkeypatch.setattr(throughput.platform, "node", lambda: "host/of mine")
    before = jax.config.values["jax_compilation_cache_dir"]
    throughput.peak.cache_clear()
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    try:
        assert throughput.peak("float32").flops_per_second == 7.0
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        throughput.peak.cache_clear()
    [file] = tmp_path.iterdir()
    assert file.read_text() == "7.0"
    assert file.name.startswith("matmul-host-of-mine-cpu-")
    assert file.name.endswith("-float32")
