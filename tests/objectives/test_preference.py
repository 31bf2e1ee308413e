"""Pairs gathered and metrics averaged, by hand; what is masked counts exactly 0."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layout_cases import rows_of

from dpo_jax.data import planning
from dpo_jax.losses import LOSSES, find
from dpo_jax.objectives import preference, terms
from dpo_jax.objectives.judged import Judged
from dpo_jax.objectives.sft import COMPLETIONS
from dpo_jax.objectives.terms import Scorer
from dpo_jax.types import Columns, Head, Record

STATIC = {"divergence": "reverse_kl", "divergence_alpha": 1.0, "normalize": "sum"}
BETA = 0.5
HYPER = {"beta": jnp.float32(BETA), "label_smoothing": jnp.float32(0.0)}
VOCAB = 7

# Two rows of two slots: (chosen, rejected) = slots (0, 1), (3, 2); one empty place.
COLUMNS = Columns(
    lengths=jnp.float32([[2, 4], [3, 5]]),
    pairs=jnp.array([[[0, 1], [-1, -1]], [[3, 2], [-1, -1]]]),
    response={
        "logps": jnp.float32([[-1.0, -4.0], [-3.0, -2.0]]),
        "ref_logps": jnp.float32([[-2.0, -3.0], [-3.5, -1.0]]),
        "entropy": jnp.float32([[2, 4], [6, 2]]),
        "correct": jnp.float32([[1, 4], [2, 0]]),
    },
)


def with_column(columns, name, values):
    """Puts other values into a column of responses; None takes it away."""
    response = {**columns.response, name: values}
    kept = {name: v for name, v in response.items() if v is not None}
    return columns._replace(response=kept)


COUNTS = {"pairs": np.float32(2), "chosen_tokens": np.float32(7)}


@functools.cache
def objective(name="dpo", apply=None):
    loss = find(name, LOSSES)
    given = {**STATIC, "beta": BETA, "label_smoothing": 0.0}
    return Judged(preference.PAIRS, Scorer(apply, 4), (loss.bind(given),))


def means(sums):
    return {name: float(total / count) for name, (total, count) in sums.items()}


def valued(name, columns=COLUMNS):
    """Returns the loss and the metrics of columns."""
    value, sums = objective(name).loss(columns, {}, {}, HYPER, COUNTS)
    return float(value), means(sums)


def bigram(params, batch):
    """A model of three lines: the next token depends on the token alone."""
    return jax.nn.one_hot(batch.tokens, VOCAB), Head(params, None), {}


def rows(records, layout="prefix_shared", spare=0):
    least = rows_of(layout, records)[1].rows
    return rows_of(layout, records, rows=least + spare)[2]


def record(index, *parts):
    prompt, *responses = (np.array(part, np.int32) for part in parts)
    return Record(index, prompt, tuple(responses), comparisons=((0, 1),))


RECORDS = [
    record(0, [1, 2], [3, 4, 5], [6]),
    record(1, [2], [5, 5], [1, 3, 4]),
    record(2, [6, 1, 3], [2], [4, 2]),
]
TABLE = jnp.asarray(np.random.default_rng(0).normal(size=(VOCAB, VOCAB)), jnp.float32)
REF = jnp.asarray(np.random.default_rng(1).normal(size=(VOCAB, VOCAB)), jnp.float32)


@jax.jit
def annotated(batch):
    stats, _ = terms.token_stats(bigram, REF, batch, 4)
    return batch._replace(token={"ref_logps": stats.logps})


@functools.partial(jax.jit, static_argnums=0)
def graded(fit, table, batch):
    """Returns (mean loss, sums), and the gradient of the mean."""

    def mean(table):
        columns, reports = fit.score(table, {}, batch, None, HYPER)
        return fit.loss(columns, reports, {}, HYPER, fit.counts(batch))

    return jax.value_and_grad(mean, has_aux=True)(table)


def test_pairs_are_gathered_across_rows():
    pairs = preference.gather_pairs(COLUMNS)
    assert pairs.mask.tolist() == [True, False, True, False]
    np.testing.assert_array_equal(pairs.chosen, [-1, 0, -2, 0])
    np.testing.assert_array_equal(pairs.rejected, [-4, 0, -3, 0])
    np.testing.assert_array_equal(pairs.ref_chosen, [-2, 0, -1, 0])
    np.testing.assert_array_equal(pairs.ref_rejected, [-3, 0, -3.5, 0])
    np.testing.assert_array_equal(pairs.chosen_lengths, [2, 0, 5, 0])
    np.testing.assert_array_equal(pairs.rejected_lengths, [4, 0, 3, 0])


def test_soft_labels_weigh_both_orders_by_the_rewards():
    """Rewards of the two pairs of `COLUMNS` are 1 and .5 apart.

    dpo: −p log σ(βδ) − (1 − p) log σ(−βδ); ipo: p(δ − c)² + (1 − p)(δ + c)² with c of
    1/(2β).
    """
    columns = with_column(COLUMNS, "scores", jnp.float32([[0.2, -0.8], [0.2, 0.7]]))
    pairs, beta = preference.gather_pairs(COLUMNS), float(HYPER["beta"])
    ratios = pairs.chosen - pairs.ref_chosen - pairs.rejected + pairs.ref_rejected
    delta, p = np.asarray(ratios)[[0, 2]], 1 / (1 + np.exp(-np.array([1.0, 0.5])))
    log_sigmoid = lambda x: -np.log1p(np.exp(-x))  # noqa: E731
    c, sure, not_ = 1 / (2 * beta), p, 1 - p
    due = {
        "dpo": -sure * log_sigmoid(beta * delta) - not_ * log_sigmoid(-beta * delta),
        "ipo": sure * (delta - c) ** 2 + not_ * (delta + c) ** 2,
    }
    for name, each in due.items():
        soft = dataclasses.replace(objective(name), soften=preference.bradley_terry)
        value, _ = soft.loss(columns, {}, {}, HYPER, COUNTS)
        assert float(value) == pytest.approx(
            each.sum() / float(COUNTS["pairs"]), rel=1e-5
        )


def test_losses_that_take_soft_labels_are_those_of_single_pairs():
    takes = {n for n in LOSSES if find(n, LOSSES).takes_soft_labels}
    assert {"dpo", "ipo", "hinge", "simpo", "tdpo2", "dpop", "unlikelihood"} < takes
    coupled = {"aot", "beta_dpo", "dr_dpo", "bco_pair", "alpha_dpo"}
    assert not takes & {*coupled, "orpo", "cpo", "sft", "kto", "bradley_terry"}


def test_metrics_by_hand():
    """a = (1, −1), b = (−1, .5); δ = (2, −1.5); losses log(1 + e^−1), log(1 + e^.75).

    14 response tokens with 14 nats of entropy; 1 of 7 chosen ones is the likeliest.
    """
    loss, got = valued("dpo")
    want_loss = (np.log1p(np.exp(-1)) + np.log1p(np.exp(0.75))) / 2
    np.testing.assert_allclose(loss, want_loss, rtol=1e-6)
    assert objective().update(COLUMNS, {}, HYPER) == {}
    want = {
        "entropy": 1.0,
        "mean_token_accuracy": 1 / 7,
        "logps/chosen": -1.5,
        "logps/rejected": -3.5,
        "logps/ref_chosen": -1.5,
        "logps/ref_rejected": -3.25,
        "lengths/chosen": 3.5,
        "lengths/rejected": 3.5,
        "rewards/chosen": 0.0,
        "rewards/rejected": -0.125,
        "rewards/margins": 0.125,
        "rewards/accuracies": 0.5,
        "displacement/chosen": 0.0,
        "displacement/chosen_falling": 0.5,
    }
    assert got.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-6, err_msg=name)


def test_a_tie_is_half_a_win():
    """Of a policy that is its own reference nobody is ahead: accuracy ½, not 0."""
    equal = with_column(COLUMNS, "ref_logps", COLUMNS.response["logps"])
    assert valued("dpo", equal)[1]["rewards/accuracies"] == 0.5
    one = jnp.array([1.0, 2.0, 1.0]), jnp.array([1.0, 1.0, 2.0])
    np.testing.assert_array_equal(terms.wins(*one), [0.5, 1.0, 0.0])


def test_without_a_reference_its_metrics_are_missing():
    """Rewards are then β × log-prob; the reference counts as 0."""
    _, got = valued("sft", with_column(COLUMNS, "ref_logps", None))
    assert not any("ref" in name or "displacement" in name for name in got)
    np.testing.assert_allclose(got["rewards/chosen"], BETA * -1.5)
    np.testing.assert_allclose(got["rewards/margins"], BETA * 2.0)


def test_rewards_do_not_depend_on_the_loss():
    for name in ("dpo", "ipo", "hinge", "sft"):
        np.testing.assert_allclose(valued(name)[1]["rewards/margins"], 0.125)


def test_rewards_of_means_are_what_simpo_compares():
    """β 2: −10 over 10 tokens and −7.5 over 5 are −2 and −3, whatever the sums."""
    four = lambda value: jnp.full(4, value)  # noqa: E731
    pairs = preference.gather_pairs(COLUMNS)._replace(
        chosen=four(-10.0),
        rejected=four(-7.5),
        ref_chosen=four(0.0),
        ref_rejected=four(0.0),
        chosen_lengths=four(10.0),
        rejected_lengths=four(5.0),
    )
    hyper = {"beta": jnp.float32(2.0)}
    shown = means(preference.metrics_of_means(COLUMNS, pairs, hyper))
    assert shown["rewards/chosen"] == -2 and shown["rewards/rejected"] == -3
    assert shown["rewards/margins"] == 1 and shown["rewards/accuracies"] == 1
    summed = means(preference.metrics(COLUMNS, pairs, hyper))
    assert summed["rewards/margins"] == -5 and summed["rewards/accuracies"] == 0
    assert shown["logps/chosen"] == summed["logps/chosen"] == -10


def test_sft_is_a_mean_over_chosen_tokens():
    """(1 + 2) nats over 2 + 5 tokens."""
    np.testing.assert_allclose(valued("sft")[0], 3 / 7, rtol=1e-6)


@pytest.mark.parametrize("name", ["dpo", "ipo", "hinge", "sft"])
def test_masked_pairs_contribute_exactly_nothing(name):
    """Neither value nor gradient, whatever stands in the slots that no pair names."""
    fit = objective(name)
    pairs = jnp.array([[[0, 1], [-1, -1]], [[-1, -1], [-1, -1]]])

    @jax.jit
    def total(other):
        logps = COLUMNS.response["logps"].at[1].set(other)
        columns = with_column(COLUMNS, "logps", logps)._replace(pairs=pairs)
        counts = {"pairs": 1.0, "chosen_tokens": 1.0}
        return fit.loss(columns, {}, {}, HYPER, counts)[0]

    gathered = preference.gather_pairs(COLUMNS)
    dpo = fit.losses[0]
    alone = dpo.loss(jax.tree.map(lambda x: x[:1], gathered), dpo.options(HYPER))
    for other in (0.0, 1e4, -1e4, np.inf, np.nan):
        np.testing.assert_allclose(total(jnp.full(2, other)), alone[0], rtol=1e-6)
        assert not np.asarray(jax.grad(total)(jnp.full(2, other))).any()


def test_the_reference_gets_no_gradient():
    def total(ref):
        columns = with_column(COLUMNS, "ref_logps", ref)
        return objective().loss(columns, {}, {}, HYPER, COUNTS)[0]

    assert not np.asarray(jax.grad(total)(COLUMNS.response["ref_logps"])).any()


@pytest.mark.parametrize("layout", sorted(planning.LAYOUTS))
@pytest.mark.parametrize("spare", [0, 2])
def test_layouts_and_empty_rows_change_nothing(layout, spare):
    """Loss, metrics and gradients of a model, against one response a row."""
    fit = objective(apply=bigram)
    padded = annotated(rows(RECORDS, "padded"))
    (loss, want), want_grads = graded(fit, TABLE, padded)
    batch = annotated(rows(RECORDS, layout, spare))
    (same, got), got_grads = graded(fit, TABLE, batch)
    np.testing.assert_allclose(got_grads, want_grads, atol=1e-6)
    np.testing.assert_allclose(same, loss, rtol=1e-6)
    assert got["logps/chosen"][1] == fit.counts(batch)["pairs"] == 3
    for name, value in means(want).items():
        np.testing.assert_allclose(means(got)[name], value, rtol=1e-5, err_msg=name)


def test_log_probs_of_a_bigram_model_by_numpy():
    """Sums log softmax(table[previous])[next] along each response."""
    logps = np.asarray(jax.nn.log_softmax(TABLE))
    batch = rows(RECORDS)
    columns = objective(apply=bigram).score(TABLE, {}, batch, None, HYPER)[0]
    pairs = preference.gather_pairs(columns)
    found = {}
    for place, (chosen, _) in enumerate(batch.pairs.reshape(-1, 2)):
        if chosen >= 0:
            index = batch.ids.reshape(-1)[chosen]
            found[index] = (pairs.chosen[place], pairs.rejected[place])
    for entry in RECORDS:
        for response, got in zip(entry.responses, found[entry.index], strict=True):
            chain = [entry.prompt[-1], *response]
            want = sum(logps[a, b] for a, b in zip(chain, chain[1:], strict=False))
            np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("name, want", [("dpo", np.log(2)), ("hinge", 1.0)])
def test_the_first_loss_where_policy_and_reference_are_equal(name, want):
    """ln 2 to 1e-6: δ is exactly 0."""
    batch = rows(RECORDS)
    own = terms.token_stats(bigram, TABLE, batch, 4)[0].logps
    fit = objective(name, bigram)
    batch = batch._replace(token={"ref_logps": own})
    columns, reports = fit.score(TABLE, {}, batch, None, HYPER)
    loss, sums = fit.loss(columns, reports, {}, HYPER, fit.counts(batch))
    got = means(sums)
    assert abs(loss - want) < 1e-6
    assert got["rewards/margins"] == got["displacement/chosen"] == 0.0


def test_preferred_fine_tuning_is_sft_on_the_chosen():
    """Loss and gradient of pairs under `sft` equal those of completions."""
    completions = [
        r._replace(responses=r.responses[:1], comparisons=()) for r in RECORDS
    ]

    preferred = objective("sft", bigram)
    sft = Judged(COMPLETIONS, Scorer(bigram, 4), preferred.losses)
    (one, sums), slope = graded(sft, TABLE, rows(completions, "packed"))
    (two, _), other = graded(preferred, TABLE, rows(RECORDS))
    np.testing.assert_allclose(one, two, rtol=1e-6)
    np.testing.assert_allclose(slope, other, atol=1e-7)
    got = means(sums)
    assert got["lengths/chosen"] == 2.0  # 3, 2 and 1 tokens
    np.testing.assert_allclose(got["logps/chosen"] * 3, -one * 6, rtol=1e-6)
