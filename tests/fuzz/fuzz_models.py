"""Mutated models: `config.json`, weights, tokenizers."""

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import fuzz_mutate as mutate
import numpy as np
from fuzz_base import FAMILIES, ROPES
from fuzz_cases import Base, Case, showing, training
from safetensors.numpy import load_file, save_file

MODEL = (2, 4)


def config(random: Random, base: Base, folder: Path) -> Case:
    """The `config.json` of a model of some family."""
    name = random.choice((*FAMILIES, *ROPES))
    shutil.copytree(base.folder / "models" / name, folder / "model")
    path = folder / "model" / "config.json"
    if random.random() < 0.15:
        tree = json.loads(path.read_bytes())
        added = mutate.value(random)
        key = random.choice(
            ("rope_scaling", "rope_parameters", "sliding_window", "head_dim", "scale")
            + ("layer_types", "auto_map", "quantization_config", "num_labels", "_x")
        )
        path.write_text(mutate.text_of(tree | {key: added}))
        what = f"{key} = {mutate.shown(added)}"
    else:
        what = mutate.rewrite(random, path)
    argv = training(base, model__path=folder / "model")
    if random.random() < 0.2:
        argv = training(
            base,
            ref__path=folder / "model",
            ref__mode="live",
            objective="preference",
            loss__name="dpo",
        )
    return Case(argv, f"{name}: {what}", MODEL)


def config_alike(random: Random, base: Base, folder: Path) -> Case:
    """A `config.json` with what no forward pass reads, or written in another way."""
    shutil.copytree(base.model, folder / "model")
    path = folder / "model" / "config.json"
    tree = json.loads(path.read_bytes())
    plain = {"use_cache": False, "initializer_range": 0.5, "torch_dtype": "float16"}
    plain |= {"architectures": ["Other"], "eos_token_id": [2, 3], "pad_token_id": 7}
    key = random.choice((*plain, "_note", "transformers.js_config"))
    added = plain[key] if key in plain else mutate.value(random)
    ways = {
        "key order": dict(reversed(tree.items())),
        f"{key} = {mutate.shown(added)}": tree | {key: added},
        "an attribute that is off": tree | {"unheard_of": None},
    }
    what = random.choice(list(ways))
    path.write_text(mutate.text_of(ways[what]))
    argv = training(base, model__path=folder / "model")
    return Case(argv, what, (), "same", "train pairs")


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    """Splits a file into what its header says and the bytes of the tensors."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def write_header(path: Path, header: dict[str, Any], body: bytes) -> None:
    """Writes a header before the bytes of the tensors."""
    text = mutate.text_of(header).encode(errors="surrogatepass")
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def weights(random: Random, base: Base, folder: Path) -> Case:
    """Weights: their values, header, index or bytes."""
    name = random.choice(FAMILIES)
    model = folder / "model"
    shutil.copytree(base.folder / "models" / name, model)
    path = random.choice(sorted(model.glob("*.safetensors")))
    how, must = random.random(), "refuse"
    if how < 0.3:
        what = _poison(random, path)
    elif how < 0.6:
        header, body = header_of(path)
        what = mutate.change(random, header)
        write_header(path, header, body)
        must = "any"
    elif how < 0.7:
        header, body = header_of(path)
        tree = random.choice((None, [], 1, "x", {}, mutate.doubled(random, header)))
        text = (tree if isinstance(tree, str) else mutate.text_of(tree)).encode()
        size = random.choice((len(text), len(text), 2**63, 10**8, 0))
        path.write_bytes(size.to_bytes(8, "little") + text + body)
        what = f"header {mutate.shown(tree)} of {size}"
    elif how < 0.8:
        index = model / "model.safetensors.index.json"
        what, must = mutate.rewrite(random, index), "any"
    else:
        what, must = mutate.damage(random, path), "any"
    changed: dict[str, object] = {"model__path": model}
    argv = training(base, **changed)
    codes = (4, 6) if must == "any" else (4,)  # a flipped bit may be a large weight
    return Case(argv, f"{name}/{path.name}: {what}", codes, must)


def _poison(random: Random, path: Path) -> str:
    """Puts one number that is none, or absurd, into a tensor."""
    tensors = load_file(path)
    name = random.choice(sorted(tensors))
    tensor = tensors[name].copy()
    number = random.choice((np.nan, np.inf, -np.inf))
    tensor.reshape(-1)[random.randrange(tensor.size)] = number
    save_file(tensors | {name: tensor}, path, metadata={"format": "pt"})
    return f"{name} holds {number}"


def tokenizer(random: Random, base: Base, folder: Path) -> Case:
    """Files of a tokenizer."""
    model = folder / "model"
    shutil.copytree(base.model, model)
    names = ["tokenizer.json", "tokenizer_config.json"]
    extra = random.choice(("special_tokens_map.json", "added_tokens.json", ""))
    if extra:
        (model / extra).write_text('{"eos_token": "</s>"}')
        names.append(extra)
    what = mutate.rewrite(random, model / random.choice(names))
    chats = {"data__train": random.choice((base.pairs, base.chats))}
    verb = showing if random.random() < 0.7 else training
    return Case(verb(base, model__path=model, **chats), what, (3, 4))
