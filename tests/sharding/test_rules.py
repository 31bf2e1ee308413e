"""Where each parameter of every family lies on data × fsdp × tensor; nothing compiles.

Written out here without the rules: a matrix of the layers is split by both axes, the
one of heads or hidden units by `tensor`; norms and what follows a norm are whole.
"""

import dataclasses
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from dpo_jax.errors import DeviceError
from dpo_jax.models import hf
from dpo_jax.models.decoder import Decoder, abstract_params
from dpo_jax.sharding import rules
from dpo_jax.sharding.mesh import make_mesh
from dpo_jax.train import optimizer, step
from dpo_jax.wiring import model as model_wiring
from dpo_jax.wiring import weights

sys.path.insert(0, str(Path(__file__).parent.parent / "models"))
from family_cases import CASES  # noqa: E402  # pyright: ignore (beside the models)

IN_OUT = re.compile(r"(attn/[qkv]|mlp/(gate|up))/kernel$")  # tensor splits what is made
OUT_IN = re.compile(r"(attn/o|mlp/down)/kernel$")  # tensor splits what is summed over


def places_of(spec, mesh):
    """Lists (path, shape, shape of one device's piece)."""
    params = abstract_params(spec)
    places = rules.shardings(params, mesh, rules.PARAM_RULES)
    flat = jax.tree_util.tree_leaves_with_path(params)
    pieces = jax.tree.leaves(places)
    return {
        rules.path_name(path): (leaf.shape, place.shard_shape(leaf.shape))
        for (path, leaf), place in zip(flat, pieces, strict=True)
    }


@pytest.mark.parametrize("name", CASES)
def test_every_matrix_of_a_family_is_split_by_fsdp_and_tensor(name):
    spec = hf.spec_of(CASES[name][1])
    for path, (shape, piece) in places_of(spec, make_mesh(2, 2, 2)).items():
        if IN_OUT.search(path) or OUT_IN.search(path):
            halves = (shape[0], shape[1] // 2, shape[2] // 2)
            assert piece == halves, path
        elif path in ("embed/tokens", "head/kernel"):
            assert piece == tuple(n // 2 for n in shape), path
        elif "norm" in path:
            assert piece == shape, path


@pytest.mark.parametrize("name", CASES)
def test_moments_lie_where_their_parameters_do(name):
    """Of AdamW, both; nothing of the optimizer's size is on every device."""
    spec, mesh = hf.spec_of(CASES[name][1]), make_mesh(1, 4, 2)
    tx = optimizer.adamw(b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.1)
    make = lambda params: step.init_state(params, tx, seed=0)  # noqa: E731
    state = jax.eval_shape(make, abstract_params(spec))
    placed = rules.shardings(state, mesh, rules.STATE_RULES)
    adam = placed.opt_state[0]
    assert placed.params == adam.mu == adam.nu


def test_a_vocabulary_that_does_not_divide_is_whole_unless_it_is_padded():
    spec = dataclasses.replace(hf.spec_of(CASES["llama"][1]), vocab=61, tie=False)
    mesh = make_mesh(1, 4, 2)
    whole = places_of(spec, mesh)
    assert whole["embed/tokens"][1] == (61, spec.width // 4)
    assert whole["head/kernel"][1] == (spec.width // 4, 61)
    padded = dataclasses.replace(spec, vocab_multiple=8)
    split = places_of(padded, mesh)
    assert split["embed/tokens"][1] == (32, spec.width // 4)
    assert split["head/kernel"][1] == (spec.width // 4, 32)


def test_fewer_kv_heads_than_the_tensor_axis_are_refused_with_what_fits():
    """Two kv heads over four devices: each would hold half a head."""
    spec = dataclasses.replace(hf.spec_of(CASES["llama"][1]), heads=4, kv_heads=2)
    mesh = make_mesh(1, 2, 4)
    with jax.set_mesh(mesh):
        model = model_wiring.assemble(Decoder(spec, attention="dense"), None, "float32")
        with pytest.raises(DeviceError, match="2 kv heads; use 1 or 2"):
            model_wiring.check_heads(model, mesh)


def test_a_reference_has_a_dtype_of_its_own_where_its_policy_lies():
    spec, mesh = hf.spec_of(CASES["llama"][1]), make_mesh(1, 4, 2)
    with jax.set_mesh(mesh):
        decoder = Decoder(spec, dtype=jnp.dtype("float32"), attention="dense")
        policy = model_wiring.assemble(decoder, None, "float32")
        ref = {"mode": "live", "path": "", "dtype": "bfloat16", "sync_every_steps": 0}
        reference = model_wiring.reference_model(policy, ref, mesh)
        assert reference is not None
        held = weights.abstract_weights(reference, mesh)
    mine = weights.abstract_weights(policy, mesh)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(held)} == {"bfloat16"}
    same = jax.tree.map(lambda a, b: a.sharding == b.sharding, mine, held)
    assert all(jax.tree.leaves(same))
