"""Completions of which some tokens count: by NumPy, and alike in every layout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layout_cases import rows_of

from dpo_jax.data import planning
from dpo_jax.losses import LOSSES, find
from dpo_jax.objectives import preference, sft
from dpo_jax.objectives.judged import Judged
from dpo_jax.objectives.terms import Scorer
from dpo_jax.types import Head, Record

VOCAB = 9
TABLE = jnp.asarray(np.random.default_rng(3).normal(size=(VOCAB, VOCAB)), jnp.float32)
HYPER = {"beta": jnp.float32(0.5), "label_smoothing": jnp.float32(0.0)}


def bigram_of_all(params, batch):
    """The next token depends on all tokens before it, by their mean, and on the last.

    So that what does not count is seen.
    """
    hot = jax.nn.one_hot(batch.tokens, VOCAB)  # [B, T, V]
    docs, branches, places = batch.docs, batch.branches, jnp.arange(hot.shape[1])
    seen = (docs[:, :, None] == docs[:, None]) & (places[:, None] >= places)
    seen &= (branches[:, None] == 0) | (branches[:, None] == branches[:, :, None])
    before = jnp.einsum("bqk,bkv->bqv", seen.astype(jnp.float32), hot)
    return hot + before / seen.sum(-1, keepdims=True), Head(params, None), {}


def record(index, prompt, *responses):
    """A response is a list of (token, whether it counts)."""
    ids = tuple(np.array([i for i, _ in r], np.int32) for r in responses)
    masks = tuple(np.array([c for _, c in r], bool) for r in responses)
    pairs = ((0, 1),) * (len(responses) == 2)
    return Record(
        index, np.array(prompt, np.int32), ids, pairs, token={"scored": masks}
    )


def turns(*counted):
    """Tokens that count, then as many that do not, and so on."""
    return [(i, at % 2 == 0) for at, part in enumerate(counted) for i in part]


CHATS = [
    record(0, [1, 2], turns([3, 4], [5, 6, 1], [7])),
    record(1, [8], turns([2], [2, 2], [4, 3, 8])),
    record(2, [5, 6, 3], turns([1, 1, 7])),
]
PAIRS = [
    record(0, [1, 2], turns([3, 4], [5, 6, 1], [7]), turns([6])),
    record(1, [8], turns([2]), turns([5, 3], [1], [4, 4])),
]


@functools.cache
def objective(name, kind):
    static = {"divergence": "reverse_kl", "divergence_alpha": 1.0, "normalize": "sum"}
    given = {**static, "beta": 0.5, "label_smoothing": 0.0, "likelihood": ""}
    loss = find(name, LOSSES).bind(given)
    return Judged(kind, Scorer(bigram_of_all, 4), (loss,))


@functools.partial(jax.jit, static_argnums=0)
def graded(fit, table, batch):
    def mean(table):
        columns, reports = fit.score(table, {}, batch, None, HYPER)
        return fit.loss(columns, reports, {}, HYPER, fit.counts(batch))

    return jax.value_and_grad(mean, has_aux=True)(table)


def by_numpy(rows):
    """Lists the log-prob of each token that counts, response by response."""
    table, found = np.asarray(TABLE, np.float64), []
    for row in rows:
        for ids, scored in zip(row.responses, row.token["scored"], strict=True):
            text = np.concatenate([row.prompt, ids])
            hot = np.eye(VOCAB)[text]
            mean = np.cumsum(hot, 0) / np.arange(1, len(text) + 1)[:, None]
            logits = (hot + mean) @ table
            logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            at = len(row.prompt) + np.flatnonzero(scored)
            found.append(logps[at - 1, text[at]])
    return found


@pytest.mark.parametrize("layout", sorted(planning.LAYOUTS))
def test_the_mean_is_over_the_tokens_that_count(layout):
    """10 of the 15 response tokens."""
    want = by_numpy(CHATS)
    fit = objective("sft", sft.COMPLETIONS)
    (loss, sums), _ = graded(fit, TABLE, rows_of(layout, CHATS)[2])
    every = np.concatenate(want)
    assert len(every) == 10
    np.testing.assert_allclose(loss, -every.mean(), rtol=1e-6)
    total, count = sums["lengths/chosen"]
    assert (total, count) == (10, 3)
    total, count = sums["logps/chosen"]
    np.testing.assert_allclose(total, every.sum(), rtol=1e-6)


@pytest.mark.parametrize("layout", sorted(planning.LAYOUTS))
@pytest.mark.parametrize(
    "rows, name, kind",
    [(CHATS, "sft", sft.COMPLETIONS), (PAIRS, "dpo", preference.PAIRS)],
    ids=["sft", "dpo"],
)
def test_layouts_change_nothing(layout, rows, name, kind):
    """Loss, metrics and gradients, against one response a row; β = ½, no reference."""
    fit = objective(name, kind)

    def laid_out(layout):
        batch = rows_of(layout, rows)[2]
        zeros = jnp.zeros(batch.targets.shape, jnp.float32)
        return batch._replace(token={"ref_logps": zeros})

    (loss, want), want_grads = graded(fit, TABLE, laid_out("padded"))
    (same, got), grads = graded(fit, TABLE, laid_out(layout))
    np.testing.assert_allclose(same, loss, rtol=1e-6)
    np.testing.assert_allclose(grads, want_grads, atol=1e-6)
    for metric, both in want.items():
        np.testing.assert_allclose(got[metric], both, rtol=1e-5, err_msg=metric)
    if name == "dpo":
        sums = [each.sum() for each in by_numpy(rows)]
        gaps = np.subtract(sums[::2], sums[1::2])
        np.testing.assert_allclose(loss, np.log1p(np.exp(-gaps / 2)).mean(), rtol=1e-6)
