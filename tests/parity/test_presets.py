"""Every preset against its official config, key by key."""

import json

import pytest

from dpo_jax import config as config_lib
from dpo_jax.configs import papers

pytestmark = pytest.mark.parity
OFFICIAL = (
    *("simpo_mistral_base", "simpo_mistral_instruct", "simpo_llama3_base"),
    *("simpo_llama3_instruct", "simpo_llama3_instruct_v2", "simpo_gemma2_it", "wpo"),
    *("sppo", "exo", "nca", "orpo", "cpo", "beta_dpo", "tdpo2", "tulu3", "sampo"),
    *("d2po", "discopop", "kto", "mpo"),
)
NO_LIMIT = "no limit of its own"  # of prompts


@pytest.fixture
def official(shared):
    return json.loads((shared / "goldens" / "authors" / "presets.json").read_text())


def test_no_official_config_is_left_out(official):
    assert official.keys() == set(OFFICIAL)


@pytest.mark.parametrize("preset", OFFICIAL)
def test_preset_has_every_key_of_the_official_config(official, preset):
    config = config_lib.flat(papers.get_config(f"preset={preset}"))
    print(f"\n{preset:26} {'key':28} {'official':12} ours")
    for key, value in official[preset]["official"].items():
        if value == NO_LIMIT:
            value = config["data.max_tokens"] - 1
        print(f"{preset:26} {key:28} {value!s:12} {config[key]}")
        assert config[key] == value, key
        if key in papers.CHOSEN:
            assert key not in papers.open_keys(preset) or value == papers.CHOSEN[key]
