"""Greedy continuations of every family against transformers' `generate`."""

import copy
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

from dpo_jax.models import hf
from dpo_jax.models.decoder import Decoder
from dpo_jax.sampling import batches, pick
from dpo_jax.sharding import arrays, mesh
from dpo_jax.wiring.generation import make_decoding
from tests.night import by_day

sys.path.insert(0, str(Path(__file__).parent.parent / "models"))
from family_cases import CASES, CONFIGS  # noqa: E402
from test_parity import torch_model  # noqa: E402

pytestmark = pytest.mark.parity

LENGTHS = np.array([3, 15, 9, 21], np.int32)  # below and beyond windows of 5
NEW, APART = 12, 1e-4

# their angles follow the length of the text: transformers changes them as a text grows,
# and keeps old keys turned by the old ones; ours are those of one length
LENGTH_DEPENDENT = {"gpt_neox_unbiased", "llama_dynamic", "phi3_longrope"}
# whose decoding is that of a case that is there
ALIKE = {"gemma3", "granite_tied", "mistral3", "mistral3_small", "olmo3_thetas"}


def prompts():
    tokens = np.random.default_rng(1).integers(3, 64, (4, LENGTHS.max()), np.int32)
    return np.where(np.arange(tokens.shape[1]) < LENGTHS[:, None], tokens, 0)


def theirs(model, prompt):
    """Continues one prompt alone: ids and raw logits."""
    import torch
    import transformers

    how = transformers.GenerationConfig(
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    model.generation_config.eos_token_id = None
    ids = torch.from_numpy(prompt[None]).long()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=how
        )
    logits = torch.stack(out.logits, dim=1)[0].numpy()
    return out.sequences[0, len(prompt) :].numpy(), logits


@pytest.mark.parametrize(
    "case",
    by_day(CONFIGS, [case for case in CASES if case not in LENGTH_DEPENDENT | ALIKE]),
)
def test_greedy_tokens_are_those_of_transformers(case, tmp_path):
    """Ragged prompts in one batch; compared until two logits are within 1e-4."""
    model = copy.deepcopy(torch_model(case))  # `generate` leaves rope state
    model.save_pretrained(tmp_path)
    spec = hf.spec_of(hf.read_config(tmp_path))
    decoder = Decoder(
        spec, length=int(LENGTHS.max()) + NEW, constrain=arrays.constrain_rows
    )
    sampler = batches.make_sampler(
        make_decoding(decoder),
        pick=pick.greedy,
        stops=(),
        max_new_tokens=NEW,
        mesh=mesh.make_mesh(1, 1, 1, devices=jax.devices()[:1]),
    )
    asked = [row[:length] for row, length in zip(prompts(), LENGTHS, strict=True)]
    with jax.set_mesh(sampler.mesh):
        parts = batches.rollouts(
            hf.load_params(tmp_path, spec),
            asked,
            jax.random.key(0),
            sampler=sampler,
            n=1,
            batch=4,
        )
        on_host = ((part, sampler.read(samples)) for part, _, samples in parts)
        found = batches.gather(on_host, len(asked), 1)
    assert found.mask.all()
    compared = 0
    for row, length in enumerate(LENGTHS):
        tokens, logits = theirs(model, prompts()[row, :length])
        best = np.sort(logits, axis=-1)
        close = np.flatnonzero(best[:, -1] - best[:, -2] <= APART)
        same = close[0] if len(close) else NEW
        np.testing.assert_array_equal(found.tokens[row, 0, :same], tokens[:same])
        wide = logits.astype(np.float64)
        logps = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
        picked = logps[np.arange(NEW), tokens]
        np.testing.assert_allclose(found.logps[row, 0, :same], picked[:same], atol=1e-4)
        compared += same
    assert compared >= 3 * NEW
