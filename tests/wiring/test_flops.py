"""FLOPs of a step by hand in each layout, and of a forward pass as XLA counts them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.data.loader import Loader, Settings
from dpo_jax.models.decoder import Decoder, abstract_params
from dpo_jax.models.spec import DecoderSpec
from dpo_jax.train import throughput
from dpo_jax.types import Batch, Record
from dpo_jax.wiring import feeds

SPEC = DecoderSpec(
    model_type="llama",
    vocab=10,
    layers=2,
    width=4,
    heads=2,
    kv_heads=1,
    head_dim=2,
    ff=8,
    max_positions=16,
    rope_theta=1e4,
)


def facts(layout, spec=SPEC, reference=None, peak=1.0):
    """Asks for a step of one prompt of 3 tokens with responses of 2 and 1."""
    ids = np.ones(3, np.int32)
    rows = [Record(0, ids, (ids[:2], ids[:1]), ((0, 1),))]
    loads = Loader(rows, [[0]], Settings(1, 1, layout, 8, 1))
    return feeds.make_facts(loads, spec, reference, peak)(1, {})


def test_sizes_by_hand():
    """A layer: q and o 4·4, k and v 4·2, three kernels of 4·8: 48 + 96; head 4·10."""
    assert feeds.sizes(SPEC) == (2 * 144, 40, 4)
    assert feeds.sizes(replaced(scalar=True)).head == 0


def replaced(**changed):
    return DecoderSpec(**{**vars(SPEC), **changed})


def test_step_of_a_shared_prompt_by_hand():
    """6 tokens, 3 scored; pairs: 1+2+3 of the prompt, 4+5 and 4 of the responses: 19.

    Forward 2·(288·6 + 40·3) + 4·4·(2·19) = 3696 + 608 = 4304, trained 3 times that.
    """
    found = facts("prefix_shared")
    assert (found["tokens"], found["flops"]) == (6, 3 * 4304)
    assert "scored" not in found
    assert facts("prefix_shared", reference=SPEC)["flops"] == 4 * 4304
    assert facts("prefix_shared", peak=8.0)["flops"] == 3 * 4304 / 8


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_step_of_two_copies_of_the_prompt_by_hand(layout):
    """5 + 4 tokens, 3 scored; pairs 15 + 10.

    Forward 2·(288·9 + 40·3) + 4·4·(2·25) = 5424 + 800 = 6224.
    """
    found = facts(layout)
    assert (found["tokens"], found["flops"]) == (9, 3 * 6224)


def test_each_layer_counts_its_own_window():
    """A window of 2 leaves 1+2+2 of the prompt, 2+2 and 2 of the responses: 11 of 19.

    3696 + 4·4·(19 + 11) = 4176.
    """
    assert facts("prefix_shared", replaced(windows=(0, 2)))["flops"] == 3 * 4176


def test_another_reference_costs_its_own():
    """One layer of 144, all of it seen: 2·(144·6 + 40·3) + 4·4·19 = 2272."""
    found = facts("prefix_shared", reference=replaced(layers=1))
    assert found["flops"] == 3 * 4304 + 2272


def test_xla_counts_the_same_products():
    """One layer (XLA counts the body of a scan once), where every pair is computed.

    XLA counts what is no product as well, norms, rotations and the softmax: about 1 %
    at these widths.
    """
    spec = replaced(
        layers=1, width=128, heads=4, kv_heads=2, head_dim=32, ff=384, vocab=320
    )
    rows, tokens = 2, 32
    cell = jax.ShapeDtypeStruct((rows, tokens), jnp.int32)
    module = Decoder(spec, attention="dense")

    def forward(params, batch):
        hidden, head = module.apply({"params": params}, batch)
        return hidden @ head.kernel

    batch = Batch(*[cell] * 11)
    lowered = jax.jit(forward).lower(abstract_params(spec), batch)
    counted = lowered.cost_analysis()["flops"]
    ours = throughput.forward_flops(
        feeds.sizes(spec),
        tokens=rows * tokens,
        scored=rows * tokens,
        visible=rows * tokens**2,
    )
    assert ours < counted < 1.02 * ours
