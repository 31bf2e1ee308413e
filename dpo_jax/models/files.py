"""The files of a HF model folder: found, downloaded, opened, or refused with a cause.

Weights are safetensors only: a pickle runs code when it is read. This file knows names
and headers, not what the tensors mean.
"""

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import safetensors

from dpo_jax import errors, gcs
from dpo_jax.files import parse_json, read_json
from dpo_jax.models.stored import fetched

Dims = tuple[int, ...]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "*.tiktoken",
    "spiece.model",
    "sentencepiece*",
    "tekken.json",
    "additional_chat_templates/*",
    "*processor_config.json",  # of pictures: servers ask for them beside such weights
    "generation_config.json",
)
ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
WANTED = ("config.json", ADAPTER, "*.safetensors", INDEX, *TOKENIZER_FILES)
LONGEST_HEADER = 10**8  # bytes; what safetensors takes
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class Stored(NamedTuple):
    """A tensor on disk: its open file, shape and safetensors dtype."""

    file: Any
    shape: Dims
    dtype: str


def resolve(path: str, revision: str = "", *, wanted: Iterable[str] = WANTED) -> Path:
    """Returns the local folder of a model, downloading it where it has none.

    Args:
      path: a folder, of gs:// as well, or the id of a hub repository.
      revision: branch, tag or commit of the repository; '' = its main branch.
      wanted: patterns of the files to download.

    Raises:
      ModelError: if the folder does not exist or the hub does not give it.
      ConfigError: if a folder is asked for a revision.
    """
    folder = os.path.expanduser(path)
    if os.path.isdir(folder):
        if revision:
            raise errors.ConfigError(
                f"revision={revision!r} is of a hub id; {path!r} is a folder, leave "
                "model.revision (or ref.revision) at ''"
            )
        return Path(folder)
    if path.startswith(gcs.SCHEME):
        return fetched(path, wanted)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) or path.startswith("."):
        raise errors.ModelError(
            f"model.path={path!r} is neither a folder nor a hub id like 'owner/name'"
        )
    import huggingface_hub  # slow to import, and needed for hub ids only

    try:
        held = huggingface_hub.snapshot_download(
            path, revision=revision or None, allow_patterns=list(wanted)
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise errors.ModelError(
            f"model.path={path!r}, model.revision={revision!r}: no such folder, and "
            f"the hub does not give it ({type(error).__name__}: {reason}); go online, "
            "log in if it is gated, or set model.path to a downloaded folder"
        ) from error
    return Path(held)


def read_config(path: str | Path, revision: str = "") -> dict[str, Any]:
    """Reads the `config.json` of a folder or hub id; nothing else is downloaded.

    Raises:
      ModelError: if there is none or it is not a JSON object; if the folder holds an
        adapter, whose base alone would be another model.
    """
    folder = resolve(str(path), revision, wanted=("config.json", ADAPTER))
    check_no_adapter(folder)
    file = folder / "config.json"
    try:
        config = read_json(file)
    except FileNotFoundError:
        raise errors.ModelError(f"{file} does not exist; is it a HF folder?") from None
    except (OSError, ValueError) as error:
        why = cause(file) or f"is not JSON ({error})"
        raise errors.ModelError(f"{file} {why}") from error
    if not isinstance(config, dict):
        raise errors.ModelError(f"{file} must hold a JSON object")
    return config


def check_no_adapter(folder: Path) -> None:
    """Raises ModelError, if a folder holds an adapter, as peft writes it."""
    if not (folder / ADAPTER).is_file():
        return
    try:
        base = read_json(folder / ADAPTER)["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = "its base"
    raise errors.ModelError(
        f"{folder} holds an adapter (LoRA: {ADAPTER}) of {str(base)[:80]!r}, which is "
        "no whole model; train it on with model.path=BASE and model.adapter, or merge "
        "it (peft: merge_and_unload, then save_pretrained) and give that folder"
    )


def cause(file: Path) -> str:
    """Says why a file is not what its name says; '' if that is not clear."""
    if not file.is_file():
        return ""
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(1024)
    if head.startswith(b"version https://git-lfs"):
        return "is a git-LFS pointer; run `git lfs pull` where it came from"
    if re.match(rb"\s*<(!doctype|html|\?xml)", head, re.IGNORECASE):
        return "is a web page saved under that name; download the file itself"
    if file.suffix != ".safetensors":
        return ""
    again = "download or copy it again"
    length, text = header_of(file)
    if size < 8 or (not text and length < LONGEST_HEADER):
        return f"is truncated: {size} bytes, its header is longer; {again}"
    try:
        tensors = [t for t in parse_json(text).values() if "dtype" in t]
        needed = 8 + length + max([0, *(t["data_offsets"][1] for t in tensors)])
        short = size < needed
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        return f"is not a safetensors file ({str(error)[:200]}); {again}"
    return f"is truncated: {size} of {needed} bytes; {again}" if short else ""


def header_of(file: Path) -> tuple[int, bytes]:
    """Reads the header of a safetensors file: its length, and its text; b'' if cut."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        whole = length < LONGEST_HEADER and 8 + length <= file.stat().st_size
        return length, stream.read(length) if whole else b""


def weight_files(folder: Path) -> list[Path]:
    """Returns the safetensors files of a folder.

    Raises:
      ModelError: if there are none, or the index names files that are not there.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        try:
            index = read_json(folder / INDEX)
            names = sorted({Path(name).name for name in index["weight_map"].values()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            why = cause(folder / INDEX) or f"is not an index of weights: {error}"
            raise errors.ModelError(f"{folder / INDEX} {why}") from error
        absent = [name for name in names if not os.path.isfile(folder / name)]
        if not names:
            raise errors.ModelError(f"{folder / INDEX} names no file of weights")
        if absent:
            raise errors.ModelError(
                f"{folder}: {INDEX} names files that are not there: {', '.join(absent)}"
            )
        return [folder / name for name in names]
    others = sorted(f.name for f in folder.glob("*.gguf"))
    if others:
        raise errors.ModelError(
            f"{folder} has no {SINGLE}, only {', '.join(others[:3])}: GGUF weights are "
            "for inference, mostly quantized; give the float folder that they came from"
        )
    pickles = sorted(f.name for pattern in PICKLES for f in folder.glob(pattern))
    if pickles:
        raise errors.ModelError(
            f"{folder} has no {SINGLE}, only {', '.join(pickles)}: refuses pickle, "
            "which runs code; convert it with transformers' save_pretrained"
        )
    raise errors.ModelError(f"{folder} has neither {SINGLE} nor {INDEX}")


def open_weights(folder: Path, stack: contextlib.ExitStack) -> dict[str, Stored]:
    """Opens the weights of a folder until `stack` closes; reads headers only.

    Raises:
      ModelError: naming every file that cannot be read and its cause.
    """
    tensors: dict[str, Stored] = {}
    with errors.collected(errors.ModelError) as complaints:
        for file in weight_files(folder):
            try:
                opened = stack.enter_context(safetensors.safe_open(file, "np"))
                parse_json(header_of(file)[1])  # a name twice: safetensors takes one
            except (safetensors.SafetensorError, OSError, ValueError) as error:
                complaints.append(f"{file} {cause(file) or f'is unreadable: {error}'}")
                continue
            for name in opened.keys():  # noqa: SIM118 (not a dict)
                tensor = opened.get_slice(name)
                shape = tuple(tensor.get_shape())
                if name in tensors:
                    complaints.append(f"{file} holds {name}, as a file before it does")
                tensors[name] = Stored(opened, shape, tensor.get_dtype())
    return tensors
