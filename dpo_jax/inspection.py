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

from dpo_jax import config as config_lib
from dpo_jax import roles
from dpo_jax.data import layouts, prepare
from dpo_jax.data.loader import Loader, Settings
from dpo_jax.errors import ConfigError
from dpo_jax.losses import LOSSES
from dpo_jax.objectives import OBJECTIVES, terms
from dpo_jax.objectives.algorithms import SampleKind
from dpo_jax.precision import in_products_of
from dpo_jax.schema import Config, Section
from dpo_jax.sharding import arrays
from dpo_jax.sharding import mesh as mesh_lib
from dpo_jax.train import annotate
from dpo_jax.types import (
    Array,
    Batch,
    Frozen,
    Params,
    Record,
    TokenStats,
)
from dpo_jax.wiring import checks, loss_checks, reading, restoring, weights
from dpo_jax.wiring import data as data_wiring
from dpo_jax.wiring import model as model_wiring
from dpo_jax.wiring import objective as objective_wiring

Scored = tuple[TokenStats, Array]  # of a row's tokens, and its loss


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
      index: position of the row in its source; of a mixture, numbered through.

    Raises:
      DataError: if there is no such row, or it is bad; where bad rows are dropped, the
        next good one is shown.
    """
    rated = loss_checks.reads_ratings(checks.check(config, LOSSES), config.loss)
    path, seconds = config.tokenizer.path, config.distributed.timeout_seconds
    tokenizer = data_wiring.load_tokenizer(path, config.model, config.data.train)
    now = data_wiring.launch_time(config.data, tokenizer, seconds=seconds)
    config = config_lib.stated(config, {"data.now": now})
    request = reading.request_of(config, reads_ratings=rated)
    found = reading.sources_of(request, "train", tokenizer, on_bad_row="error")
    sources = [each.source for each in found.values()]
    drop = config.data.on_bad_row == "drop"
    record, cut = prepare.prepare_one(sources, index, drop=drop)
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
    responses = zip(names, record.responses, layouts.scored_of(record), strict=True)
    for name, ids, scored in responses:
        counts = "".join("01"[int(each)] for each in scored)
        mask = "0" * len(record.prompt) + counts
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


def explain(
    config: Config, record: Record, tokenizer: Any, workdir: os.PathLike | str | None
) -> Explained:
    """Scores every response token of a record under policy and reference.

    Args:
      config: of the run.
      record: from `tokenized`.
      tokenizer: likewise.
      workdir: take the policy from this run's newest checkpoint; None = model.path.

    Raises:
      ConfigError: if the objective scores no tokens.
    """
    kind, losses = OBJECTIVES[config.objective], checks.check(config, LOSSES)
    if kind.scalar or isinstance(kind, SampleKind):
        raise ConfigError(
            "--explain shows the log-probs of tokens; "
            f"objective={config.objective!r} has none in its data"
        )
    mesh = mesh_lib.make_mesh(**config.mesh)
    chunk, seed = config.model.logits_chunk, config.seed
    with jax.set_mesh(mesh):
        policy = model_wiring.make_policy(config, tokenizer)
        ignored = config.model.ignore_attributes
        reference = model_wiring.reference_model(policy, config.ref, mesh, ignored)
        whole = objective_wiring.needs_whole_reference(losses)
        base = weights.base_params(policy, mesh, seed=seed)
        params = restoring.policy_params(workdir, policy, mesh, base, seed=seed)
        batch, frozen = one_row_batch(record, config.data.layout, mesh), {}
        if reference is not None:
            own = weights.own_params(reference, mesh, seed=seed)
            ref = roles.whole(own, base if reference.on_base else {})
            ask = model_wiring.compile_ask(reference, mesh, chunk=chunk, whole=whole)
            frozen, batch = {"ref": ref}, annotate.with_tokens(batch, ask(ref, batch))
        objective = objective_wiring.make_objective(
            kind,
            losses,
            config.loss,
            policy.apply,
            chunk=chunk,
            ref_head=reference.head if reference is not None and whole else None,
        )
        hyper = objective_wiring.hyper(losses, config.loss)
        start = objective_wiring.start_stats(losses)
        rows = jax.tree.map(lambda leaf: leaf[0], batch)

        def take(params: Params, frozen: Frozen, rows: Batch) -> Scored:
            stats, _ = terms.token_stats(policy.apply, params, rows, chunk)
            key = jax.random.key(seed)
            columns, reports = objective.score(params, frozen, rows, key, hyper)
            kept, counts = (
                objective.update(columns, start, hyper),
                objective.counts(rows),
            )
            return stats, objective.loss(columns, reports, kept, hyper, counts)[0]

        compiled = jax.jit(in_products_of(config.model.dtype, take))
        stats, loss = jax.device_get(compiled(params, frozen, rows))
    return Explained(list(_scores(jax.device_get(rows), stats)), float(loss))


def one_row_batch(record: Record, layout: str, mesh: Mesh) -> Batch:
    """Lays one record out, alone, with a leading axis of one microbatch."""
    settings = Settings(1, 1, layout, 0, mesh_lib.row_shards(mesh))
    whole = Loader([record], [[0]], settings).batch_at(0)
    return arrays.spread(whole, arrays.row_sharding(mesh, leading=1))


def _scores(rows: Batch, stats: TokenStats) -> list[Score]:
    """Lists the scored tokens, responses in order."""
    slots = rows.ends.shape[1]
    branches = np.take_along_axis(rows.branches, rows.ends, axis=1)  # [B, R]
    scores = []
    for b, c in zip(*np.nonzero(rows.slots < slots), strict=True):
        reference = rows.token.get("ref_logps")
        scores.append(
            Score(
                response=int(branches[b, rows.slots[b, c]]) - 1,
                target=int(rows.targets[b, c]),
                policy=float(stats.logps[b, c]),
                reference=None if reference is None else float(reference[b, c]),
                entropy=float(stats.entropy[b, c]),
            )
        )
    return sorted(scores, key=lambda score: score.response)


def explained_as_text(
    row: Shown, explained: Explained, *, objective: str, loss: Section
) -> str:
    """Renders scored tokens one a line, the sums, and what the loss makes of them.

    Of a pair with a reference: Δ, the difference of the summed log-ratios, and
    σ(−βΔ), the weight of the pair in the gradient of DPO (arXiv:2305.18290 section 4).

    Args:
      row: from `tokenized`.
      explained: from `explain`.
      objective: its name.
      loss: `config.loss`.
    """
    columns = ("policy", "ref", "difference", "entropy")
    head = "".join(f"{name:>12}" for name in columns)
    lines = [f"{'response':<12}{'id':>8}{head}  token"]
    sums = []
    for which, name in enumerate(names_of(row.record)):
        own = [score for score in explained.scores if score.response == which]
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
    of_pairs = OBJECTIVES[objective].record == "pairs"
    ratios = [policy - ref for policy, ref in sums if ref is not None]
    if of_pairs and len(ratios) == 2:
        lines += _verdict(ratios[0], ratios[1], loss["beta"])
    lines.append(f"loss {loss['name']} = {explained.loss:.6f}")
    return "\n".join(lines) + "\n"


def _cells(policy: float, reference: float | None) -> str:
    if reference is None:
        return f"{policy:>12.4f}{'–':>12}{'–':>12}"
    return f"{policy:>12.4f}{reference:>12.4f}{policy - reference:>12.4f}"


def _verdict(chosen: float, rejected: float, beta: float) -> list[str]:
    """Says what the log-ratios of a pair come to."""
    delta = chosen - rejected
    weight = 1 / (1 + math.exp(min(beta * delta, 700.0)))
    return [
        f"Δ = {chosen:.4f} − {rejected:.4f} = {delta:.4f} nats",
        f"gradient weight σ(−βΔ) = {weight:.4f} at β = {beta:g}",
    ]
