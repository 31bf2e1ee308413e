"""One row under the lens: how it was tokenized and cut, and what every token scores.

For `show`. It goes through the same functions as training, so what it prints is what is
trained on.
"""

import dataclasses
import os
from typing import Any, NamedTuple

import jax
import numpy as np

from dpo_jax.config import Config
from dpo_jax.data.loader import Loader, Settings
from dpo_jax.errors import DataError
from dpo_jax.losses import LOSSES
from dpo_jax.objectives import terms
from dpo_jax.sharding import arrays, mesh
from dpo_jax.types import Batch, Record
from dpo_jax.wiring import checks, restoring
from dpo_jax.wiring import data as data_wiring
from dpo_jax.wiring import model as model_wiring


class Shown(NamedTuple):
    """A row, tokenized.

    Attributes:
      record: its ids, cut.
      tokenizer: to turn ids into text.
      prompt_cut: tokens that the prompt lost.
      responses_cut: tokens that the responses lost together.
    """

    record: Record
    tokenizer: Any
    prompt_cut: int
    responses_cut: int


@dataclasses.dataclass(frozen=True)
class Score:
    """A scored token.

    Attributes:
      response: which response of the record, from 0.
      target: its id.
      policy: log-prob, nats.
      reference: log-prob, nats; None without a reference.
      entropy: of the policy's prediction, nats.
    """

    response: int
    target: int
    policy: float
    reference: float | None
    entropy: float


def tokenized(config: Config, index: int) -> Shown:
    """Tokenizes one row of data.train as training does.

    Args:
      config: of the run.
      index: position of the row in its source.

    Raises:
      DataError: if there is no such row, or it is bad.
    """
    checks.check(config, LOSSES)
    tokenizer = data_wiring.load_tokenizer(config)
    with config.copy_and_resolve_references().unlocked() as own:
        own.data.eval = ""
        own.data.on_bad_row = "drop"
        own.data.limit = max(index + 1, 1)
        data = data_wiring.load_data(own, tokenizer)
    found = [record for record in data.train if record.index == index]
    if not found:
        dropped = data.report["train"]["dropped"]
        raise DataError(
            f"--index={index}: there is no such good row in data.train="
            f"{config.data.train!r} (bad rows until there: {dropped or 'none'})"
        )
    whole = _uncut(config, tokenizer, index)
    lost = [
        len(long) - len(short)
        for long, short in zip(
            (whole.prompt, *whole.responses),
            (found[0].prompt, *found[0].responses),
            strict=True,
        )
    ]
    return Shown(found[0], tokenizer, lost[0], sum(lost[1:]))


def _uncut(config: Config, tokenizer: Any, index: int) -> Record:
    """Tokenizes the same row with no limit on its length."""
    with config.copy_and_resolve_references().unlocked() as own:
        own.data.eval = ""
        own.data.on_bad_row = "drop"
        own.data.limit = index + 1
        own.data.max_tokens = 10**9
        own.data.max_prompt_tokens = 10**8
        data = data_wiring.load_data(own, tokenizer)
    return next(record for record in data.train if record.index == index)


def as_text(row: Shown) -> str:
    """Renders ids, text, mask, boundary and truncation."""
    record, decode = row.record, row.tokenizer.decode
    names = ("chosen", "rejected") if len(record.responses) == 2 else ("completion",)
    counted = zip(names, record.responses, strict=True)
    sizes = ", ".join(f"{name} {len(ids)}" for name, ids in counted)
    prompt = f"prompt {len(record.prompt)} tokens (cut {row.prompt_cut})"
    lines = [
        f"row {record.index}: {prompt}, {sizes} (cut {row.responses_cut})",
        f"prompt ids   {_ids(record.prompt)}",
        f"prompt text  {decode(record.prompt)!r}",
    ]
    for name, ids in zip(names, record.responses, strict=True):
        mask = "0" * len(record.prompt) + "1" * len(ids)
        lines += [
            f"{name} ids   {_ids(ids)}",
            f"{name} text  {decode(ids)!r}",
            f"{name} mask  {mask}  (boundary at {len(record.prompt)})",
        ]
    return "\n".join(lines) + "\n"


def _ids(ids: np.ndarray) -> str:
    return " ".join(str(int(i)) for i in ids)


def explain(
    config: Config, row: Shown, workdir: os.PathLike | str | None
) -> list[Score]:
    """Scores every response token of a row under policy and reference.

    Args:
      config: of the run.
      row: from `tokenized`.
      workdir: take the policy from this run's newest checkpoint; None = model.path.
    """
    built = mesh.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    shards = mesh.row_shards(built)
    with jax.set_mesh(built):
        settings = Settings(1, 1, config.data.layout, 0, shards)
        local = Loader([row.record], [[0]], settings).batch_at(0)
        batch = arrays.to_global(local, arrays.row_sharding(built, leading=1))
        folder, spec = model_wiring.find_model(config, row.tokenizer)
        model = model_wiring.make_model(config, folder, spec)
        reference = model_wiring.make_reference(config, model, built)
        if workdir is None:
            params = model_wiring.load_params(model, built, "float32", seed=config.seed)
        else:
            _, params = restoring.trained_params(workdir, model, built)
        if reference is not None:
            batch = reference.annotate(None, batch)
        rows = jax.tree.map(lambda leaf: leaf[0], batch)
        stats = jax.jit(
            lambda params, rows: terms.token_stats(
                model.apply, params, rows, config.model.logits_chunk
            )
        )(params, rows)
        return list(_scores(jax.device_get(rows), jax.device_get(stats)))


def _scores(rows: Batch, stats: Any) -> list[Score]:
    """Lists the scored tokens, responses in order."""
    slots = rows.ends.shape[1]
    pairs = rows.pairs.reshape(-1, 2)
    order = {
        int(p): which
        for pair in pairs[pairs[:, 0] >= 0]
        for which, p in enumerate(pair)
    }
    found = []
    for b, c in zip(*np.nonzero(rows.slots < slots), strict=True):
        reference = rows.ref_token_logps
        found.append(
            Score(
                response=order.get(int(b * slots + rows.slots[b, c]), 0),
                target=int(rows.targets[b, c]),
                policy=float(stats.logps[b, c]),
                reference=None if reference is None else float(reference[b, c]),
                entropy=float(stats.entropy[b, c]),
            )
        )
    return sorted(found, key=lambda score: score.response)


def scores_as_text(row: Shown, scores: list[Score]) -> str:
    """Renders scored tokens one a line, with the sums of each response."""
    lines = [
        f"{'response':<10}{'id':>8}  {'policy':>10}{'ref':>10}{'entropy':>10}  token"
    ]
    names = (
        ("chosen", "rejected") if len(row.record.responses) == 2 else ("completion",)
    )
    for which, name in enumerate(names):
        own = [score for score in scores if score.response == which]
        for score in own:
            ref = "–" if score.reference is None else f"{score.reference:.4f}"
            token = row.tokenizer.decode([score.target])
            lines.append(
                f"{name:<10}{score.target:>8}  {score.policy:>10.4f}{ref:>10}"
                f"{score.entropy:>10.4f}  {token!r}"
            )
        total = sum(score.policy for score in own)
        lines.append(f"{name:<10}{'sum':>8}  {total:>10.4f}")
    return "\n".join(lines) + "\n"
