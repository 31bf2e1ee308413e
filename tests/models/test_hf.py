"""Folders in and out: shards, spellings, what is carried, what is refused.

Parity with transformers is tested in `test_parity.py`.
"""

import contextlib
import dataclasses
import functools
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_cases import CONFIGS
from family_cases import drawn as draw
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from dpo_jax import errors
from dpo_jax.models import decoder, files, hf
from dpo_jax.models.families import FAMILIES
from dpo_jax.models.spec import preset
from dpo_jax.types import Batch


def torch_logits(model, tokens):
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(tokens).long()).logits.numpy()


def our_logits(params, spec, tokens):
    rows, width = tokens.shape
    ones = np.ones_like(tokens)
    positions = np.broadcast_to(np.arange(width), tokens.shape)
    none = np.zeros((rows, 0), np.int32)
    batch = Batch(tokens, positions, ones, 0 * ones, *[none] * 6)
    run = jax.jit(lambda p, b: decoder.Decoder(spec).apply({"params": p}, b))
    hidden, head = run(params, batch)
    return np.asarray(hidden @ head.kernel)


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parity
@pytest.mark.parametrize("name", ["tiny", "tiny_gpt2"])
def test_transformers_loads_a_model_trained_from_scratch(name, tmp_path):
    pytest.importorskip("torch")
    import transformers

    spec = preset(name, vocab=60, max_positions=32)
    params = draw(spec)
    hf.save_params(params, spec, tmp_path, token_ids={"eos_token_id": 7})
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert model.config.eos_token_id == 7
    tokens = np.random.default_rng(0).integers(0, 60, (1, 9), np.int32)
    np.testing.assert_allclose(
        our_logits(params, spec, tokens), torch_logits(model, tokens), atol=1e-4
    )


SPEC = preset("tiny", vocab=64, max_positions=32)


@pytest.fixture(scope="module")
def drawn():
    return jax.tree.map(jnp.asarray, draw(SPEC))


@pytest.fixture
def folder(drawn, tmp_path):
    """Writes a small untied Llama."""
    hf.save_params(drawn, SPEC, tmp_path / "model")
    return tmp_path / "model"


def assert_equal_trees(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


def edit(folder, change):
    """Applies `change` to the tensors of a folder."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def refusal(folder, spec=SPEC):
    with pytest.raises(errors.ModelError) as caught:
        hf.load_params(folder, spec)
    return str(caught.value)


def test_save_and_load_are_inverse(folder, drawn):
    assert hf.spec_of(hf.read_config(folder)) == SPEC
    loaded = hf.load_params(folder, SPEC)
    assert_equal_trees(loaded, drawn)
    assert {x.dtype for x in jax.tree.leaves(loaded)} == {jnp.dtype(jnp.float32)}
    assert sorted(contents(folder)) == ["config.json", "model.safetensors"]


def test_a_large_model_is_cut_into_files_with_an_index(folder, drawn):
    """Tensors of 64 × 128 float32 take 32 kB, so 50 kB hold one of them at most."""
    hf.save_params(drawn, SPEC, folder, max_shard_bytes=50_000)
    files = sorted(contents(folder))
    weights = [name for name in files if name.endswith(".safetensors")]
    assert len(weights) > 3
    assert weights[0] == f"model-00001-of-{len(weights):05}.safetensors"
    assert "model.safetensors" not in files  # the single file of before is gone
    assert all(
        sum(t.nbytes for t in load_file(folder / name).values()) <= 50_000
        for name in weights
    )
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(weights)
    assert index["metadata"]["total_size"] == sum(
        x.nbytes for x in jax.tree.leaves(drawn)
    )
    assert_equal_trees(hf.load_params(folder, SPEC), drawn)
    hf.save_params(drawn, SPEC, folder)
    assert sorted(contents(folder)) == ["config.json", "model.safetensors"]

    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weights[0] in refusal(folder)


def shardings(spec, axes):
    """Cuts every leaf along the axes that 8 devices as 2 × 4 can cut."""
    mesh = jax.make_mesh((2, 4), ("fsdp", "tensor"), (AxisType.Auto,) * 2)
    place = lambda x: NamedSharding(mesh, axes(x.shape))  # noqa: E731
    return jax.tree.map(place, decoder.abstract_params(spec))


def last_two(shape):
    """Cuts [.., in, out] over both axes; vectors stay whole."""
    if len(shape) < 2 or shape[-2] % 2:
        return PartitionSpec()
    return PartitionSpec(*[None] * (len(shape) - 2), "fsdp", "tensor")


SHARDED = {
    "tiny": preset("tiny", vocab=64, max_positions=32),
    "tiny_gpt2": preset("tiny_gpt2", vocab=64, max_positions=32),
    "phi3": hf.spec_of(CONFIGS["phi3"]),
    "gpt_neox": hf.spec_of(CONFIGS["gpt_neox"]),
}


@pytest.mark.parametrize("name", SHARDED)
def test_sharded_arrays_hold_the_same_and_are_saved_the_same(name, tmp_path):
    """Covers transposed slices (Llama), of fused columns (GPT-2), rows (Phi-3), heads.

    Four devices cut the two heads of NeoX in halves, and Phi-3's two kv heads.
    """
    spec = SHARDED[name]
    drawn = draw(spec)
    hf.save_params(drawn, spec, tmp_path / "one")
    places = shardings(spec, last_two)
    loaded = hf.load_params(tmp_path / "one", spec, places)
    kernel = loaded["layers"]["attn"]["q"]["kernel"]
    assert kernel.sharding == places["layers"]["attn"]["q"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (
        spec.layers,
        spec.width // 2,
        spec.width // 4,
    )
    assert_equal_trees(loaded, drawn)
    hf.save_params(loaded, spec, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


class Counted:
    """An open file that counts the numbers read from it."""

    def __init__(self, file, read):
        self.file, self.read = file, read

    def get_slice(self, name):
        return CountedSlice(self.file.get_slice(name), self.read)


class CountedSlice(Counted):
    def __getitem__(self, index):
        found = self.file[index]
        self.read.append(found.size)
        return found


@pytest.mark.parametrize("name", ["tiny", "tiny_gpt2", "phi3"])
def test_a_process_reads_what_its_devices_hold(name, tmp_path, monkeypatch):
    """Two processes of a mesh of 2 × 4 read each number of a cut leaf once together.

    NeoX, whose file mixes q, k and v head by head, reads all three of the heads.
    """
    spec, read = SHARDED[name], []
    hf.save_params(draw(spec), spec, tmp_path)
    opened = hf.files.open_weights

    def counted(folder, stack):
        found = opened(folder, stack)
        return {n: s._replace(file=Counted(s.file, read)) for n, s in found.items()}

    def of_devices(devices, shape, place, callback):
        for device, index in place.devices_indices_map(shape).items():
            if device in devices:
                assert callback(index).shape == place.shard_shape(shape)
        return jnp.zeros(())

    monkeypatch.setattr(hf.files, "open_weights", counted)
    places, totals = shardings(spec, last_two), []
    halves = jax.devices()[:4], jax.devices()[4:]
    for devices in halves:
        monkeypatch.setattr(
            jax, "make_array_from_callback", functools.partial(of_devices, devices)
        )
        hf.load_params(tmp_path, spec, places)
        totals.append(sum(read))
        read.clear()
    leaves = zip(
        jax.tree.leaves(decoder.abstract_params(spec)),
        jax.tree.leaves(places),
        strict=True,
    )
    sizes = [(leaf.size, place.is_fully_replicated) for leaf, place in leaves]
    held = sum(size if whole else size // 2 for size, whole in sizes)
    assert totals == [held, held]


def test_the_axis_of_layers_can_be_cut_too(folder, drawn):
    def layers(shape):
        return PartitionSpec("fsdp") if len(shape) == 3 else PartitionSpec()

    loaded = hf.load_params(folder, SPEC, shardings(SPEC, layers))
    assert_equal_trees(loaded, drawn)


def test_missing_extra_and_misshaped_tensors_are_named_in_one_error(folder):
    def change(tensors):
        del tensors["model.norm.weight"]
        for layer in range(2):
            del tensors[f"model.layers.{layer}.mlp.up_proj.weight"]
        tensors["model.layers.1.self_attn.q_norm.weight"] = np.ones(4, np.float32)
        tensors["lm_head.weight"] = np.ones((5, 64), np.float32)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)

    edit(folder, change)
    text = refusal(folder)
    assert "missing tensors: model.layers.{0,1}.mlp.up_proj.weight" in text
    assert "model.norm.weight" in text
    assert "unknown tensors: model.layers.1.self_attn.q_norm.weight" in text
    assert "lm_head.weight is [5, 64], not [64, 64]" in text
    assert "inv_freq" not in text


def test_integer_weights_are_refused(folder):
    edit(folder, lambda t: t.update({"lm_head.weight": np.ones((64, 64), np.int8)}))
    assert "none of F64/F32/F16/BF16: lm_head.weight" in refusal(folder)


def test_quantized_weights_and_adapters_are_named_for_what_they_are(folder):
    q = "model.layers.0.self_attn.q_proj.weight"
    more = {f"{q}.absmax": np.zeros(4, np.uint8), f"{q}.quant_map": np.zeros(4)}
    edit(folder, lambda t: t.update(more))
    assert f"the weights are quantized ({q}.absmax, " in refusal(folder)
    lora = {"model.layers.0.self_attn.q_proj.lora_A.weight": np.zeros((1, 4))}
    edit(folder, lambda t: [t.pop(name) for name in more] and t.update(lora))
    assert "the weights are those of an adapter and its base" in refusal(folder)


@pytest.mark.parametrize("alone", [True, False])
def test_an_adapter_beside_its_base_or_alone_is_refused(folder, alone):
    about = {"base_model_name_or_path": "me/base"}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    if alone:
        (folder / "config.json").unlink(missing_ok=True)
    with pytest.raises(errors.ModelError, match="adapter .* of 'me/base'.*merge it"):
        hf.read_config(folder)


def test_an_export_keeps_processors_and_named_templates(folder, drawn, tmp_path):
    (folder / "config.json").write_text(json.dumps(FAMILIES["llama"].to_hf(SPEC)))
    small = ("preprocessor_config.json", "processor_config.json", "tekken.json")
    names = (*small, "additional_chat_templates/rag.jinja")
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    written = hf.save_params(drawn, SPEC, tmp_path / "out", source_dir=folder)
    assert set(names) <= set(written)
    assert all((tmp_path / "out" / name).read_text() == name for name in names)


def test_a_tied_head_may_be_stored_if_it_equals_the_table(drawn, tmp_path):
    spec = dataclasses.replace(SPEC, tie=True)
    params = {name: tree for name, tree in drawn.items() if name != "head"}
    hf.save_params(params, spec, tmp_path)
    table = np.asarray(params["embed"]["tokens"])
    edit(tmp_path, lambda t: t.update({"lm_head.weight": table}))
    assert_equal_trees(hf.load_params(tmp_path, spec), params)
    edit(tmp_path, lambda t: t.update({"lm_head.weight": 2 * table}))
    assert "unknown tensors: lm_head.weight" in refusal(tmp_path, spec)


def test_gpt2_without_its_prefix_and_with_mask_buffers(tmp_path):
    spec = preset("tiny_gpt2", vocab=60, max_positions=32)
    params = draw(spec)
    hf.save_params(params, spec, tmp_path / "source")
    file = tmp_path / "source" / "model.safetensors"
    bare = {k.removeprefix("transformer."): v for k, v in load_file(file).items()}
    save_file(bare, file, metadata={"format": "pt"})
    hf.save_params(params, spec, tmp_path / "out", source_dir=tmp_path / "source")
    assert contents(tmp_path / "out") == contents(tmp_path / "source")
    save_file(bare | {"h.0.attn.bias": np.ones((1, 1, 8, 8), np.float32)}, file)
    assert_equal_trees(hf.load_params(tmp_path / "source", spec), params)


@pytest.mark.parametrize(
    ("family", "ours", "theirs"),
    [
        ("gpt_neox", "embed_out.", "lm_head."),
        ("gemma3", "language_model.model.", "model.language_model."),
        ("gemma3", "language_model.model.", "language_model."),
    ],
)
def test_every_spelling_loads_and_is_kept(family, ours, theirs, tmp_path):
    spec = hf.spec_of(CONFIGS[family])
    params = draw(spec)
    one, two, out = tmp_path / "one", tmp_path / "two", tmp_path / "out"
    hf.save_params(params, spec, one)
    tensors = load_file(one / "model.safetensors")
    assert any(name.startswith(ours) for name in tensors)
    renamed = {
        theirs + name.removeprefix(ours) if name.startswith(ours) else name: tensor
        for name, tensor in tensors.items()
    }
    two.mkdir()
    shutil.copy(one / "config.json", two)
    save_file(renamed, two / "model.safetensors", metadata={"format": "pt"})
    assert_equal_trees(hf.load_params(two, spec), params)
    hf.save_params(params, spec, out, source_dir=two)
    assert contents(out) == contents(two)


def test_a_vision_tower_is_carried_and_counted_in_the_files(tmp_path):
    """It takes part in nothing but the export, in the export's dtype and files."""
    spec = hf.spec_of(CONFIGS["gemma3"])
    params = draw(spec)
    hf.save_params(params, spec, tmp_path / "source")
    tower = {
        "vision_tower.vision_model.head.weight": np.full((9, 100), 0.1, np.float32),
        "multi_modal_projector.mm_soft_emb_norm.weight": np.ones(3, np.float32),
    }
    edit(tmp_path / "source", lambda tensors: tensors.update(tower))
    assert_equal_trees(hf.load_params(tmp_path / "source", spec), params)
    hf.save_params(
        params,
        spec,
        tmp_path / "out",
        source_dir=tmp_path / "source",
        dtype="bfloat16",
        max_shard_bytes=4000,
    )
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    written = {name: x for file in files for name, x in load_file(file).items()}
    assert len(files) > 3
    for name, tensor in tower.items():
        np.testing.assert_array_equal(written[name], tensor.astype(jnp.bfloat16))
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(written)
    hf.load_params(tmp_path / "out", spec)
    hf.save_params(params, spec, tmp_path / "text")  # nothing to carry
    assert hf.spec_of(hf.read_config(tmp_path / "text")) == spec


def test_bfloat16_folders_load_and_export_as_what_they_declare(folder, tmp_path, drawn):
    low = tmp_path / "low"
    hf.save_params(drawn, SPEC, low, source_dir=folder, dtype="bfloat16")
    assert hf.read_config(low)["dtype"] == "bfloat16"
    assert load_file(low / "model.safetensors")["lm_head.weight"].dtype == jnp.bfloat16
    loaded = hf.load_params(low, SPEC)
    rounded = jax.tree.map(
        lambda x: np.asarray(x).astype(jnp.bfloat16).astype(np.float32), drawn
    )
    assert_equal_trees(loaded, rounded)
    hf.save_params(loaded, SPEC, tmp_path / "high", source_dir=low)
    assert hf.read_config(tmp_path / "high")["dtype"] == "float32"
    hf.save_params(loaded, SPEC, tmp_path / "again", source_dir=low, dtype="bfloat16")
    assert contents(tmp_path / "again") == contents(low)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (lambda data: data[: len(data) // 2], "is truncated: "),
        (lambda data: data[:100], "is truncated: 100 bytes"),
        (lambda data: b"", "is truncated: 0 bytes"),
        (
            lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "git lfs pull",
        ),
        (lambda data: b"<!DOCTYPE html><html>Sign in</html>", "is a web page"),
        (lambda data: b"\x08" + bytes(7) + b"notjson!", "is not a safetensors file"),
    ],
)
def test_the_cause_of_an_unreadable_file_is_named(folder, content, cause):
    file = folder / "model.safetensors"
    file.write_bytes(content(file.read_bytes()))
    assert cause in refusal(folder)
    assert "model.safetensors" in refusal(folder)


def test_pickles_are_refused_and_never_opened(folder):
    file = folder / "model.safetensors"
    shutil.move(file, folder / "pytorch_model.bin")
    assert "only pytorch_model.bin: refuses pickle" in refusal(folder)
    (folder / "pytorch_model.bin").unlink()
    assert "neither model.safetensors nor" in refusal(folder)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"{", "is not JSON"),
        (b"[]", "must hold a JSON object"),
        (b"<html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"\xff\xfe", "is not JSON"),
        (None, "does not exist"),
    ],
)
def test_a_broken_config_is_refused_with_its_cause(tmp_path, content, cause):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(errors.ModelError, match=cause):
        hf.read_config(tmp_path)


def test_a_folder_that_is_not_there_says_the_way_out():
    with pytest.raises(errors.ModelError, match="neither a folder nor a hub id"):
        files.resolve("./no/such/folder")
    with pytest.raises(errors.ModelError, match="set model.path to a downloaded"):
        files.resolve("nobody/no-such-model", "main")


def test_export_refuses_what_does_not_fit(folder, drawn, tmp_path):
    with pytest.raises(errors.ConfigError, match=r"dtype='float16'.*bfloat16"):
        hf.save_params(drawn, SPEC, tmp_path / "out", dtype="float16")
    other = dataclasses.replace(SPEC, norm_eps=1e-3)
    with pytest.raises(errors.ModelError, match="describes another model"):
        hf.save_params(drawn, other, tmp_path / "out", source_dir=folder)
    assert not (tmp_path / "out").exists()
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(errors.WriteError, match="cannot be written"):
        hf.save_params(drawn, SPEC, blocked)


BEYOND = {
    "num_hidden_layers": (10**12, 10**400, 10_001, -1, "2", True, 2.0),
    "hidden_size": (2**31, 10**23),
    "rms_norm_eps": (math.inf, math.nan, 1e39, 1.0, 1e-320),
    "rope_theta": (math.inf, math.nan, 1e-9, 0),
}


@pytest.mark.parametrize("name", BEYOND)
def test_numbers_without_bound_are_refused_before_anything_is_made(name):
    for value in BEYOND[name]:
        with pytest.raises(errors.ModelError, match=rf"{name}=.* must be a positive"):
            hf.spec_of(CONFIGS["llama"] | {name: value})


@pytest.mark.parametrize("factor", [math.inf, math.nan, 1e-320, 0, 1e39])
def test_rope_factors_without_bound_are_refused(factor):
    for scaling in (
        {"rope_type": "linear", "factor": factor},
        {"rope_type": "longrope", "long_factor": [factor] * 4, "short_factor": [1] * 4},
    ):
        with pytest.raises(errors.ModelError, match="factor=.* positive"):
            hf.spec_of(CONFIGS["llama"] | {"rope_scaling": scaling})
    with pytest.raises(errors.ModelError, match="turns none"):
        hf.spec_of(CONFIGS["phi3"] | {"partial_rotary_factor": 1e-9})


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e300, -1e9])
def test_a_weight_that_is_no_number_names_its_tensor(folder, tmp_path, number):
    """1e300 is finite in float64, and infinite in the float32 that is trained in."""
    shutil.copytree(folder, tmp_path / "m")
    spec = hf.spec_of(files.read_config(tmp_path / "m"))
    file = files.weight_files(tmp_path / "m")[0]
    tensors = load_file(file)
    name = sorted(tensors)[-1]
    tensors[name] = tensors[name].astype(np.float64)
    tensors[name].flat[1] = number
    save_file(tensors, file)
    with pytest.raises(errors.ModelError, match=f"{name} of the weights holds 1 numb"):
        hf.load_params(tmp_path / "m", spec)


HEADERS = {
    "null": "not a safetensors file",
    "[]": "not a safetensors file",
    '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, "4"]}}': "not a safetens",
    '{"a": {"dtype": "F32", "shape": [1], "data_offsets": 4}}': "not a safetensors fil",
    '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, '
    '"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}': "'a' stands twice",
}


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_that_is_none_is_refused(tmp_path, header):
    text = header.encode()
    data = len(text).to_bytes(8, "little") + text + b"\0" * 8
    (tmp_path / "model.safetensors").write_bytes(data)
    with contextlib.ExitStack() as stack:
        with pytest.raises(errors.ModelError, match=HEADERS[header]):
            files.open_weights(tmp_path, stack)


def test_a_tensor_in_two_files_is_refused(tmp_path):
    names = ["a.safetensors", "b.safetensors"]
    for name in names:
        save_file({"w": np.zeros(1, np.float32)}, tmp_path / name)
    index = {"weight_map": {"w": names[0], "v": names[1]}}
    (tmp_path / files.INDEX).write_text(json.dumps(index))
    with contextlib.ExitStack() as stack:
        with pytest.raises(errors.ModelError, match="b.safetensors holds w, as a file"):
            files.open_weights(tmp_path, stack)
