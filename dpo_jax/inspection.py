"""One row under the lens: how it was tokenized and cut, and what every token scores.

For `show`. It goes through the same functions as training, so what it prints is what is
trained on.
"""

import dataclasses
import math
import os
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dpo_jax.config import Config
from dpo_jax.data import prepare
from dpo_jax.data.loader import Loader, Settings
from dpo_jax.errors import ConfigError
from dpo_jax.losses import LOSSES
from dpo_jax.objectives import terms
from dpo_jax.precision import in_products_of
from dpo_jax.sharding import arrays, mesh
from dpo_jax.train import annotate
from dpo_jax.types import (
    Array,
    Batch,
    Frozen,
    Objective,
    Params,
    Record,
    TokenStats,
)
from dpo_jax.wiring import checks, restoring
from dpo_jax.wiring import data as data_wiring
from dpo_jax.wiring import model as model_wiring
from dpo_jax.wiring import objective as objective_wiring
from dpo_jax.wiring.model import Model


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


class Explained(NamedTuple):
    """What the tokens of a row add up to.

    Attributes:
      scores: of every response token, responses in order.
      loss: of this row alone, as a first step would take it.
    """

    scores: list[Score]
    loss: float


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
    source, _ = data_wiring.source(config, "train", tokenizer, on_bad_row="error")
    record, cut = prepare.prepare_one(source, index)
    return Shown(record, tokenizer, cut.prompt_tokens_cut, cut.response_tokens_cut)


def as_text(row: Shown) -> str:
    """Renders ids, text, mask, boundary and truncation."""
    record, decode = row.record, row.tokenizer.decode
    names = names_of(record)
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


def names_of(record: Record) -> list[str]:
    """Names the responses of a record."""
    if record.ranked:
        return [f"rank {i + 1}" for i in range(len(record.responses))]
    return ["chosen", "rejected"] if len(record.responses) == 2 else ["completion"]


def _ids(ids: np.ndarray) -> str:
    return " ".join(str(int(i)) for i in ids)


def explain(config: Config, row: Shown, workdir: os.PathLike | str | None) -> Explained:
    """Scores every response token of a row under policy and reference.

    Args:
      config: of the run.
      row: from `tokenized`.
      workdir: take the policy from this run's newest checkpoint; None = model.path.

    Raises:
      ConfigError: if the objective scores no tokens.
    """
    if config.objective == "reward":
        raise ConfigError(
            "--explain shows the log-probs of tokens; objective='reward' has none"
        )
    losses = checks.check(config, LOSSES)
    built = mesh.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    with jax.set_mesh(built):
        folder, spec = model_wiring.find_model(config, row.tokenizer)
        model = model_wiring.make_model(config, folder, spec)
        whole = objective_wiring.needs_whole_reference(losses)
        reference = model_wiring.reference_model(config, model, built)
        if workdir is None:
            params = model_wiring.load_params(model, built, "float32", seed=config.seed)
        else:
            _, params = restoring.trained_params(workdir, model, built)
        batch, frozen = one_row_batch(config, row.record, built), {}
        if reference is not None:
            ref = model_wiring.load_reference(config, reference, built)
            score = model_wiring.compile_ask(config, reference, built, whole=whole)
            frozen, batch = {"ref": ref}, annotate.with_tokens(batch, score(ref, batch))
        ref_head = reference.head if reference is not None and whole else None
        objective = objective_wiring.make_objective(
            config, losses, model.apply, ref_head
        )
        return _explain(config, losses, model, objective, params, frozen, batch)


def one_row_batch(config: Config, record: Record, built: Mesh) -> Batch:
    """Lays one record out, alone, with a leading axis of one microbatch."""
    settings = Settings(1, 1, config.data.layout, 0, mesh.row_shards(built))
    whole = Loader([record], [[0]], settings).batch_at(0)
    return arrays.spread(whole, arrays.row_sharding(built, leading=1))


def _explain(
    config: Config,
    losses: objective_wiring.Losses,
    model: Model,
    objective: Objective,
    params: Params,
    frozen: Frozen,
    batch: Batch,
) -> Explained:
    hyper = objective_wiring.hyper(config, losses)

    def take(params: Params, frozen: Frozen, batch: Batch) -> tuple[TokenStats, Array]:
        rows = jax.tree.map(lambda leaf: leaf[0], batch)
        chunk = config.model.logits_chunk
        stats, _ = terms.token_stats(model.apply, params, rows, chunk)
        key = jax.random.key(config.seed)
        columns, reports = objective.score(params, frozen, rows, key, hyper)
        kept = objective.update(columns, objective_wiring.start_stats(losses), hyper)
        counts = objective.counts(rows)
        return stats, objective.loss(columns, reports, kept, hyper, counts)[0]

    compiled = jax.jit(in_products_of(config.model.dtype, take))
    stats, loss = jax.device_get(compiled(params, frozen, batch))
    rows = jax.tree.map(lambda leaf: leaf[0], jax.device_get(batch))
    return Explained(list(_scores(rows, stats)), float(loss))


def _scores(rows: Batch, stats: TokenStats) -> list[Score]:
    """Lists the scored tokens, responses in order."""
    slots = rows.ends.shape[1]
    branches = np.take_along_axis(rows.branches, rows.ends, axis=1)  # [B, R]
    found = []
    for b, c in zip(*np.nonzero(rows.slots < slots), strict=True):
        reference = rows.token.get("ref_logps")
        found.append(
            Score(
                response=int(branches[b, rows.slots[b, c]]) - 1,
                target=int(rows.targets[b, c]),
                policy=float(stats.logps[b, c]),
                reference=None if reference is None else float(reference[b, c]),
                entropy=float(stats.entropy[b, c]),
            )
        )
    return sorted(found, key=lambda score: score.response)


def explained_as_text(config: Config, row: Shown, found: Explained) -> str:
    """Renders scored tokens one a line, the sums, and what the loss makes of them.

    Of a pair with a reference: Δ, the difference of the summed log-ratios, and
    σ(−βΔ), the weight of the pair in the gradient of DPO (arXiv:2305.18290 section 4).
    """
    columns = ("policy", "ref", "difference", "entropy")
    head = "".join(f"{name:>12}" for name in columns)
    lines = [f"{'response':<12}{'id':>8}{head}  token"]
    sums = []
    for which, name in enumerate(names_of(row.record)):
        own = [score for score in found.scores if score.response == which]
        for score in own:
            token = row.tokenizer.decode([score.target])
            numbers = _cells(score.policy, score.reference)
            entropy = f"{score.entropy:>12.4f}"
            lines.append(f"{name:<12}{score.target:>8}{numbers}{entropy}  {token!r}")
        policy = sum(score.policy for score in own)
        known = [score.reference for score in own if score.reference is not None]
        reference = sum(known) if known else None
        lines.append(f"{name:<12}{'sum':>8}{_cells(policy, reference)}")
        sums.append((policy, reference))
    return "\n".join(lines + _verdict(config, sums, found.loss)) + "\n"


def _cells(policy: float, reference: float | None) -> str:
    if reference is None:
        return f"{policy:>12.4f}{'–':>12}{'–':>12}"
    return f"{policy:>12.4f}{reference:>12.4f}{policy - reference:>12.4f}"


def _verdict(
    config: Config, sums: list[tuple[float, float | None]], loss: float
) -> list[str]:
    """Says what the sums of a row come to."""
    lines = []
    ratios = [policy - ref for policy, ref in sums if ref is not None]
    if config.objective == "preference" and len(ratios) == 2:
        delta = ratios[0] - ratios[1]
        weight = 1 / (1 + math.exp(min(config.loss.beta * delta, 700.0)))
        lines += [
            f"Δ = {ratios[0]:.4f} − {ratios[1]:.4f} = {delta:.4f} nats",
            f"gradient weight σ(−βΔ) = {weight:.4f} at β = {config.loss.beta:g}",
        ]
    return [*lines, f"loss {config.loss.name} = {loss:.6f}"]
