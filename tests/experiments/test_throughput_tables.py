"""What the throughput experiment adds up; what it times is for quiet machines."""

import math

import jax
import pytest

from dpo_jax.models.decoder import abstract_params
from experiments.throughput import generation, inputs, run, shapes, trace
from experiments.throughput.trace import Span

PUBLISHED = {  # parameters, as the hub's model pages count them
    "llama-3.2-1b": 1_235_814_400,
    "llama-2-7b": 6_738_415_616,
    "llama-3-8b": 8_030_261_248,
    "pythia-2.8b": 2_775_208_960,
}


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_shapes_have_as_many_parameters_as_the_published_models(name):
    leaves = jax.tree.leaves(abstract_params(shapes.spec_of(name)))
    assert sum(math.prod(leaf.shape) for leaf in leaves) == PUBLISHED[name]


def test_time_in_which_kernels_overlap_counts_once():
    spans = [Span("a", 20, 30), Span("b", 0, 10), Span("c", 5, 12), Span("d", 6, 7)]
    assert trace.busy(spans) == (22, 8)  # 0 to 12 and 20 to 30, idle between
    told = trace.describe("/device:GPU:0", spans, top=1)
    assert "idle 26.7%, at most 0 µs" in told
    assert told.splitlines()[-1] == "  33.3%  a"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_NTT", "matrix products"),
        ("gemm_fusion_dot_15", "matrix products"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16", "attention"),
        ("loop_select_fusion_6", "elementwise"),
        ("input_add_reduce_fusion", "reductions"),
        ("memcpy128", "copies"),
        ("something else", "others"),
    ],
)
def test_kernels_are_sorted_by_their_names(name, kind):
    assert trace.kind_of(name) == kind


def test_a_table_is_relative_to_the_fastest_trl_or_to_the_first():
    def one(name, seconds):
        return run.Result(name, seconds, 10**9, [0.7, 0.6], math.nan)

    ours = [one("padded, live", 8.0), one("prefix_shared, cached", 2.0)]
    least = run.Needed(tokens=100.0, seconds=1.0)
    last = run.table(ours, least, pairs=32).splitlines()[-1]
    assert "| 16.000 | 4.00 | 50 | 50.0% | 1.00 | – | 0.700000, 0.600000 |" in last
    theirs = [one("TRL, 1 at a time, cached", 5.0), one("TRL, 8 at a time", 9.0)]
    both = run.table(ours + theirs, least, pairs=32)
    assert "| × TRL |" in both and "| prefix_shared, cached | 16.000 | 2.50 |" in both


def test_the_sample_is_the_same_every_time():
    rows = [{"prompt": str(number)} for number in range(50)]
    drawn = inputs.sample(rows, 20)
    assert drawn == inputs.sample(rows, 20) and drawn != rows[:20]
    assert len({row["prompt"] for row in drawn}) == 20


def test_generation_is_timed_in_turns_and_the_best_counts(monkeypatch):
    """Two runs of 6 and 3 tokens, of which each is warmed up once."""
    clock = iter([0.0, 2.0, 0.0, 1.0, 0.0, 1.0, 0.0, 3.0])
    monkeypatch.setattr(generation.time, "perf_counter", lambda: next(clock))
    calls = []
    runs = (lambda: calls.append("ours") or 6), (lambda: calls.append("theirs") or 3)
    assert generation.best_of(2, *runs) == [6.0, 3.0]
    assert calls == ["ours", "theirs"] * 3
    text = generation.table([generation.Row(32, 4, "plain", 6.0, 3.0)])
    assert text.endswith("| 32 | 4 | plain | 6.0 | 3.0 | 2.00 |\n")
