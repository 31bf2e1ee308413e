"""The HF folder of a policy: written, guarded, uploaded."""

import copy
import fnmatch
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
from absl import logging
from etils import epath

from dpo_jax import files, roles
from dpo_jax.errors import ConfigError, WriteError
from dpo_jax.files import AnyPath
from dpo_jax.models import files as files_lib
from dpo_jax.models import hf, peft
from dpo_jax.models.files import WANTED
from dpo_jax.sharding.arrays import to_every_host
from dpo_jax.train import manifest
from dpo_jax.types import Params
from dpo_jax.wiring import outputs
from dpo_jax.wiring.model import Model

WRITTEN = "dpo_jax.json"  # in an export: which files it wrote


def export(
    model: Model,
    params: Params,
    tokenizer: Any,
    target: AnyPath,
    *,
    card: str,
    own_tokenizer: bool,
    dtype: str = "float32",
) -> None:
    """Writes the HF folder of a policy, with its tokenizer and a model card.

    Where adapters were trained, that is a folder of peft.

    Args:
      model: whose parameters they are.
      params: on any devices.
      tokenizer: saved where the model's folder does not hold it.
      target: the folder to write; may be `gs://…`.
      card: text of its README.md.
      own_tokenizer: whether the tokenizer is another than the model folder's.
      dtype: of the weights written; adapters are float32.

    Raises:
      ConfigError: if adapters are to have another.
    """
    if model.adapters is not None and dtype != "float32":
        raise ConfigError(
            f"--dtype={dtype} is not used by an adapter, whose weights are float32; "
            "leave it out, or add --merged"
        )
    beside = {"README.md": card.encode()}
    if own_tokenizer or not model.folder:
        beside |= tokenizer_files(tokenizer)
    stated = {}
    if model.spec.scalar:
        padding, stated = scored_at_the_end(tokenizer)
        beside |= {} if padding is None else tokenizer_files(padding)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(target) if files.is_local(target) else Path(scratch)
        if model.adapters is not None:
            names = _save_adapters(model, params, folder, beside)
        else:
            names = hf.save_params(
                params,
                model.spec,
                folder,
                source_dir=model.folder,
                dtype=dtype,
                token_ids=None if model.folder else token_ids(tokenizer),
                beside=beside,
                stated=stated,
            )
        if jax.process_index() == 0:
            written = manifest.hash_files(epath.Path(folder), names)
            if not files.is_local(target):
                for name in names:  # config.json is the last
                    data = (folder / name).read_bytes()
                    files.write_whole(epath.Path(target) / name, data)
            outputs.write_json(target, WRITTEN, {"files": written})


def _save_adapters(
    model: Model, params: Params, folder: Path, beside: dict[str, bytes]
) -> list[str]:
    """Writes what was trained as a folder of peft; returns the names of its files."""
    assert model.adapters is not None and model.folder is not None
    path, revision = model.source
    held = peft.folder_files(
        params[roles.LORA],
        model.adapters,
        model.spec,
        base=os.path.abspath(path) if os.path.isdir(path) else path,
        revision=revision,
        score=to_every_host(params["score"]["kernel"]) if model.spec.scalar else None,
    )
    held = {**hf.beside_weights(model.folder), **beside, **held}
    return hf.save_files(folder, held, files_lib.ADAPTER)


def scored_at_the_end(tokenizer: Any) -> tuple[Any, dict[str, int | None]]:
    """Finds the pad token with which transformers reads a score where it was trained.

    transformers reads it at the last token that is not the pad token, so that may be
    none that ends a text: not EOS, and not BOS. Without a token made for padding there
    is none, and transformers scores texts one at a time.

    Args:
      tokenizer: of the model; not changed.

    Returns:
      The tokenizer with another pad token, None if its own will do; and what
      `config.json` must declare.
    """
    ends = (tokenizer.eos_token, tokenizer.bos_token)
    if tokenizer.pad_token is not None and tokenizer.pad_token not in ends:
        return None, {"pad_token_id": tokenizer.pad_token_id}
    special = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    pads = [t for t in special if "pad" in t.lower() and t not in ends]
    if not pads:
        logging.warning(
            "the tokenizer has no pad token but %r, which ends texts: the export "
            "declares none, and transformers scores its texts one at a time",
            tokenizer.pad_token,
        )
        return None, {"pad_token_id": None}
    other = copy.deepcopy(tokenizer)
    other.pad_token = pads[0]
    return other, {"pad_token_id": other.pad_token_id}


def check_target(target: AnyPath, workdir: AnyPath, *, overwrite: bool) -> None:
    """Refuses a folder in which an export would replace what none wrote.

    Args:
      target: the folder to write.
      workdir: the run folder; a link may not lead out of it.
      overwrite: the user wants it so.

    Raises:
      ConfigError: naming the files, and where a link leads.
    """
    held = [] if overwrite else foreign_files(target)
    out = "" if overwrite else link_out(target, workdir)
    if held or out:
        leads = f" is a link to {out}" if out else ""
        holds = f" holds {', '.join(held)}, which would be replaced" if held else ""
        raise ConfigError(
            f"--out={target}{leads}{' and' * bool(out and held)}{holds}; name another "
            "folder, or add --overwrite"
        )


def check_own_target(workdir: AnyPath) -> None:
    """Refuses a run whose export would be written out of its folder, through a link.

    Raises:
      ConfigError: naming where it leads.
    """
    target = epath.Path(workdir) / "export"
    if out := link_out(target, workdir):
        raise ConfigError(
            f"{target} is a link to {out}, where the run would replace files; remove it"
        )


def link_out(target: AnyPath, workdir: AnyPath) -> str:
    """Tells where a target leads that lies in a run folder by name only; '' = not."""
    if not (files.is_local(target) and files.is_local(workdir)):
        return ""
    name, folder = os.path.abspath(target), os.path.abspath(workdir)
    real = os.path.realpath(name)
    inside = os.path.commonpath([name, folder]) == folder
    folder = os.path.realpath(folder)
    return real if inside and os.path.commonpath([real, folder]) != folder else ""


def foreign_files(target: AnyPath) -> list[str]:
    """Lists the files that an export would replace and that none wrote as they are."""
    path = epath.Path(target)
    names = [p.name for p in path.iterdir()] if path.is_dir() else []
    patterns = (*WANTED, "README.md")
    names = [n for n in names if any(fnmatch.fnmatch(n, p) for p in patterns)]
    try:
        written = files.read_json(path / WRITTEN)["files"]
        hashes = manifest.hash_files(path, [name for name in names if name in written])
        return sorted(n for n in names if n not in hashes or hashes[n] != written[n])
    except (OSError, ValueError, KeyError, TypeError):
        return sorted(names)


def tokenizer_files(tokenizer: Any) -> dict[str, bytes]:
    """Returns the files that a tokenizer is saved as."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        found = [file for file in Path(folder).rglob("*") if file.is_file()]
        return {f.relative_to(folder).as_posix(): f.read_bytes() for f in found}


def push(folder: Path, repository: str) -> str:
    """Uploads an export to the hub; returns its address.

    Args:
      folder: the HF folder.
      repository: `owner/name`, made if need be; private unless it exists.

    Raises:
      WriteError: if the hub does not take it.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        address = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder)
    except Exception as error:  # the hub's client has no common base class
        raise WriteError(
            f"--push={repository}: the hub did not take it "
            f"({type(error).__name__}: {error}); log in with `hf auth login`, or copy "
            f"{folder} by hand"
        ) from error
    return str(address)


def token_ids(tokenizer: Any) -> dict[str, int]:
    """Names the special ids that a fresh model's config.json declares."""
    ids = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id")
        for name in ("bos", "eos", "pad")
    }
    return {name: value for name, value in ids.items() if value is not None}
