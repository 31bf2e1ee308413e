"""Attention alone: backends against each other on prefix-shared rows.

    python -m experiments.throughput.backends [--rows=8] [--row_tokens=1024] [--turns=7]

Forward and backward of one layer on pairs as long as hh-rlhf's, the backends taking
turns. `xla` runs the blocks that the forest's mask leaves, `dense` holds all scores.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.data import layouts, planning
from dpo_jax.data.planning import Plan
from dpo_jax.models import attention, forest
from dpo_jax.types import Batch, Record

BACKENDS = ("dense", "xla")
PROMPT, RESPONSE, SPREAD = 100, 62, 0.6  # medians of tokens, deviation of their logs
HEADS, HEAD_DIM = 8, 64


def drawn_rows(count: int, row_tokens: int) -> Batch:
    """Fills rows with pairs until one more would need another row."""
    rng = np.random.default_rng(0)

    def ids(median: int) -> np.ndarray:
        return np.ones(max(1, int(rng.lognormal(np.log(median), SPREAD))), np.int32)

    records: list[Record] = []
    while True:
        answers = ids(RESPONSE), ids(RESPONSE)
        record = Record(len(records), ids(PROMPT), answers, comparisons=((0, 1),))
        if len(record.prompt) + sum(map(len, answers)) > row_tokens:
            continue
        plan = plan_of([*records, record], row_tokens)
        if plan.rows.max() == count:
            break
        records.append(record)
    plan = plan_of(records, row_tokens)
    shape = layouts.shape_of(plan, row_tokens, group=0)
    return layouts.fill(layouts.rows_of(plan), records, shape)


def plan_of(records: list[Record], row_tokens: int) -> Plan:
    """Plans one microbatch."""
    together = np.zeros(len(records), np.int32)
    table = layouts.measure(records)
    return planning.plan("prefix_shared", table, together, row_tokens)


def pass_of(name: str) -> Callable:
    """Builds value and gradients of an attention."""
    backend = attention.BACKENDS[name]

    def total(
        q: jax.Array, k: jax.Array, v: jax.Array, cells: forest.Cells, slopes: jax.Array
    ) -> jax.Array:
        seen = backend.seen(cells, 0)
        scale = HEAD_DIM**-0.5
        out = attention.attention(q, k, v, seen, scale=scale, backend=backend)
        return (out * slopes * (cells.docs > 0)[..., None, None]).sum()

    return jax.jit(jax.grad(total, (0, 1, 2)))


def main(argv: list[str] | None = None) -> None:
    """Times the backends and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--row_tokens", type=int, default=1024)
    parser.add_argument("--turns", type=int, default=7)
    args = parser.parse_args(argv)
    batch = drawn_rows(args.rows, args.row_tokens)
    fields = (batch.docs, batch.branches, batch.positions)
    cells = forest.cells_of(*map(jnp.asarray, fields))
    keys = jax.random.split(jax.random.key(0), 4)
    shape = (*batch.tokens.shape, HEADS, HEAD_DIM)
    q, k, v, slopes = (jax.random.normal(key, shape) for key in keys)
    passes = {name: pass_of(name) for name in BACKENDS}
    grads = {name: run(q, k, v, cells, slopes) for name, run in passes.items()}
    seconds: dict[str, list[float]] = {name: [] for name in BACKENDS}
    for _ in range(args.turns):
        for name, run in passes.items():
            begun = time.perf_counter()
            jax.block_until_ready(run(q, k, v, cells, slopes))
            seconds[name].append(time.perf_counter() - begun)
    fill = (batch.docs > 0).mean()
    sys.stdout.write(f"{shape[0]} rows of {shape[1]} tokens, {fill:.1%} filled\n\n")
    sys.stdout.write("| backend | ms, median | × xla | gradient, from dense |\n")
    sys.stdout.write("|---|---|---|---|\n")
    base = statistics.median(seconds["xla"])
    for name in BACKENDS:
        median = statistics.median(seconds[name])
        pairs = zip(grads[name], grads["dense"], strict=True)
        apart = max(float(jnp.abs(a - b).max()) for a, b in pairs)
        line = f"| {name} | {1000 * median:.0f} | {median / base:.2f} | {apart:.1e} |\n"
        sys.stdout.write(line)


if __name__ == "__main__":
    main()
