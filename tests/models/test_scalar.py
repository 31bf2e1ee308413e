"""The scalar head: parity with sequence classifiers, its start, its folder."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_cases import CASES, LENGTH, PROMPT, compiled, drawn, forests, sequences

from dpo_jax import errors
from dpo_jax.models import decoder, hf, scalar
from dpo_jax.models.spec import preset
from dpo_jax.sharding import rules
from dpo_jax.types import Head

TINY = preset("tiny", vocab=64, max_positions=32)


def torch_classifier(case):
    """Builds a random classifier with one label."""
    torch = pytest.importorskip("torch")
    import transformers

    family, config = CASES[case]
    config = {name: value for name, value in config.items() if name != "model_type"}
    config = transformers.AutoConfig.for_model(family, **config, num_labels=1)
    torch.manual_seed(0)
    auto = transformers.AutoModelForSequenceClassification
    model = auto.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parity
@pytest.mark.parametrize("case", ["llama", "gpt2", "qwen2_yarn", "gemma2"])
def test_scores_agree_with_sequence_classification(case, tmp_path):
    """Two responses that share a prompt in one row, and each alone in a row."""
    import torch

    model, source = torch_classifier(case), tmp_path / "source"
    model.save_pretrained(source)
    with torch.no_grad():
        expected = model(torch.from_numpy(sequences()).long()).logits.numpy()[:, 0]
    assert abs(expected[0] - expected[1]) > 0.1
    spec = hf.scalar_spec_of(hf.read_config(source))
    params = hf.load_params(source, spec)
    batch, _ = forests()
    ends = np.full((5, 2), LENGTH - 1)
    ends[3, 1] = LENGTH + (LENGTH - PROMPT) - 1  # the second response of the row
    ends[4] = LENGTH + 3 - 1  # padded on the left

    def run(params):
        hidden, head = decoder.Decoder(spec).apply({"params": params}, batch)
        return scalar.scores(hidden, head, ends)

    ours = compiled(run, params)
    assert ours.dtype == jnp.float32
    for row, slot, which in [(0, 0, 0), (1, 0, 1), (3, 0, 0), (3, 1, 1), (4, 0, 1)]:
        np.testing.assert_allclose(ours[row, slot], expected[which], atol=1e-4, rtol=0)
    hf.save_params(params, spec, tmp_path / "out", source_dir=source)
    assert contents(tmp_path / "out") == contents(source)


@pytest.mark.parity
def test_transformers_loads_a_head_put_on_a_policy(tmp_path):
    """From a policy's folder, and for a model that has no folder."""
    pytest.importorskip("torch")
    import transformers

    policy = drawn(TINY)
    hf.save_params(policy, TINY, tmp_path / "policy", token_ids={"pad_token_id": 0})
    params = scalar.from_policy(policy, TINY, jax.random.key(1))
    spec = scalar.scalar_spec(TINY)
    hf.save_params(params, spec, tmp_path / "a", source_dir=tmp_path / "policy")
    hf.save_params(params, spec, tmp_path / "b", token_ids={"pad_token_id": 0})
    for name in "ab":
        assert hf.scalar_spec_of(hf.read_config(tmp_path / name)) == spec
        auto = transformers.AutoModelForSequenceClassification
        model, info = auto.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert type(model).__name__ == "LlamaForSequenceClassification"
        assert model.config.num_labels == 1
        theirs = model.score.weight.detach().numpy()
        np.testing.assert_array_equal(theirs.T, params["score"]["kernel"])


def test_scores_by_hand():
    """D = 2, w = (1, −2): states (3, 1) and (0, 4) score 1 and −8."""
    hidden = jnp.array([[[3.0, 1.0], [9.0, 9.0], [0.0, 4.0]]])
    head = Head(jnp.array([[1.0], [-2.0]]), None)
    ends = jnp.array([[2, 0]])
    np.testing.assert_array_equal(scalar.scores(hidden, head, ends), [[-8.0, 1.0]])
    every = scalar.token_scores(hidden, head)
    np.testing.assert_array_equal(every, [[1.0, -9.0, -8.0]])


def test_a_score_of_bfloat16_states_is_float32():
    hidden = jnp.full((1, 1, 2), 1.0078125, jnp.bfloat16)  # 1 + 2⁻⁷
    head = Head(jnp.full((2, 1), 1.0078125, jnp.bfloat16), None)
    score = scalar.scores(hidden, head, jnp.zeros((1, 1), jnp.int32))
    assert score.dtype == jnp.float32
    assert float(score[0, 0]) == 2 * 1.0078125**2  # 16 bits: bfloat16 would round it


def test_the_head_starts_small_on_the_trunk_of_the_policy():
    """Width 64: standard deviation 1 / √65 = 0.124."""
    policy = drawn(TINY)
    params = scalar.from_policy(policy, TINY, jax.random.key(1))
    abstract = decoder.abstract_params(scalar.scalar_spec(TINY))
    assert jax.tree.structure(params) == jax.tree.structure(abstract)
    assert params["layers"] is policy["layers"]
    assert np.std(params["score"]["kernel"]) == pytest.approx(0.124, rel=0.3)
    leaf = decoder.leaves(scalar.scalar_spec(TINY))["score/kernel"]
    assert (leaf.shape, leaf.std) == ((64, 1), pytest.approx(0.124, rel=0.01))


def test_every_leaf_of_a_scalar_tree_has_a_place():
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"))
    abstract = decoder.abstract_params(scalar.scalar_spec(TINY))
    places = rules.shardings(abstract, mesh, rules.PARAM_RULES)
    assert places["score"]["kernel"].spec == jax.sharding.PartitionSpec("fsdp", None)


def test_a_policy_is_no_reward_model_and_the_reverse(tmp_path):
    params = drawn(scalar.scalar_spec(TINY))
    hf.save_params(params, scalar.scalar_spec(TINY), tmp_path)
    with pytest.raises(errors.ModelError, match=r"missing tensors: lm_head.*score"):
        hf.load_params(tmp_path, TINY)


@pytest.mark.parametrize(
    ("labels", "count"), [({"id2label": {"0": "a", "1": "b"}}, 2), ({}, 2)]
)
def test_classifiers_of_several_labels_are_refused(labels, count, tmp_path):
    params = drawn(scalar.scalar_spec(TINY))
    hf.save_params(params, scalar.scalar_spec(TINY), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert scalar.is_classifier(config)
    del config["id2label"]
    with pytest.raises(errors.ModelError, match=f"{count} labels.*num_labels=1"):
        hf.scalar_spec_of(config | labels)
