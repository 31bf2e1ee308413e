"""What a run leaves behind: an HF folder, samples, results, the report."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
from etils import epath

from dpo_jax.errors import WriteError
from dpo_jax.models import hf
from dpo_jax.report import html
from dpo_jax.train import runfolder
from dpo_jax.types import Params
from dpo_jax.wiring import evaluation
from dpo_jax.wiring.model import Model

SHOWN_SAMPLES = 12


def bad_batch(workdir: os.PathLike | str, number: int, ids: list[int]) -> str:
    """Keeps the ids of a step that went wrong; names them for the message."""
    text = json.dumps({"step": number, "ids": ids}) + "\n"
    runfolder.write_text(workdir, f"errors/batch{number}.json", text)
    return f"rows {ids[:8]}{' …' if len(ids) > 8 else ''} of data.train"


def export(
    model: Model,
    params: Params,
    tokenizer: Any,
    target: os.PathLike | str,
    *,
    card: str,
    own_tokenizer: bool,
    dtype: str = "float32",
) -> None:
    """Writes the HF folder of a policy, with its tokenizer and a model card.

    Args:
      model: whose parameters they are.
      params: on any devices.
      tokenizer: saved where the model's folder does not hold it.
      target: the folder to write; may be `gs://…`.
      card: text of its README.md.
      own_tokenizer: whether the tokenizer is another than the model folder's.
      dtype: of the weights written.
    """
    local = runfolder.is_local(target)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(target) if local else Path(scratch)
        hf.save_params(
            params,
            model.spec,
            folder,
            source_dir=model.folder,
            dtype=dtype,
            token_ids=None if model.folder else token_ids(tokenizer),
        )
        if jax.process_index() == 0:
            if own_tokenizer or not model.folder:
                tokenizer.save_pretrained(folder)
            (folder / "README.md").write_text(card)
            if not local:
                upload(folder, target)


def upload(folder: Path, target: os.PathLike | str) -> None:
    """Copies the files of a local folder to an object store's."""
    there = epath.Path(target)
    there.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        (there / file.name).write_bytes(file.read_bytes())


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
    found = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id")
        for name in ("bos", "eos", "pad")
    }
    return {name: value for name, value in found.items() if value is not None}


def leave_behind(
    workdir: os.PathLike | str,
    step: int,
    values: dict[str, float],
    results: dict[str, Any],
    sampled: evaluation.Sampled | None,
) -> None:
    """Writes samples.json, results.json and, last, report.html: the run is whole."""
    if sampled is not None:
        shown = evaluation.side_by_side(sampled, SHOWN_SAMPLES)
        runfolder.write_text(
            workdir, "samples.json", json.dumps(shown, indent=1) + "\n"
        )
    whole = {**results, "step": step, "values": values}
    runfolder.write_text(workdir, "results.json", json.dumps(whole, indent=1) + "\n")
    if runfolder.is_local(workdir):
        html.write_report([workdir], Path(workdir) / "report.html")
