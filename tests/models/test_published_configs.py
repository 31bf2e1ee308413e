"""Look-alikes of the configs of the most downloaded folders of every family.

Held to what their authors publish, the number of parameters, and, in `make parity`, to
the name and shape of every tensor that transformers makes of the same attributes.
"""

import json
import math

import pytest
from family_cases import WRAPPERS
from published import PUBLISHED, REFUSED

from dpo_jax import errors
from dpo_jax.models import decoder, families, tensors
from dpo_jax.models.families import FAMILIES

SAID = {  # what is left says something and is not computed with
    "ai-forever/rugpt3large_based_on_gpt2": {"output_past", "predict_special_tokens"},
    "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B": {"attn_factor"},
    "distilbert/distilgpt2": {"_num_labels"},
    "google/gemma-2-9b-it": {"sliding_window_size"},
    "HuggingFaceTB/SmolLM2-135M": {"is_llama_config"},
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": {
        "is_llama_config",
        "transformers.js_config",
    },
    "lmsys/vicuna-7b-v1.5-16k": {"max_sequence_length"},
    "openai-community/gpt2-medium": {"predict_special_tokens"},
}


def test_every_family_is_among_forty_folders():
    types = {config["model_type"] for _, config in PUBLISHED.values()}
    assert types == set(FAMILIES) and len(PUBLISHED) >= 40


@pytest.mark.parametrize("folder", PUBLISHED)
def test_a_published_config_is_read_and_written_back(folder):
    parameters, config = PUBLISHED[folder]
    spec, left = families.described(json.loads(json.dumps(config)))
    sizes = (math.prod(leaf.shape) for leaf in decoder.leaves(spec).values())
    assert sum(sizes) == parameters
    assert {name.partition("=")[0] for name in left} == SAID.get(folder, set())
    written = json.loads(json.dumps(FAMILIES[spec.model_type].to_hf(spec)))
    assert families.described(written) == (spec, [])


@pytest.mark.parametrize("folder", REFUSED)
def test_a_published_config_is_refused_for_what_it_is(folder):
    config, said = REFUSED[folder]
    with pytest.raises(errors.ModelError) as caught:
        families.spec_of(config)
    assert said in str(caught.value)


@pytest.mark.parity
@pytest.mark.parametrize(
    "folder",
    [name for name in PUBLISHED if not families.spec_of(PUBLISHED[name][1]).experts],
)
def test_tensors_are_those_of_transformers(folder, tmp_path):
    """On torch's device without memory; the vision tower is carried, not ours.

    Experts lie in memory as they lie in no folder: those of tiny models are compared.
    """
    torch = pytest.importorskip("torch")
    import transformers

    config = {k: v for k, v in PUBLISHED[folder][1].items() if k != "auto_map"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        kind = transformers.AutoModelForCausalLM
        if config["model_type"] in WRAPPERS:
            kind = transformers.AutoModelForImageTextToText
        model = kind.from_config(theirs)
    spec = families.spec_of(config)
    wanted = {name: tuple(one.shape) for name, one in model.state_dict().items()}
    rows = tensors.rows_of(spec, wanted)
    ours = {
        name: tensors.OPS[row.op].shape(tensors.part_shapes(row, spec))
        for row in rows
        for name in tensors.names_of(row, spec)
    }
    tied = {"lm_head.weight"} if spec.tie else set()
    vision = {n for n in wanted if "vision_tower" in n or "multi_modal_projector" in n}
    assert ours == {n: s for n, s in wanted.items() if n not in vision | tied}
