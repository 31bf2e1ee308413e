"""What a run leaves behind: an HF folder, samples, results, the report."""

import json
import os
from pathlib import Path
from typing import Any

import jax

from dpo_jax.config import Config
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
    config: Config,
    workdir: os.PathLike | str,
    *,
    out: os.PathLike | str | None = None,
    dtype: str = "float32",
) -> Path:
    """Writes the HF folder of a policy, its tokenizer included."""
    folder = Path(out) if out is not None else Path(workdir) / "export"
    hf.save_params(
        params,
        model.spec,
        folder,
        source_dir=model.folder,
        dtype=dtype,
        token_ids=None if model.folder else token_ids(tokenizer),
    )
    own = not model.folder or config.tokenizer.path
    if own and jax.process_index() == 0:
        tokenizer.save_pretrained(folder)
    return folder


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
