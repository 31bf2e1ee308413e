"""Metrics over a set do not depend on how it is cut into batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.data import loader
from dpo_jax.data.loader import Loader, Settings
from dpo_jax.data.mixture import Sources, eval_steps
from dpo_jax.evals import preference
from dpo_jax.losses import LOSSES
from dpo_jax.objectives import terms
from dpo_jax.objectives.judged import Judged
from dpo_jax.objectives.preference import PAIRS, gather_pairs
from dpo_jax.types import Head, Record

VOCAB, SIZE = 9, 7
HYPER = {"beta": 0.3, "label_smoothing": 0.0}
OPTIONS = {"divergence": "reverse_kl", "divergence_alpha": 1.0, "normalize": "sum"}
TABLE, REF = np.random.default_rng(4).normal(size=(2, VOCAB, VOCAB)).astype(np.float32)


def bigram(table, batch):
    return jax.nn.one_hot(batch.tokens, VOCAB), Head(jnp.asarray(table), None), {}


SCORER, DPO = terms.Scorer(bigram, 16), LOSSES["dpo"].bind({**HYPER, **OPTIONS})
KIND = PAIRS._replace(of_set=lambda whole: {"slots": (whole.lengths > 0).sum()})
PLAIN = Judged(KIND, SCORER, (DPO,))


class Coupled(Judged):
    """A loss that compares every pair with the whole set's mean margin."""

    couples = True

    def loss(self, columns, reports, stats, hyper, counts):
        pairs = gather_pairs(columns)
        margins = pairs.chosen - pairs.rejected
        total, count = terms.masked_mean(margins, pairs.mask)
        spread = jnp.square(margins - total / count)
        value = jnp.where(pairs.mask, spread, 0.0).sum() / counts["pairs"]
        return value + stats["shift"], {}


def records():
    rng = np.random.default_rng(1)
    ids = lambda: rng.integers(0, VOCAB, rng.integers(1, 7)).astype(np.int32)  # noqa: E731
    return [Record(i, ids(), (ids(), ids()), ((0, 1),)) for i in range(SIZE)]


@functools.cache
def score(objective):
    def both(batch):
        scored = objective.score(TABLE, {}, batch, None, HYPER)
        return *scored, objective.counts(batch)

    return jax.jit(both)


def evaluate(objective, pairs, layout, shards=1):
    settings = Settings(pairs, 1, layout, 0, shards)
    loads = Loader(records(), loader.eval_steps(SIZE, pairs=pairs), settings)

    def batches():
        for step in range(len(loads)):
            rows = jax.tree.map(lambda leaf: leaf[0], loads.batch_at(step))
            stats, _ = terms.token_stats(bigram, REF, rows, 16)
            yield rows._replace(token={"ref_logps": stats.logps})

    return preference.evaluate(
        batches(),
        score=score(objective),
        objective=objective,
        stats={"shift": 2.0},
        hyper=HYPER,
    )


def test_each_source_is_measured_as_if_it_were_the_whole_set():
    """4 records of one source and 3 of another, in batches of 2; one pass over them."""
    settings, every = Settings(2, 1, "packed", 0, 1), records()
    of = Sources(("one", "other"), (), (4, 3), (0, 4))
    asked = []

    def measured(rows, steps, owners, objective):
        loads = Loader(rows, steps, settings)

        def batches():
            for step in range(len(loads)):
                asked.append(loads.ids_at(step))
                batch = jax.tree.map(lambda leaf: leaf[0], loads.batch_at(step))
                zeros = jnp.zeros(batch.targets.shape)
                yield batch._replace(token={"ref_logps": zeros})

        return preference.evaluate(
            batches(),
            score=score(objective),
            objective=objective,
            stats={"shift": 2.0},
            hyper=HYPER,
            owners=owners,
        )

    coupled = Coupled(PAIRS, SCORER, (DPO,))
    for objective in (PLAIN, coupled):
        asked.clear()
        owners = ["one", "one", "other", "other"]
        got = measured(every, eval_steps(of, pairs=2), owners, objective)
        assert sorted(sum(asked, [])) == list(range(SIZE))
        whole = measured(every, loader.eval_steps(SIZE, pairs=7), (), objective)
        for name, value in whole.items():
            np.testing.assert_allclose(got.pop(name), value, rtol=1e-5, err_msg=name)
        for name, rows in (("one", every[:4]), ("other", every[4:])):
            steps = loader.eval_steps(len(rows), pairs=7)
            for metric, value in measured(rows, steps, (), objective).items():
                found = got.pop(f"{name}/{metric}")
                np.testing.assert_allclose(found, value, rtol=1e-5, err_msg=metric)
        assert got == {}


def by_numpy():
    """Margins of every record, one after the other."""
    logps, ref = (
        t - np.log(np.exp(t.astype(np.float64)).sum(-1, keepdims=True))
        for t in (TABLE, REF)
    )

    def total(table, prompt, response):
        chain = [prompt[-1], *response]
        return sum(table[a, b] for a, b in zip(chain, chain[1:], strict=False))

    own = np.array(
        [[total(logps, r.prompt, s) for s in r.responses] for r in records()]
    )
    other = np.array(
        [[total(ref, r.prompt, s) for s in r.responses] for r in records()]
    )
    return own, other


CUTS = [
    (SIZE, "padded", 1),
    (1, "padded", 1),
    (3, "packed", 4),
    (2, "prefix_shared", 2),
]


@pytest.mark.parametrize("pairs, layout, shards", CUTS)
def test_every_record_counts_once_however_the_set_is_cut(pairs, layout, shards):
    """7 records in batches of 7, 1, 3 (the last of 1) and 2, against NumPy."""
    got = evaluate(PLAIN, pairs, layout, shards)
    own, other = by_numpy()
    rewards = HYPER["beta"] * (own - other)
    margins = rewards[:, 0] - rewards[:, 1]
    lengths = np.array([[len(s) for s in r.responses] for r in records()])
    want = {
        "loss": np.log1p(np.exp(-margins)).mean(),
        "rewards/margins": margins.mean(),
        "rewards/accuracies": (margins > 0).mean(),
        "rewards/chosen": rewards[:, 0].mean(),
        "logps/chosen": own[:, 0].mean(),
        "logps/ref_rejected": other[:, 1].mean(),
        "lengths/chosen": lengths[:, 0].mean(),
        "lengths/rejected": lengths[:, 1].mean(),
        "displacement/chosen": (own - other)[:, 0].mean(),
        "displacement/chosen_falling": ((own - other)[:, 0] < 0).mean(),
        "slots": 2 * SIZE,
    }
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, err_msg=name)
    assert got.keys() - want.keys() == {
        "entropy",
        "mean_token_accuracy",
        "logps/rejected",
        "logps/ref_chosen",
        "rewards/rejected",
    }


@pytest.mark.parametrize("pairs, layout, shards", CUTS)
def test_a_coupled_loss_couples_the_whole_set(pairs, layout, shards):
    """The variance of the margins: batches of one would give 0."""
    objective = Coupled(PAIRS, SCORER, (DPO,))
    got = evaluate(objective, pairs, layout, shards)
    own, _ = by_numpy()
    want = np.var(own[:, 0] - own[:, 1])
    assert want > 0.5
    np.testing.assert_allclose(got["loss"], want + 2.0, rtol=1e-5)
