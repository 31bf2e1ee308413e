"""The train step compiled for real TPUs, on a machine without one.

Run by `make tpu`, where libtpu installs. Nothing runs: what is held is that the
compiler takes each path, with the kernel in it and without the logits of a whole list.
"""

import dataclasses
import math
import re

import jax
import pytest

from dpo_jax import schema
from dpo_jax.data.layouts import Shape
from dpo_jax.errors import DeviceError
from dpo_jax.losses import LOSSES
from dpo_jax.models import attention
from dpo_jax.models.spec import preset
from dpo_jax.sharding.mesh import make_mesh
from dpo_jax.wiring import compiling, objective, programs
from dpo_jax.wiring.assembling import make_parts
from dpo_jax.wiring.supply import FROM_CONFIG

pytestmark = pytest.mark.tpu

TOKENS, SCORED, VOCAB = 256, 128, 5003  # no other size divides this one
SPEC = dataclasses.replace(preset("tiny", vocab=VOCAB, max_positions=512))
KERNELS = ("splash_mqa_fwd", "splash_mqa_dq", "splash_mqa_dkv")


@pytest.fixture(autouse=True)
def libtpu():
    pytest.importorskip("libtpu", reason="libtpu is not installed")


def compiled(topology, backend, layout, chunk, ref="cached", tokens=TOKENS):
    """Compiles DPO with one row on each chip, 128 tokens of it scored."""
    config = schema.base()
    config.update_from_flattened_dict(
        {
            "model.attention": backend,
            "model.dtype": "bfloat16",
            "model.logits_chunk": chunk,
            "data.layout": layout,
            "ref.mode": ref,
            "data.train": "sentiment",
            "model.preset": "tiny",
            "mesh.data": 1,
            "mesh.fsdp": -1,
            "batch.microbatches": 1,
        }
    )
    mesh = make_mesh(1, -1, 1, compiling.tpus(topology))
    shape = Shape(mesh.size, tokens, SCORED, slots=16, comparisons=8)
    losses = objective.losses_of(config.loss, LOSSES)
    source = FROM_CONFIG._replace(model=lambda given, tokenizer, **more: (None, SPEC))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        parts = make_parts(config, losses, mesh, supply=source)
        asked = programs.of_step(parts, shape)
        return [compiling.compiled(each, mesh.size) for each in asked]


def most_logits(text):
    """Finds the most rows of V that any array of a program has."""
    shapes = (map(int, dims.split(",")) for dims in re.findall(r"\w\[([\d,]+)\]", text))
    sizes = (math.prod(dims) for dims in map(list, shapes) if VOCAB in dims)
    return max(sizes) // VOCAB


def kernels(text):
    """Lists the calls of Mosaic kernels by name."""
    calls = [line for line in text.splitlines() if "tpu_custom_call" in line]
    return [name for line in calls for name in KERNELS if f"%{name}" in line]


@pytest.mark.parametrize("topology", ["v5e:2x2", "v4:2x2x4"])
def test_prefix_shared_rows_run_the_kernel_by_mask(topology):
    """Forward and backward, with the reference's pass; 32 of 128 rows of logits.

    The head's kernel, [64, V], is the largest array with V in it.
    """
    ref, step = compiled(topology, "splash", "prefix_shared", 32, ref="live")
    assert kernels(ref.text) == ["splash_mqa_fwd"]
    assert sorted(kernels(step.text)) == sorted(KERNELS)
    assert most_logits(ref.text) == most_logits(step.text) == SPEC.width < SCORED
    memory = step.memory
    assert memory is not None
    assert memory.aliased > 0.9 * memory.arguments - memory.temporaries
    assert step.traffic["all-gather"].bytes > 0  # parameters are spread


def test_packed_rows_run_the_kernel_by_documents_and_a_whole_chunk_is_seen():
    """With a chunk of the whole list, its logits [128, V] do stand in the program."""
    (step,) = compiled("v5e:2x2", "splash", "packed", SCORED)
    assert sorted(kernels(step.text)) == sorted(KERNELS)
    assert most_logits(step.text) == SCORED


def test_packed_rows_compile_for_a_pod():
    (step,) = compiled("v4:2x2x4", "splash", "packed", 32)
    assert sorted(kernels(step.text)) == sorted(KERNELS)


@pytest.mark.parametrize(("backend", "calls"), [("splash", 3), ("auto", 0)])
def test_a_kernel_asked_for_by_name_runs_short_rows(backend, calls):
    (step,) = compiled("v5e:2x2", backend, "packed", 32, tokens=96)
    assert len(kernels(step.text)) == calls


def test_attention_in_blocks_needs_no_kernel():
    (step,) = compiled("v5e:2x2", "xla", "prefix_shared", 32)
    assert not kernels(step.text)
    assert most_logits(step.text) == SPEC.width


def test_auto_is_the_kernel_where_the_mesh_is_of_tpus():
    mesh = make_mesh(-1, 1, 1, compiling.tpus("v5e:2x2"))
    assert jax.default_backend() == "cpu"
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        assert attention.resolve("auto", dtype="bfloat16") == "splash"


def test_a_topology_that_libtpu_does_not_know_is_refused():
    with pytest.raises(DeviceError, match="v9:2x2.*such as 'v5e:2x2'"):
        compiling.tpus("v9:2x2")
