"""Adapters in peft's folders: against peft itself, and what is refused of a folder."""

import copy
import dataclasses
import functools
import json
import warnings

import jax
import numpy as np
import pytest
from family_cases import CASES, CONFIGS, LENGTH, compiled, forests, sequences
from safetensors.numpy import load_file, save_file
from test_parity import folder, root, torch_logits, torch_model  # noqa: F401

from dpo_jax import errors, heads, roles
from dpo_jax.models import decoder, hf, lora, peft, sites
from dpo_jax.train.leaves import flat
from tests.night import by_day

GIVEN = {"rank": 3, "alpha": 5, "rslora": False, "targets": (), "init": "b_zero"}
NAMES = ("adapter_config.json", "adapter_model.safetensors")
# whose maps lie in a way of their own; the other families are held to peft at night
UNLIKE = ("gemma3", "gpt2", "gpt_neox", "llama", "mixtral", "phi3", "qwen3")


def adapters_of(spec, **given):
    """Adapters on all linear maps, one of another rank and alpha."""
    fresh = sites.fresh(spec, **(GIVEN | given))
    first = dataclasses.replace(fresh.sites[0], rank=2, alpha=7)
    return dataclasses.replace(fresh, sites=(*fresh.sites[1:], first))


def random_tree(adapters):
    """A and B, both of them far from 0."""
    normal = np.random.default_rng(1).normal
    tree = lora.abstract(adapters)
    return jax.tree.map(lambda x: 0.3 * normal(size=x.shape).astype(np.float32), tree)


def written(place, tree, adapters, spec):
    held = peft.folder_files(tree, adapters, spec, base="somewhere", revision="")
    hf.save_files(place, held, NAMES[0])
    return place


@functools.cache
def spec_of(case):
    return hf.spec_of(CASES[case][1])


def here(adapters):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: place, lora.abstract(adapters))


@pytest.mark.parity
@pytest.mark.parametrize(
    "case", by_day(UNLIKE, [*CONFIGS, "llama_biased", "gpt_neox_unbiased"])
)
def test_peft_computes_what_an_export_says(case, root, tmp_path):  # noqa: F811
    """Logits to 1e-4 in every layout, far from the base's; and back, bit for bit.

    peft would only warn of a pair that it does not find in the folder.
    """
    library = pytest.importorskip("peft")
    source, spec = folder(case, root), spec_of(case)
    adapters = adapters_of(spec, rslora=case in ("gpt2", "phi3", "llama_biased"))
    tree, base = random_tree(adapters), hf.load_params(source, spec)
    ours = written(tmp_path / "ours", tree, adapters, spec)
    plain = torch_logits(torch_model(case), sequences())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = library.PeftModel.from_pretrained(
            copy.deepcopy(torch_model(case)), ours
        )
    expected = torch_logits(model.eval(), sequences())
    batch, agree = forests()
    module = decoder.Decoder(spec, length=LENGTH, scales=adapters.scales)

    def forward(tree, base):
        params = roles.whole({"lora": tree}, {"base": base})
        hidden, head, *_ = module.forward(params, batch, keep=lambda kept: None)
        merged = lora.merge(params, adapters)
        again, *_ = module.forward(merged, batch, keep=lambda kept: None)
        return heads.logits(hidden, head), heads.logits(again, head)

    beside, merged = compiled(forward, tree, base)
    for values in (beside, merged):
        for row, at, sequence, theirs in agree:
            np.testing.assert_allclose(
                values[row, at], expected[sequence, theirs], atol=1e-4, rtol=0
            )
    assert np.abs(expected - plain).max() > 1e-2
    model.save_pretrained(tmp_path / "theirs")
    theirs = tmp_path / "theirs"
    pairs = [load_file(place / NAMES[1]) for place in (ours, theirs)]
    assert pairs[0].keys() == pairs[1].keys()
    found = peft.read(theirs, spec)
    assert dict(found.scales) == dict(adapters.scales)
    got = flat(peft.load(theirs, found, spec, here(found)))
    assert got.keys() == flat(tree).keys()
    assert all(np.array_equal(got[name], x) for name, x in flat(tree).items())


@pytest.fixture
def saved(tmp_path):
    """An adapter of a tiny Llama on disk; makes it anew with a config changed."""
    spec = spec_of("llama")
    adapters = sites.fresh(spec, **GIVEN)
    written(tmp_path, random_tree(adapters), adapters, spec)
    config = json.loads((tmp_path / NAMES[0]).read_text())

    def change(pairs=None, **said):
        (tmp_path / NAMES[0]).write_text(json.dumps(config | said))
        if pairs is not None:
            held = pairs(load_file(tmp_path / NAMES[1]))
            save_file(held, tmp_path / NAMES[1], metadata={"format": "pt"})
        return tmp_path

    return change


Q0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def without(name):
    return lambda pairs: {n: x for n, x in pairs.items() if n != name}


def renamed(old, new):
    return lambda pairs: {n.replace(old, new): x for n, x in pairs.items()}


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (without(Q0), r"missing pairs: model.layers.0.self_attn.q_proj.lora_A"),
        (
            lambda pairs: pairs | {Q0.replace("q_proj", "r_proj"): pairs[Q0]},
            r"no target demands: model.layers.0.self_attn.r_proj.lora_A",
        ),
        (
            renamed("model.layers", "model.language_model.layers"),
            r"missing pairs.*model.layers.*no target demands.*language_model",
        ),
        (renamed("base_model.model.", ""), r"no target demands: \?model.layers"),
        (
            lambda pairs: pairs | {Q0: pairs[Q0][:2].copy()},
            r"mis-shaped pairs: .*q_proj.lora_A.weight is \[2, 32\], not \[3, 32\]",
        ),
        (
            renamed("layers.1.", "layers.2."),
            r"missing pairs: model.layers.1.*no target demands: model.layers.2",
        ),
    ],
)
def test_the_pairs_of_a_folder_are_those_that_its_targets_demand(saved, pairs, said):
    with pytest.raises(errors.ModelError, match=f"(?s){said}"):
        peft.read(saved(pairs), spec_of("llama"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"peft_type": "LOHA"}, "peft_type='LOHA' is not supported"),
        ({"use_dora": True}, "use_dora='True' is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' is not supported"),
        ({"layers_to_transform": [1]}, "layers_to_transform"),
        ({"exclude_modules": ["q_proj"]}, "exclude_modules"),
        ({"target_parameters": ["experts"]}, "target_parameters"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"a_key_of_tomorrow": 1}, "a_key_of_tomorrow"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save=.*lm_head"),
        ({"bias": "all"}, "bias='all'"),
        ({"r": 0}, "r=0 must be an int"),
        ({"lora_alpha": "8"}, "lora_alpha='8'"),
        ({"target_modules": None}, "target_modules=None must be said"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head names no linear map"),
        ({"target_modules": r".*layers\.0\..*"}, "all layers must be alike"),
        ({"rank_pattern": {r"layers\.0\..*q_proj": 2}}, "all layers must be alike"),
        ({"rank_pattern": {"q_proj": 2}}, r"q_proj.lora_A.weight is \[3, 32\]"),
    ],
)
def test_what_a_config_says_is_done_or_refused(saved, given, said):
    with pytest.raises(errors.ModelError, match=said):
        peft.read(saved(**given), spec_of("llama"))


@pytest.mark.parametrize("rslora", [False, True])
def test_the_scale_is_that_of_the_modules_own_rank(saved, rslora):
    """α/r or α/√r: 5 and 3 of all, 6 of the queries."""
    given = {"alpha_pattern": {"self_attn.q_proj": 6}, "use_rslora": rslora}
    found = dict(peft.read(saved(**given), spec_of("llama")).scales)
    root_of = 0.5 if rslora else 1.0
    assert found.pop("attn/q") == pytest.approx(6 / 3**root_of)
    assert len(found) == 6 and set(found.values()) == {5 / 3**root_of}


def test_a_pickle_is_named_and_refused(saved):
    folder = saved()
    (folder / NAMES[1]).rename(folder / "adapter_model.bin")
    with pytest.raises(errors.ModelError, match="refuses pickle"):
        peft.read(folder, spec_of("llama"))


def test_numbers_that_are_none_are_refused(saved):
    folder = saved(lambda pairs: pairs | {Q0: pairs[Q0] * np.float32(np.nan)})
    found = peft.read(folder, spec_of("llama"))
    with pytest.raises(errors.ModelError, match="q_proj.lora_A.weight of the weights"):
        peft.load(folder, found, spec_of("llama"), here(found))


@pytest.mark.parametrize(
    ("case", "targets", "names"),
    [
        ("llama", ("attention",), "attn/q attn/k attn/v attn/o"),
        ("llama", ("mlp",), "mlp/gate mlp/up mlp/down"),
        ("llama", ("q_proj", "mlp.down_proj"), "attn/q mlp/down"),
        ("llama", ("*_proj",), "attn/q attn/k attn/v attn/o mlp/gate mlp/up mlp/down"),
        ("gpt2", ("attention",), "attn/qkv attn/o"),
        ("gpt2", ("attn.c_proj",), "attn/o"),
        ("gpt_neox", ("all_linear",), "attn/qkv attn/o mlp/up mlp/down"),
        ("phi3", (), "attn/qkv attn/o mlp/gate_up mlp/down"),
        ("gptj", ("mlp",), "mlp/up mlp/down"),
    ],
)
def test_targets_name_maps_as_the_family_calls_them(case, targets, names):
    found = sites.fresh(spec_of(case), **(GIVEN | {"targets": targets}))
    assert {site.name for site in found.sites} == set(names.split())


@pytest.mark.parametrize("case", CONFIGS)
def test_every_kernel_of_every_family_has_a_site(case):
    """But for routers and experts, which no adapter here acts beside."""
    spec = spec_of(case)
    kernels = {
        path.removeprefix("layers/").removesuffix("/kernel")
        for path in decoder.leaves(spec)
        if path.startswith("layers/") and path.endswith("/kernel")
    }
    kernels = {k for k in kernels if not k.startswith(("router", "experts/"))}
    parts = [part for site in sites.sites_of(spec).values() for part in site.parts]
    assert sorted(parts) == sorted(kernels)
    shapes = {
        f"layers/{p}/kernel": w
        for s in sites.sites_of(spec).values()
        for p, w in zip(s.parts, s.fan_outs, strict=True)
    }
    leaves = decoder.leaves(spec)
    assert all(leaves[path].shape[-1] == width for path, width in shapes.items())


def test_a_card_of_one_family_says_how_its_weights_lie():
    says = {case: config_of(case) for case in ("gpt2", "llama", "gemma3")}
    assert [says[case]["fan_in_fan_out"] for case in says] == [True, False, False]
    assert all(type(said["lora_alpha"]) is int for said in says.values())
    assert says["gpt2"]["target_modules"] == [
        *("attn.c_proj", "c_attn", "c_fc", "mlp.c_proj")
    ]
    named = says["gemma3"]["target_modules"]  # its vision tower has a q_proj, too
    assert "model.language_model.layers.6.self_attn.q_proj" in named


def config_of(case):
    spec = spec_of(case)
    adapters = sites.fresh(spec, **GIVEN)
    held = peft.folder_files(
        random_tree(adapters), adapters, spec, base="x", revision=""
    )
    return json.loads(held[NAMES[0]])
