"""Every family against transformers: logits, layouts, export, gradients.

The torch models are random in every parameter (ones and zeros hide errors) and read
more tokens than their windows and original contexts hold.
"""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_cases import (
    CASES,
    CONFIGS,
    LENGTH,
    WRAPPERS,
    compiled,
    forests,
    sequences,
)

from dpo_jax import heads
from dpo_jax.models import decoder, hf
from dpo_jax.train.leaves import flat


@functools.cache
def torch_model(case):
    """Builds a float32 torch model whose every parameter is random."""
    torch = pytest.importorskip("torch")
    import transformers

    family, config = CASES[case]
    config = {name: value for name, value in config.items() if name != "model_type"}
    auto = transformers.AutoModelForCausalLM
    if family in WRAPPERS:
        auto = transformers.AutoModelForImageTextToText
    config = transformers.AutoConfig.for_model(family, **config)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = auto.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@functools.cache
def folder(case, root):
    """Saves the torch model."""
    path = root / case
    torch_model(case).save_pretrained(path)
    (path / "tokenizer.json").write_text('{"odd":  "spacing"}')
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("parity")


def torch_logits(model, tokens):
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(tokens).long()).logits.numpy()


def contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_every_family_agrees_with_transformers(case, root, tmp_path):
    """Logits of every layout to 1e-4, finite gradients, export byte for byte."""
    model, source = torch_model(case), folder(case, root)
    spec = hf.spec_of(hf.read_config(source))
    assert spec == hf.spec_of(CASES[case][1])
    params = hf.load_params(source, spec)
    expected = torch_logits(model, sequences())
    batch, agree = forests()

    def forward(params):
        hidden, head = decoder.Decoder(spec, length=LENGTH).apply(
            {"params": params}, batch
        )
        return heads.logits(hidden, head)

    def loss(params):
        values = forward(params)
        picked = heads.measured(values[:2, : LENGTH - 1], sequences()[:, 1:], None)[0]
        return -picked.logps.mean(), values

    if case in CONFIGS:
        grads, values = compiled(jax.grad(loss, has_aux=True), params)
        check_gradients(grads)
    else:
        values = compiled(forward, params)
    for row, ours, sequence, theirs in agree:
        np.testing.assert_allclose(
            values[row, ours], expected[sequence, theirs], atol=1e-4, rtol=0
        )
    assert np.abs(expected).max() > 0.5
    hf.save_params(params, spec, tmp_path / "out", source_dir=source)
    assert contents(tmp_path / "out") == contents(source)
    again = (
        type(model)
        .from_pretrained(tmp_path / "out", attn_implementation="eager")
        .eval()
    )
    np.testing.assert_array_equal(torch_logits(again, sequences()), expected)


def check_gradients(grads):
    """Every leaf gets a finite gradient, and one that is not zero if it can matter."""
    for path, grad in flat(grads).items():
        assert np.isfinite(grad).all(), path
        if path != "layers/attn/k/bias":  # may move all logits of a query alike
            assert jnp.abs(grad).max() > 1e-7, path
