# %% [markdown]
# # From Bradley-Terry to DPO
#
# Direct Preference Optimization (Rafailov et al. 2023,
# [arXiv:2305.18290](https://arxiv.org/abs/2305.18290), "the paper" below) trains a
# language model on pairs of answers, one of which somebody preferred. Its loss is one
# line. This lesson walks to that line in twelve short steps, in a world so small that
# every number can be looked at: one question, six possible answers.
#
# You need to have seen a language model and a sigmoid. No reinforcement learning.
#
# Each step states an equation, calls the functions of `dpo_jax` that training really
# uses, **asserts** the equation in float64, and draws one figure. If this file runs to
# its end, every equation in it held. The exercises after step 12 break one line each.
#
# Words: the **policy** π is the model that we train, the **reference** ref the frozen
# model it starts from. A pair holds a **chosen** and a **rejected** response to the
# same prompt; the paper writes y_w and y_l, winner and loser. Logarithms are natural.
#
# | in every figure | colour |
# |---|---|
# | policy · reference · the optimum π* | blue · grey · violet |
# | chosen · rejected | green · orange |
# | something wrong on purpose | red |

# %%
import itertools
from functools import partial

import drawing
import drawing_tokens
import jax
import jax.numpy as jnp
import numpy as np
import toy

from dpo_jax import exact, heads, logps
from dpo_jax.losses import LOSSES, find
from dpo_jax.models.decoder import Decoder, init_params
from dpo_jax.models.spec import preset
from dpo_jax.objectives import terms
from dpo_jax.objectives.preference import gather_pairs
from dpo_jax.types import PairLogps, PairScores

jax.config.update("jax_enable_x64", True)  # float64: equations to twelve digits
OUT = drawing.out_folder()
BETA = 0.5  # what it means: step 4

# %% [markdown]
# ## 1. A language model gives every sentence a probability
#
# A language model reads a beginning and gives each word a probability of coming next. A
# whole answer $y = (y_1, …, y_T)$ to a prompt $x$ then has the probability
#
# $$\pi(y \mid x) = \prod_{t=1}^{T} \pi(y_t \mid x, y_{<t}), \qquad
# \log \pi(y \mid x) = \sum_{t=1}^{T} \log \pi(y_t \mid x, y_{<t}).$$
#
# Our model is a table with a row of logits for everything that may have been read so
# far. It is asked *Where is Shanghai ?* and knows six answers, which end where the tree
# below ends. `logps.token_logps` looks up each word's log-prob, `logps.response_logps`
# adds them up over the answer. (How they do it is step 10.)


# %%
def score(table):
    """Returns log π of each of the six answers, f64[6]."""
    hidden, head, _ = toy.apply(table, ROWS)
    words = logps.token_logps(hidden, head, ROWS.parents, ROWS.targets, chunk=8)
    ones = jnp.ones_like(words.logps)
    return logps.response_logps(words.logps, ones, ROWS.slots, 1)[:, 0]


ROWS = toy.answer_rows()  # one row an answer: the prompt, then the answer
TABLE = jnp.asarray(toy.reference_table(seed=25))
REF = score(TABLE)


def chances(text):
    """Returns the probability of each next word after the prompt and `text`."""
    return toy.next_words(TABLE, f"{toy.PROMPT} {text}")


# log π(y|x) = Σ_t log π(y_t | x, y_<t), and the six answers are all there is
by_hand = chances("")["In"] * chances("In")["China"]
assert abs(jnp.exp(REF)[toy.ANSWERS.index("In China")] - by_hand) < 1e-12
assert abs(jnp.exp(REF).sum() - 1) < 1e-10

drawing.show(drawing.tree(toy.ANSWERS, chances, np.exp(REF)), "01_language_model", OUT)

# %% [markdown]
# This model says *Shanghai is in Japan* more often than *Shanghai is in China*. We
# shall teach it better, without ever telling it the right answer: only which of two
# answers people prefer.

# %% [markdown]
# ## 2. Preferences: the Bradley-Terry model
#
# Say each answer has a **reward** r(x, y), a number for how good it is. Nobody sees it.
# What we see are comparisons: shown two answers, people pick one, and not always the
# better one. Bradley and Terry's model (1952; eq. 1 of the paper) says how often:
#
# $$p^*(y_1 \succ y_2 \mid x) = \frac{e^{r(x, y_1)}}{e^{r(x, y_1)} + e^{r(x, y_2)}}
# = \sigma\big(r(x, y_1) - r(x, y_2)\big), \qquad \sigma(z) = \frac{1}{1 + e^{-z}}.$$
#
# Only the *difference* counts: add 100 to both rewards, and nothing changes. Keep this
# in mind; it is what makes DPO possible in step 7.

# %%
REWARDS = jnp.array(list(toy.REWARDS.values()))  # the hidden truth of this lesson
FIRST, SECOND = np.array(list(itertools.combinations(range(6), 2))).T  # all 15 pairs
WINS = exact.bradley_terry(REWARDS[FIRST] - REWARDS[SECOND])

# σ(r₁ − r₂) = e^r₁ / (e^r₁ + e^r₂), unchanged by a constant
powers = jnp.exp(REWARDS)
np.testing.assert_allclose(WINS, powers[FIRST] / (powers[FIRST] + powers[SECOND]))
shifted = REWARDS + 100
np.testing.assert_allclose(
    WINS, exact.bradley_terry(shifted[FIRST] - shifted[SECOND]), atol=1e-12
)

named = {
    f"{toy.ANSWERS[i]}\nover {toy.ANSWERS[j]}": float(REWARDS[i] - REWARDS[j])
    for i, j in ((0, 1), (3, 5), (2, 3), (4, 0))
}
drawing.show(drawing.sigmoid_of_pairs(named), "02_bradley_terry", OUT)

# %% [markdown]
# ## 3. The reward-model loss
#
# The classical way to learn from preferences first fits a model of the reward: it gives
# each answer a **score** s, and its loss is the negative log-likelihood of what people
# chose (eq. 2 of the paper):
#
# $$\mathcal{L}_R(s) = -\,\mathbb{E}_{(x, y_w, y_l)}
# \big[\log \sigma\big(s(x, y_w) - s(x, y_l)\big)\big].$$
#
# With endless data we can write the expectation out: of two answers, the first is the
# chosen one with probability p*, the second with 1 − p*. `expected` does so for any
# loss of pairs, here and until the end. Our reward model is as simple as can be, six
# free numbers. A real one is the language model with a scalar head, trained by the same
# function.


# %%
def expected(loss_of_pair):
    """Averages a loss f(chosen, rejected) over all pairs and over who wins."""
    won, lost = loss_of_pair(FIRST, SECOND), loss_of_pair(SECOND, FIRST)
    return (WINS * won + (1 - WINS) * lost).mean()


def score_loss(scores, chosen, rejected):
    """Computes −log σ(s_w − s_l) of pairs of answers."""
    sides = PairScores(scores[chosen], scores[rejected], jnp.zeros(len(chosen)))
    return find("bradley_terry", LOSSES)(sides, {"centering": 0.0})


LEARNED, losses, _ = toy.minimise(
    lambda scores: expected(partial(score_loss, scores)),
    jnp.zeros(6),
    lr=0.1,
    steps=2000,
)
# at its minimum s(x, y) = r(x, y) + a constant …
np.testing.assert_allclose(LEARNED - LEARNED[0], REWARDS - REWARDS[0], atol=1e-6)
# … and what is left of the loss is the entropy of the labels: people disagree
FLOOR = -(WINS * jnp.log(WINS) + (1 - WINS) * jnp.log(1 - WINS)).mean()
assert abs(losses[-1] - FLOOR) < 1e-10

gaps = np.linspace(-3, 5, 401)
scores = np.r_[gaps, 0.0]  # each gap against 0, as winner and as loser
one, other = np.arange(401), np.full(401, 401)
wins, loses = score_loss(scores, one, other), score_loss(scores, other, one)
share = float(exact.bradley_terry(1.5))
curves = {"always wins": wins, f"wins {share:.0%}": share * wins + (1 - share) * loses}
figure = drawing.reward_model(gaps, curves, REWARDS, LEARNED, toy.ANSWERS)
drawing.show(figure, "03_reward_model", OUT)

# %% [markdown]
# ## 4. The RLHF objective, and what it hides
#
# With a reward in hand, RLHF asks for a policy that earns much of it without leaving
# the reference far behind (eq. 3 of the paper):
#
# $$J(\pi) = \mathbb{E}_{y \sim \pi}[r(x, y)]
# - \beta\, \mathrm{KL}(\pi \,\|\, \mathrm{ref}), \qquad
# \mathrm{KL}(\pi \,\|\, \mathrm{ref})
# = \mathbb{E}_{y \sim \pi}
# \Big[\log \frac{\pi(y \mid x)}{\mathrm{ref}(y \mid x)}\Big].$$
#
# KL is 0 for equal models and positive otherwise; β is the price of a nat of it.
# (Without that price the policy would only ever say its one best answer, and exploit
# every error of the reward model.)
#
# Pull everything under one expectation, take −β out of it, and give the number that
# makes the denominator sum to 1 a name, Z (appendix A.1):
#
# $$J(\pi) = -\beta\, \mathbb{E}_{\pi}
# \Big[\log \frac{\pi}{\mathrm{ref}\, e^{r/\beta}}\Big]
# = -\beta\, \mathrm{KL}(\pi \,\|\, \pi^*) + \beta \log Z, \qquad
# \pi^* = \frac{1}{Z}\, \mathrm{ref}\; e^{r/\beta}, \quad
# Z = \sum_y \mathrm{ref}(y)\, e^{r(y)/\beta}.$$
#
# No policy stands in Z. So J is a constant minus β times the distance to one particular
# policy, π\*.


# %%
def objective(policy):
    """Computes J(π) of log-probs [..., 6]."""
    return exact.expected_reward(policy, REWARDS) - BETA * exact.kl(policy, REF)


BEST = exact.optimal_policy(REF, REWARDS, beta=BETA)  # log π*
VALUE = exact.soft_value(REF, REWARDS, beta=BETA)  # β log Z

# J(π) = −β KL(π‖π*) + β log Z, for any policy at all
noise = np.random.default_rng(0).normal(size=(400, 6))
policies = jax.nn.log_softmax(jnp.asarray(1.5 * noise))
distances = exact.kl(policies, BEST)
np.testing.assert_allclose(objective(policies), VALUE - BETA * distances, atol=1e-12)

figure = drawing.identity(distances, objective(policies), BETA, float(VALUE))
drawing.show(figure, "04_identity", OUT)

# %% [markdown]
# ## 5. The closed form
#
# A KL is never negative, and 0 only between equals. So nothing needs to be searched:
# the optimum of the RLHF objective is known (eq. 4 of the paper; its §5.2 calls it "Eq.
# 7", a slip):
#
# $$\pi^*(y \mid x) = \frac{1}{Z(x)}\, \mathrm{ref}(y \mid x)\,
# \exp\Big(\frac{1}{\beta}\, r(x, y)\Big).$$
#
# Take the reference, multiply the probability of each answer by e^(r/β), and divide by
# the sum. A large β changes little, a small one leaves only the best answer.

# %%
# J(π*) = β log Z, and J is flat there: its gradient is 0
assert abs(objective(BEST) - VALUE) < 1e-12
slope = jax.grad(lambda theta: objective(jax.nn.log_softmax(theta)))(BEST)
assert jnp.abs(slope).max() < 1e-12

optima = {b: exact.optimal_policy(REF, REWARDS, beta=b) for b in (5.0, BETA, 0.1)}
spent = [float(exact.kl(policy, REF)) for policy in optima.values()]
assert spent == sorted(spent)  # the smaller β, the further from the reference

shades = ("#c9bbec", "optimum", "#432a86")
shown = {"reference": ("ref", np.exp(REF))}
for (b, policy), shade in zip(optima.items(), shades, strict=True):
    shown[f"π*, β = {b}"] = (shade, np.exp(policy))
title = "The optimum is the reference, reweighted by e^(r/β)"
drawing.show(drawing.policies(toy.ANSWERS, shown, title), "05_closed_form", OUT)

# %% [markdown]
# Why then is this not the end? For six answers Z is a sum of six numbers. For a
# language model it is a sum over every sentence there could be, and r is unknown to
# begin with.

# %% [markdown]
# ## 6. An older way to π\*: weighted regression
#
# The closed form is older than DPO: it is that of reward-weighted regression (Peters &
# Schaal 2007) and of advantage-weighted regression, AWR (Peng et al. 2019, appendix A),
# which the paper cites for it. They get around Z by *sampling*: draw answers from the
# reference, and fit the policy to them by maximum likelihood, each with the weight
# e^(r/β):
#
# $$\max_\pi\; \mathbb{E}_{y \sim \mathrm{ref}}
# \big[e^{r(x, y)/\beta} \log \pi(y \mid x)\big]
# \quad\Rightarrow\quad \pi \propto \mathrm{ref}\; e^{r/\beta} = \pi^*.$$
#
# AWR puts the advantage A = r − (a baseline) in the place of r; that divides all
# weights by the same number. It works, but it needs a reward, and it can only give
# weight to what the reference happens to say.

# %%
# argmax_π Σ_y ref(y) e^(r(y)/β) log π(y) = π*, whatever the baseline
for baseline in (0.0, float(VALUE)):
    weights = jnp.exp(REF + (REWARDS - baseline) / BETA)
    theta, _, _ = toy.minimise(
        lambda theta, w=weights: -(w * jax.nn.log_softmax(theta)).sum(),
        REF,
        lr=0.3,
        steps=6000,
    )
    assert exact.kl(BEST, jax.nn.log_softmax(theta)) < 1e-12

# the same from samples of the reference: count them, weigh the counts
sizes = [300, 3000, 30_000, 300_000]
rng = np.random.default_rng(0)
counts = np.stack([rng.multinomial(n, np.exp(REF), size=20) for n in sizes], axis=1)
fitted = jax.nn.log_softmax(jnp.log(counts) + REWARDS / BETA)  # [20, 4, 6]
errors = exact.kl(BEST, fitted)
assert np.median(errors[:, -1]) < 1e-4
drawing.show(drawing.sample_sizes(sizes, errors), "06_weighted_regression", OUT)

# %% [markdown]
# ## 7. The substitution
#
# DPO's idea: read the closed form backwards. Take its logarithm and solve for the
# reward (eq. 5 of the paper):
#
# $$r(x, y) = \beta \log \frac{\pi^*(y \mid x)}{\mathrm{ref}(y \mid x)}
# + \beta \log Z(x).$$
#
# The Z that nobody can compute is the same for all answers to a prompt. And
# Bradley-Terry only sees differences (step 2), so it cancels (eq. 6):
#
# $$p^*(y_1 \succ y_2 \mid x) = \sigma\Big(\beta \log \frac{\pi^*(y_1 \mid x)}
# {\mathrm{ref}(y_1 \mid x)} - \beta \log \frac{\pi^*(y_2 \mid x)}
# {\mathrm{ref}(y_2 \mid x)}\Big).$$
#
# Preferences can be predicted from the optimal policy alone, without reward, without Z.
# The paper's title says it: your language model is secretly a reward model.

# %%
# r = β log π*/ref + β log Z
implicit = BETA * (BEST - REF)
np.testing.assert_allclose(REWARDS, implicit + VALUE, atol=1e-12)
# p* = σ(the difference of the implicit rewards): Z is gone
np.testing.assert_allclose(
    exact.bradley_terry(implicit[FIRST] - implicit[SECOND]), WINS, atol=1e-12
)

figure = drawing_tokens.substitution(toy.ANSWERS, REWARDS, implicit, float(VALUE))
drawing.show(figure, "07_substitution", OUT)

# %% [markdown]
# ## 8. The DPO loss
#
# Now put the policy that we train in the place of π\*, and ask for the likelihood of
# what people chose, as for the reward model in step 3 (eq. 7 of the paper):
#
# $$\mathcal{L}_{\mathrm{DPO}}(\pi)
# = -\,\mathbb{E}_{(x, y_w, y_l)} \Big[\log \sigma\Big(
# \beta \log \frac{\pi(y_w \mid x)}{\mathrm{ref}(y_w \mid x)}
# - \beta \log \frac{\pi(y_l \mid x)}{\mathrm{ref}(y_l \mid x)}\Big)\Big].$$
#
# It *is* the reward-model loss, with the score r̂ = β log π/ref, the **implicit
# reward**. Its minimum is where that score equals the reward up to a constant: at π\*,
# the optimum of step 5. At the start, where the policy equals the reference, each pair
# costs −log σ(0) = ln 2 ≈ 0.693. Look for this number in the first line of any DPO run.

# %%
LENGTHS = jnp.array([float(len(answer.split())) for answer in toy.ANSWERS])


def dpo_loss(policy, ref, chosen, rejected, normalize="sum"):
    """Computes eq. 7 of pairs of answers, given log π and log ref of all answers."""
    columns = (policy, ref, LENGTHS)
    sides = [values[side] for values in columns for side in (chosen, rejected)]
    options = {"beta": BETA, "label_smoothing": 0.0}
    score = {"divergence": "reverse_kl", "divergence_alpha": 1.0}
    return find("dpo", LOSSES)(
        PairLogps(*sides), {**options, **score, "normalize": normalize}
    )


# it is the reward-model loss of the implicit reward …
some = policies[0]
np.testing.assert_allclose(
    dpo_loss(some, REF, FIRST, SECOND),
    score_loss(BETA * (some - REF), FIRST, SECOND),
    atol=1e-12,
)
# … it is ln 2 where π = ref …
np.testing.assert_allclose(dpo_loss(REF, REF, FIRST, SECOND), np.log(2), atol=1e-12)
# … and minimising it leads to π*, without a reward model and without Z
theta, losses, path = toy.minimise(
    lambda theta: expected(partial(dpo_loss, jax.nn.log_softmax(theta), REF)),
    REF,
    lr=0.1,
    steps=2000,
    watch=jax.nn.log_softmax,
)
assert jnp.abs(jax.nn.log_softmax(theta) - BEST).max() < 1e-6
assert abs(losses[-1] - FLOOR) < 1e-10

figure = drawing_tokens.training(losses, float(FLOOR), exact.kl(BEST, path), shown=200)
drawing.show(figure, "08_dpo_loss", OUT)

# %% [markdown]
# ## 9. Its gradient
#
# What does a step do? Differentiate (§4 of the paper):
#
# $$\nabla \mathcal{L}_{\mathrm{DPO}} = -\beta\, \mathbb{E}\Big[
# \underbrace{\sigma\big(\hat r(y_l) - \hat r(y_w)\big)}_{\text{how wrong it is}}
# \Big(\underbrace{\nabla \log \pi(y_w)}_{\text{more of this}}
# - \underbrace{\nabla \log \pi(y_l)}_{\text{less of that}}\Big)\Big].$$
#
# Pairs that the policy orders wrongly get nearly the full push β; pairs that it has
# long got right get nearly none.
#
# **An erratum.** The paper derives this in appendix A.4, where eq. 21 and the *u* below
# it have y_w and y_l swapped, so that the last line carries σ(r̂(y_w) − r̂(y_l)): that
# would push hardest where nothing is left to learn. §4 is right, as automatic
# differentiation shows.

# %%
theta = jnp.asarray(2 * np.random.default_rng(1).normal(size=6))  # some policy
chosen, rejected = np.r_[FIRST, SECOND], np.r_[SECOND, FIRST]  # all 30 labelled pairs
slopes = jax.jacobian(
    lambda theta: dpo_loss(jax.nn.log_softmax(theta), REF, chosen, rejected)
)(theta)

each = jax.jacobian(jax.nn.log_softmax)(theta)  # ∇ log π of each answer
towards = each[chosen] - each[rejected]
implicit = BETA * (jax.nn.log_softmax(theta) - REF)  # r̂
margins = implicit[chosen] - implicit[rejected]

# ∇L = −β σ(r̂_l − r̂_w) (∇ log π_w − ∇ log π_l): §4
section_4 = -BETA * jax.nn.sigmoid(-margins)[:, None] * towards
np.testing.assert_allclose(slopes, section_4, atol=1e-12)
# A.4 as printed, with σ(r̂_w − r̂_l), is another thing
appendix = -BETA * jax.nn.sigmoid(margins)[:, None] * towards
assert jnp.abs(slopes - appendix).max() > 0.1

pushes = -slopes[np.arange(30), chosen] / BETA
drawing.show(drawing_tokens.gradient_weights(margins, pushes), "09_gradient", OUT)

# %% [markdown]
# ## 10. From logits to log π(y|x)
#
# All of this needs one number of a real model: log π(response | prompt). Four moves
# make it: **logits → log-softmax → gather → sum over the response**.
#
# Take *Where is Shanghai ? → Shanghai is in China*: 8 tokens, of which 4 are scored. A
# transformer reads the row and gives 8 rows of logits, a number for each word of the
# vocabulary. Row t has read the tokens up to t and speaks of token t + 1. So the first
# word of the response is predicted by the *last token of the prompt*, and what the last
# row predicts nobody asked for. With P prompt and T response tokens, counted from 0:
#
# $$\log \pi(y \mid x) = \sum_{t = P}^{P + T - 1}
# \operatorname{log\,softmax}(\mathrm{logits}_{t-1})\,[\mathrm{token}_t],
# \qquad P = 4,\; T = 4.$$
#
# `dpo_jax` keeps a list of what is scored: `parents` are the rows that predict,
# `targets` the ids that they should predict. (A token is a word only here. A real
# tokenizer cuts words into pieces, and `dpo_jax` ends each response with an end-of-text
# token, which is scored as well. Our answers end where the tree ends.)
#
# The model is a real, if tiny, transformer, taught for some seconds to talk like our
# table. In the figure, the rows above the dotted line predict the prompt: nobody taught
# them, and nobody asks.

# %%
MODEL = Decoder(preset("tiny", vocab=len(toy.WORDS), max_positions=16))
READ = jax.jit(lambda params, batch: MODEL.apply({"params": params}, batch)[0])


def transformer(params, batch):
    """Returns hidden states [B, T, D] and the head, in float64; it reports nothing."""
    hidden = READ(params, batch._replace(token={}))
    head = MODEL.head(params)
    return hidden.astype(float), head._replace(kernel=head.kernel.astype(float)), {}


def sequence_logps(params):
    """Returns log π(y|x) of every response of the table."""
    return terms.score(transformer, params, ROWS, 8).response["logps"][:, 0]


PARAMS, _, _ = toy.minimise(
    lambda params: -(jnp.exp(REF) * sequence_logps(params)).sum(),
    jax.jit(init_params, static_argnums=0)(MODEL.spec, jax.random.key(0)),
    lr=3e-3,
    steps=150,
)

# %%
ROW = toy.rows([toy.record("Shanghai is in China")])
words = [toy.WORDS[i] for i in ROW.tokens[0]]
print("index   ", *(f"{t:>9}" for t in range(8)))
print("token   ", *(f"{word:>9}" for word in words))
print("branch  ", *(f"{b:>9}" for b in ROW.branches[0]), "  0 = prompt, 1 = response")
print("parents ", " " * 39, *(f"{t:>9}" for t in ROW.parents[0]))
print("targets ", " " * 39, *(f"{toy.WORDS[v]:>9}" for v in ROW.targets[0]))

# %%
hidden, head, _ = transformer(PARAMS, ROW)
values = heads.logits(hidden, head)[0]  # [8, 14] logits
log_probs = jax.nn.log_softmax(values)  # [8, 14] log-probs of every word
picked = log_probs[ROW.parents[0], ROW.targets[0]]  # [4] gather
total = picked.sum()  # log π(y|x)

# the same in production, which never computes the other rows
scored = logps.token_logps(hidden, head, ROW.parents, ROW.targets, chunk=4).logps
summed = logps.response_logps(scored, jnp.ones((1, 4)), ROW.slots, 1)
np.testing.assert_allclose(scored[0], picked, atol=1e-12)
np.testing.assert_allclose(summed[0, 0], total, atol=1e-12)
# the same as most code has it: shift by one, gather, mask, sum
shifted = np.take_along_axis(log_probs[:-1], ROW.tokens[0, 1:, None], axis=1)[:, 0]
mask = ROW.branches[0, 1:] > 0
np.testing.assert_allclose((shifted * mask).sum(), total, atol=1e-12)

table = (log_probs, toy.WORDS, words, ROW.parents[0], ROW.targets[0])
drawing.show(drawing_tokens.gather(*table), "10_gather", OUT)

# %% [markdown]
# ## 11. A pair through a transformer
#
# Score both responses under policy and reference, and eq. 7 is four numbers away. In
# training, the reference's log-probs are a column that is written beside the batch.
#
# A pair can lie in two padded rows, or be packed into one, or share its prompt; then a
# response must not see the other one, and the last prompt token predicts the first word
# of *both*. A list of `parents` can say that, a shift by one could not. The numbers are
# the same, and at equal policies the loss is ln 2.

# %%
PAIR = toy.record("Shanghai is in China", "Shanghai is in Japan")  # chosen, rejected
batches = {}
for layout, row_tokens in (("padded", 8), ("packed", 16), ("prefix_shared", 12)):
    batch = toy.rows([PAIR], layout=layout, row_tokens=row_tokens)
    reference = terms.token_stats(transformer, PARAMS, batch, 8)[0].logps
    batches[layout] = batch._replace(token={"ref_logps": reference})

    pairs = gather_pairs(terms.score(transformer, PARAMS, batches[layout], 8))
    sides = (side[pairs.mask] for side in pairs[:4])
    chosen, rejected, ref_chosen, ref_rejected = sides
    # the same log π(y|x) as in step 10, wherever the response lies …
    np.testing.assert_allclose(chosen, total, atol=1e-6)
    # … and −log σ(β log π(y_w)/ref(y_w) − β log π(y_l)/ref(y_l)) = −log σ(0) = ln 2
    sides = jnp.r_[chosen, rejected], jnp.r_[ref_chosen, ref_rejected]
    loss = dpo_loss(*sides, chosen=np.array([0]), rejected=np.array([1]))
    print(
        f"{layout:14} chosen {chosen[0]:.6f}  rejected {rejected[0]:.6f}  {loss[0]:.9f}"
    )
    np.testing.assert_allclose(loss, np.log(2), atol=1e-12)

drawing.show(drawing_tokens.forests(batches, toy.WORDS), "11_pair", OUT)

# %% [markdown]
# ## 12. All of it at once
#
# From tokens to the optimum of RLHF: the six answers as rows of tokens, production
# log-probs summed over each response, the production loss, and gradient descent on the
# table of next-word logits. If any line between the tokens and the loss were wrong,
# this would not arrive at π\*. (`tests/test_exact.py` makes the same trip with 81
# sentences.)


# %%
def trained(score, loss=dpo_loss, ref=REF):
    """Trains the table on all pairs; returns log π of the answers, and the last loss.

    `score` is what the loss sees of the table. What comes back are the true log-probs,
    from step 1's score, whatever the loss was told.
    """
    table, losses, _ = toy.minimise(
        lambda table: expected(partial(loss, score(table), ref)),
        TABLE,
        lr=0.1,
        steps=3000,
    )
    return STEP_1(table), losses[-1]


STEP_1 = score
POLICY, last = trained(score)
RIGHT = float(exact.kl(BEST, POLICY))
print(f"KL(π*‖π) fell from {exact.kl(BEST, REF):.3f} to {RIGHT:.1e} nats")
assert RIGHT < 1e-8
assert abs(last - FLOOR) < 1e-8

shown = {
    "reference": ("ref", np.exp(REF)),
    "π*, in closed form": ("optimum", np.exp(BEST)),
    "policy, trained with DPO": ("policy", np.exp(POLICY)),
}
title = "DPO on tokens arrives at the closed form"
drawing.show(drawing.policies(toy.ANSWERS, shown, title), "12_all_of_it", OUT)

# %% [markdown]
# # Change this line and see
#
# Five lines that have all been written, in earnest, somewhere. Each exercise changes
# one of them and trains again. **Before you run a cell, say what the policy will be.**
# None of the five raises an error, none gives a NaN, and all end with the very loss of
# step 12.
#
# To try your own, change `score` in step 1 or `dpo_loss` in step 8 and run again: the
# asserts will tell you how far you get.

# %% [markdown]
# ## Exercise 1: drop the mask
#
# *Change this line:* instead of the list of scored tokens, score every token of the
# row: prompt, response and padding.
#
# *Expect:* the **prompt** is harmless here. It is the same for both responses, so its
# log-prob cancels in the difference (the first assert below): only the logged log-probs
# are wrong. The **padding** is not: short answers have more of it, so the policy can
# lower the loss with what it says after the end of an answer, where nobody reads. Part
# of the reward is learnt there, and is missing in the answers.


# %%
def score_every_token(table):
    """Sums log-probs over the row: prompt, response and padding."""
    hidden, head, _ = toy.apply(table, ROWS)
    parents = np.tile(np.arange(9), (6, 1))  # every token but the last predicts …
    targets = ROWS.tokens[:, 1:]  # … the one behind it
    return logps.token_logps(hidden, head, parents, targets, chunk=9).logps.sum(-1)


def score_prompt_too(table):
    """Sums log-probs over prompt and response."""
    prompt = [
        toy.next_words(table, " ".join(toy.PROMPT.split()[:n])) for n in (1, 2, 3)
    ]
    asked = [p[w] for p, w in zip(prompt, toy.PROMPT.split()[1:], strict=True)]
    return score(table) + np.log(asked).sum()


other = jnp.asarray(toy.reference_table(seed=26))  # another model
with_prompt = dpo_loss(score_prompt_too(other), score_prompt_too(TABLE), FIRST, SECOND)
without = dpo_loss(score(other), score(TABLE), FIRST, SECOND)
np.testing.assert_allclose(with_prompt, without, atol=1e-12)  # it cancels
assert abs(score_prompt_too(other) - score(other)).min() > 1  # but the logs are wrong

policy, last = trained(score_every_token, ref=score_every_token(TABLE))
damages = {"the right line": RIGHT, "1. no mask": float(exact.kl(BEST, policy))}
print(f"loss {last:.4f} (floor {FLOOR:.4f}), KL(π*‖π) {damages['1. no mask']:.3f}")
assert abs(last - FLOOR) < 1e-6  # the loss is as low as can be …
assert damages["1. no mask"] > 0.1  # … and the policy is not π*

title = "1. Drop the mask: padding is scored"
figure = drawing_tokens.damage(toy.ANSWERS, np.exp(BEST), np.exp(policy), title)
drawing.show(figure, "13_no_mask", OUT)

# %% [markdown]
# ## Exercise 2: shift by one
#
# *Change this line:* `ROWS.parents` to `ROWS.parents + 1` in `score`. Each word is now
# looked up in the row of logits that has *already read it*. It is the commonest mistake
# of all: forget to shift logits against labels.
#
# *Expect:* a perfect loss and an untouched policy. All of the reward is learnt by
# logits of words that were just said, and would never be said twice. What comes next is
# what came before training. (In a transformer, which shares its weights among all
# logits, something would change, but not for a reason.)


# %%
def score_current(table):
    """Asks each token for itself, not for the one behind it."""
    hidden, head, _ = toy.apply(table, ROWS)
    words = logps.token_logps(hidden, head, ROWS.parents + 1, ROWS.targets, chunk=8)
    ones = jnp.ones_like(words.logps)
    return logps.response_logps(words.logps, ones, ROWS.slots, 1)[:, 0]


policy, last = trained(score_current, ref=score_current(TABLE))
damages["2. shifted by one"] = float(exact.kl(BEST, policy))
print(
    f"loss {last:.4f} (floor {FLOOR:.4f}), KL(π*‖π) {damages['2. shifted by one']:.3f}"
)
assert abs(last - FLOOR) < 1e-6
assert abs(policy - REF).max() < 1e-6  # it answers as if it had never been trained

title = "2. Shift by one: nothing is learnt"
figure = drawing_tokens.damage(toy.ANSWERS, np.exp(BEST), np.exp(policy), title)
drawing.show(figure, "14_shift_by_one", OUT)

# %% [markdown]
# ## Exercise 3: mean for sum
#
# *Change this line:* `normalize="sum"` to `"mean"` in `dpo_loss`: divide each log-ratio
# by the length of its response.
#
# *Expect:* length by length another β. The loss is lowest where β/|y| · log π/ref = r +
# c, that is, at
#
# $$\pi(y) = \mathrm{ref}(y)\, \exp\Big(\frac{|y|}{\beta}\,(r(y) + c)\Big),$$
#
# with the one c for which this sums to 1. The longer an answer, the further it is
# pushed up or down: the word β no longer means one thing. (It is not always a mistake:
# some methods want it, with a β of its own. But it is not the optimum of RLHF.)

# %%
policy, last = trained(score, loss=partial(dpo_loss, normalize="mean"))
constant = BETA / LENGTHS * (policy - REF) - REWARDS
np.testing.assert_allclose(constant, constant[0], atol=1e-6)  # the closed form above
damages["3. mean for sum"] = float(exact.kl(BEST, policy))
print(f"loss {last:.4f} (floor {FLOOR:.4f}), KL(π*‖π) {damages['3. mean for sum']:.3f}")
assert abs(last - FLOOR) < 1e-6
assert damages["3. mean for sum"] > 0.3

title = "3. Mean for sum: long answers overdone"
figure = drawing_tokens.damage(toy.ANSWERS, np.exp(BEST), np.exp(policy), title)
drawing.show(figure, "15_mean_for_sum", OUT)

# %% [markdown]
# ## Exercise 4: swap chosen and rejected
#
# *Change this line:* `dpo_loss(policy, ref, rejected, chosen)`.
#
# *Expect:* the optimum of the reward −r, π ∝ ref · e^(−r/β): the most disliked answer
# wins. The loss falls exactly as far as before. Only `rewards/accuracies` on a held-out
# set that was labelled apart, or reading samples, would tell.


# %%
def swapped(policy, ref, chosen, rejected):
    """Computes the loss with the columns of the data mixed up."""
    return dpo_loss(policy, ref, rejected, chosen)


policy, last = trained(score, loss=swapped)
worst = exact.optimal_policy(REF, -REWARDS, beta=BETA)
assert exact.kl(worst, policy) < 1e-6
damages["4. swapped"] = float(exact.kl(BEST, policy))
print(f"loss {last:.4f} (floor {FLOOR:.4f}), KL(π*‖π) {damages['4. swapped']:.3f}")
assert abs(last - FLOOR) < 1e-6
assert damages["4. swapped"] > 1

title = "4. Swap the pair: the worst wins"
figure = drawing_tokens.damage(toy.ANSWERS, np.exp(BEST), np.exp(policy), title)
drawing.show(figure, "16_swapped", OUT)

# %% [markdown]
# ## Exercise 5: forget the reference
#
# *Change this line:* `log ref` to zeros in `dpo_loss`.
#
# *Expect:* π ∝ e^(r/β), as if the reference had thought all answers equally likely.
# What the model knew before is unlearnt. With six answers that is a blemish; with all
# of language it is the difference between a sentence and noise, and nothing keeps the
# policy near the model whose samples were labelled.

# %%
policy, last = trained(score, ref=jnp.zeros(6))
uniform = exact.optimal_policy(jnp.zeros(6), REWARDS, beta=BETA)
assert exact.kl(uniform, policy) < 1e-6
damages["5. no reference"] = float(exact.kl(BEST, policy))
print(f"loss {last:.4f} (floor {FLOOR:.4f}), KL(π*‖π) {damages['5. no reference']:.3f}")
assert abs(last - FLOOR) < 1e-6
assert damages["5. no reference"] > 0.02

title = "5. Forget the reference: what it knew is lost"
figure = drawing_tokens.damage(toy.ANSWERS, np.exp(BEST), np.exp(policy), title)
drawing.show(figure, "17_no_reference", OUT)

# %% [markdown]
# ## What the loss did not tell
#
# Five wrong lines, and every loss fell to the floor that the right one reaches. A loss
# curve does not say whether the equation behind it is the right one. A case with a
# known answer does: that is why every step above asserts its equation, and why the
# tests of `dpo_jax` train on a world this small.

# %%
drawing.show(drawing_tokens.summary(damages), "18_summary", OUT)
for name, value in damages.items():
    print(f"{name:20} KL(π*‖π) = {value:.1e} nats")
