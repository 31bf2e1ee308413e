"""Estimates of bytes against counts by hand, and against what jax keeps."""

import dataclasses

import jax
import pytest

from dpo_jax.models import decoder, memory, sites
from dpo_jax.models.spec import DecoderSpec, preset
from dpo_jax.types import Batch
from tests.models.forest_cases import cells

SPEC = DecoderSpec(
    model_type="llama",
    vocab=100,
    layers=3,
    width=8,
    heads=4,
    kv_heads=2,
    head_dim=2,
    ff=16,
    max_positions=64,
    norm_eps=1e-6,
    rope_theta=1e4,
    tie=True,
)


def test_the_state_is_four_float32_a_parameter():
    """A table of 100·8; three layers of 2·8·8 + 2·8·4 + 3·8·16 + 2·8; a norm of 8."""
    assert memory.state_bytes(SPEC) == 16 * 2584


def test_weights_that_stand_take_what_they_are_held_in():
    """Adapters of rank 2 on queries, 3·(8·2 + 2·8), are trained beside 2,584."""
    given = {"rank": 2, "alpha": 4, "rslora": False, "init": "b_zero"}
    adapters = sites.fresh(SPEC, targets=("q_proj",), **given)
    assert memory.state_bytes(SPEC, adapters, "bfloat16") == 16 * 96 + 2 * 2584
    assert adapters.said == "LoRA of rank 2, alpha 4, on self_attn.q_proj"


def test_a_token_keeps_what_all_its_experts_keep():
    """Three experts of 16 and what each says, 8: of one MLP the 32 and nothing."""
    mixture = dataclasses.replace(SPEC, experts=5, experts_per_token=3)
    more = 2 * 2 * 16 + 3 * 8
    assert memory.kept_features(mixture, "elementwise") == 72 + more


@pytest.mark.parametrize(
    ("remat", "features"),
    [
        ("block", 8),
        ("elementwise", 8 + 2 * 8 + 2 * 4 + 8 + 2 * 16),  # 72
        ("none", 72 + 3 * 8 + 8 + 4 + 3 * 16),  # 156
    ],
)
def test_features_are_counted_by_what_is_computed_again(remat, features):
    """Heads are 4·2 wide, keys 2·2; two norms and a sum of 8, four of 16 in the MLP."""
    assert memory.kept_features(SPEC, remat) == features


def test_activations_are_those_of_all_layers_one_at_work_and_a_chunk_of_logits():
    """Two rows of 32: 64·(3·72 + 156)·2 bytes, and 2·8·100 logits with gradients."""
    given = {"rows": 2, "tokens": 32, "dtype": "bfloat16", "remat": "elementwise"}
    found = memory.activation_bytes(SPEC, chunk=8, **given)
    assert found == 64 * 372 * 2 + 2 * 8 * 100 * 8
    scored = dataclasses.replace(SPEC, scalar=True)
    assert memory.activation_bytes(scored, chunk=8, **given) == 64 * 372 * 2
    whole = memory.activation_bytes(SPEC, chunk=128, **given)  # a row has 32 at most
    assert whole == 64 * 372 * 2 + 2 * 32 * 100 * 8


@pytest.mark.parametrize("remat", ["block", "elementwise"])
@pytest.mark.parametrize("name", ["tiny", "tiny_gpt2"])
def test_jax_keeps_as_many_features(name, remat):
    """A jitted forward pass hands them to the backward pass, of each layer."""
    spec = preset(name, vocab=50, max_positions=256)
    module, tokens = decoder.Decoder(spec, remat=remat), 140
    docs, branches, positions, _ = cells(tokens, [[(20, 50)]])
    rows = dict.fromkeys(Batch._fields)
    rows |= {"tokens": docs, "docs": docs, "branches": branches, "positions": positions}

    def total(params):
        return module.apply({"params": params}, Batch(**rows))[0].sum()

    abstract = decoder.abstract_params(spec)
    kept = jax.tree.leaves(jax.eval_shape(lambda p: jax.vjp(total, p)[1], abstract))
    lead = (spec.layers, 1, tokens)
    sizes = [x.size for x in kept if x.shape[:3] == lead]
    assert sum(sizes) == spec.layers * tokens * memory.kept_features(spec, remat)
