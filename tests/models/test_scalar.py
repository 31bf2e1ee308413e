"""The scalar head: parity with sequence classifiers, its start, its folder."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from family_cases import CASES, LENGTH, PROMPT, compiled, drawn, forests, sequences

from dpo_jax import errors
from dpo_jax.models import decoder, hf, scalar
from dpo_jax.models.families import FAMILIES
from dpo_jax.models.spec import preset
from dpo_jax.sampling.rollout import Prompts, rows_of
from dpo_jax.sharding import rules
from dpo_jax.types import Head, Samples

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


TEXTS = [  # (prompt, response) of pad 7: behind the end, within, at both, throughout
    ([5, 9, 11], [3, 7]),
    ([7, 9], [3, 7, 12, 7, 7]),
    ([5, 9, 13, 7], [7, 7]),
    ([8], [4, 6, 2]),
    ([7, 7], [7]),
]


def read_alone(params, spec, pad):
    """Scores the texts as responses to prompts, each twice in a row."""
    width = max(len(prompt) for prompt, _ in TEXTS)
    tokens, samples = np.zeros((5, width), int), np.zeros((5, 2, 5), int)
    for i, (prompt, response) in enumerate(TEXTS):
        tokens[i, : len(prompt)] = prompt
        samples[i, :, : len(response)] = response
    long = np.array([[len(r)] * 2 for _, r in TEXTS])
    mask = np.arange(5) < long[..., None]
    lengths, flat = np.array([len(p) for p, _ in TEXTS]), np.zeros(mask.shape)
    drawn_texts = Samples(samples, mask, flat, ended=mask.any(-1))
    rows = rows_of(Prompts(tokens, lengths, np.arange(5)), drawn_texts)

    def run(params):
        hidden, head = decoder.Decoder(spec).apply({"params": params}, rows)
        return scalar.scores(hidden, head, scalar.read_at(rows, pad))

    return np.asarray(jax.jit(run)(params))


def padded_with(pad, left):
    """The texts as transformers gets them: padded on a side, with their masks."""
    whole = [[*prompt, *response] for prompt, response in TEXTS]
    ids, mask = np.full((5, 8), pad), np.zeros((5, 8), int)
    for row, seen, text in zip(ids, mask, whole, strict=True):
        at = slice(8 - len(text), 8) if left else slice(len(text))
        row[at], seen[at] = text, 1
    return ids, mask


@pytest.mark.parity
@pytest.mark.parametrize("case", ["llama", "gpt2", "gemma2", "gpt_neox", "olmo2"])
def test_a_score_is_read_where_transformers_reads_it(case, tmp_path):
    """With pad = EOS as open models have it, padded on either side, and without one."""
    import torch

    model = torch_classifier(case)
    model.config.pad_token_id = 7
    model.save_pretrained(tmp_path)
    config = hf.read_config(tmp_path)
    spec = hf.scalar_spec_of(config)
    params = hf.load_params(tmp_path, spec)
    assert scalar.pad_id(config) == 7
    ours = read_alone(params, spec, 7)
    np.testing.assert_allclose(ours[:, 0], ours[:, 1], atol=1e-5, rtol=0)
    for left in (False, True):
        ids, mask = (torch.from_numpy(x).long() for x in padded_with(7, left))
        places = (mask.cumsum(-1) - 1).clip(0)
        with torch.no_grad():
            said = model(ids, attention_mask=mask, position_ids=places).logits
        theirs = said.numpy()[:, 0]
        kept = slice(4) if left else slice(5)  # of pads alone it reads a place of none
        np.testing.assert_allclose(ours[kept, 0], theirs[kept], atol=1e-4, rtol=0)
    model.config.pad_token_id = None
    alone = []
    for prompt, response in TEXTS:
        with torch.no_grad():
            alone.append(model(torch.tensor([[*prompt, *response]])).logits.item())
    ours = read_alone(params, spec, None)
    np.testing.assert_allclose(ours[:, 0], alone, atol=1e-4, rtol=0)
    assert abs(alone[0] - theirs[0]) > 1e-3  # another token is read


@pytest.mark.parity
@pytest.mark.parametrize("name", FAMILIES)
def test_a_pad_token_that_is_not_declared_is_that_of_transformers(name):
    import transformers

    text = transformers.AutoConfig.for_model(name).get_text_config()
    assert scalar.pad_id({"model_type": name}) == text.pad_token_id
    assert scalar.pad_id({"model_type": name, "pad_token_id": None}) is None


def test_a_wrapped_model_has_the_pad_token_of_its_text():
    config = {"model_type": "mistral3", "text_config": {"model_type": "ministral3"}}
    assert scalar.pad_id(config) == scalar.pad_id({"model_type": "ministral3"}) == 11


def test_a_pad_token_that_is_none_is_refused():
    with pytest.raises(errors.ModelError, match="pad_token_id=.* must be a token id"):
        scalar.pad_id({"model_type": "llama", "pad_token_id": "[PAD]"})


def test_a_bias_on_the_score_is_refused(tmp_path):
    """No class of transformers reads one, so nobody knows what it was trained for."""
    spec = scalar.scalar_spec(TINY)
    hf.save_params(drawn(spec), spec, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    safetensors.numpy.save_file({**tensors, "score.bias": np.ones(1, "f4")}, file)
    with pytest.raises(errors.ModelError, match=r"unknown tensors: score\.bias"):
        hf.check_weights(tmp_path, spec)


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
