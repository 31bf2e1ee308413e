"""Records that travel between the rooms, and the protocols of functions passed around.

One dimension key for the whole project:

  B rows · T tokens per row · C response tokens per row · R response slots per row ·
  M comparisons per row · N pairs · P prompt length · G generated tokens · D width ·
  H query heads · K kv heads · E head width · V vocabulary · L layers

A row is a forest of tokens. It holds documents; a document is a prompt (branch 0) and
the responses (branches 1…) that grow from it. Key k is visible to query q iff
`k <= q`, both lie in the same document, and k's branch is 0 or q's own.
Records and protocols only: nothing here computes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

Array = Any  # a jax or a NumPy array
Params = Any  # a pytree of arrays


class Record(NamedTuple):
    """A tokenized prompt with the responses that grow from it.

    Attributes:
      index: position of the row in its source; names it in logs and errors.
      prompt: i32[P] token ids, BOS included if the tokenizer puts one.
      responses: i32[…] token ids each, EOS included; (chosen, rejected) for a pair,
        (completion,) for plain SFT, best first for a ranking.
      comparisons: (better, worse) responses.
      ranked: its responses are a ranking, best first.
      token: name -> what is known of the tokens of each response. `scored`: bool of
        every token, which of them count; without it all do. Other columns are f32 of
        those that count alone. `ref_logps`: nats, the reference's.
      response: name -> what is known of each response. `labels`: 1 = desirable, −1 =
        undesirable, 0 = the response of another prompt. `ratings`: the data's score.
    """

    index: int
    prompt: np.ndarray
    responses: tuple[np.ndarray, ...]
    comparisons: tuple[tuple[int, int], ...] = ()
    ranked: bool = False
    token: Mapping[str, tuple[np.ndarray, ...]] = {}
    response: Mapping[str, tuple[float, ...]] = {}


class Batch(NamedTuple):
    """Rows of token forests and the list of what is scored in them.

    Arrays may carry a leading axis of microbatches. Padding: `docs` = 0,
    `slots` = R, `pairs` = −1, `ids` = −1, `groups` = −1, columns = 0.

    Attributes:
      tokens: i32[B, T] ids.
      positions: i32[B, T] position within the document's branch, prompt included.
      docs: i32[B, T] which document of the row, from 1; 0 is padding.
      branches: i32[B, T] 0 = prompt, 1… = response.
      parents: i32[B, C] index in the row of the token whose hidden state predicts.
      targets: i32[B, C] the id that is predicted.
      slots: i32[B, C] the response slot of the row that the target belongs to.
      ends: i32[B, R] index in the row of the last token of each response, scored or
        not.
      ids: i32[B, R] `Record.index` of each response; of a response that belongs to
        another prompt, that of the prompt it stands behind.
      pairs: i32[B, M, 2] (chosen, rejected) as `row·R + slot` of the (micro)batch.
      groups: i32[B, M, K] the responses of each ranking, best first, as in `pairs`; K
        of the longest ranking, M of the rankings. None in runs without rankings.
      token: name -> [B, C, …] a column of the scored tokens, as in `Record`.
        `ref_states`: [B, C, D] hidden states of the reference at `parents`, where a
        loss needs the reference's whole distribution.
      response: name -> f32[B, R] a column of the responses, as in `Record`.
    """

    tokens: Array
    positions: Array
    docs: Array
    branches: Array
    parents: Array
    targets: Array
    slots: Array
    ends: Array
    ids: Array
    pairs: Array
    groups: Array | None = None
    token: Mapping[str, Array] = {}
    response: Mapping[str, Array] = {}


class Head(NamedTuple):
    """The linear map from hidden states to logits.

    Attributes:
      kernel: [D, V].
      bias: [V] or None.
      softcap: logits are cut to softcap·tanh(logits / softcap); 0 = off.
      vocab: ids that there are, where V is larger: logits of others are as good as −∞;
        0 = all V.
    """

    kernel: Array
    bias: Array | None
    softcap: float = 0.0
    vocab: int = 0


class TokenStats(NamedTuple):
    """What one pass over the head says of each scored token; f32[B, C] each.

    Attributes:
      logps: log-probability of the target, nats.
      entropy: of the predictive distribution, nats; no gradient.
      correct: 1 where the target is the likeliest token, else 0; no gradient.
      collision: log Σ_v p_v², nats: log-probability that two draws agree; no gradient.
      kl: KL(ref‖policy) over the vocabulary, nats; None where no reference was given.
    """

    logps: Array
    entropy: Array
    correct: Array
    collision: Array
    kl: Array | None = None


class TokenPlaces(NamedTuple):
    """Where each scored token stands in its response; [B, C] each, any at padding.

    Attributes:
      index: i32 position in its response, from 0.
      rank: i32 its place in a random order of its response, one order a pair and step.
      length: f32 tokens of its response.
      partner: f32 tokens of the response that it is compared with; 0 = none.
    """

    index: Array
    rank: Array
    length: Array
    partner: Array


class Columns(NamedTuple):
    """What an objective's loss sees of a (micro)batch.

    Attributes:
      lengths: f32[B, R] tokens of each response; 0 = empty slot.
      pairs: i32[B, M, 2] as in `Batch`.
      groups: i32[B, M, K] as in `Batch`.
      token: name -> f32[B, C] of each scored token, those that an objective asks for.
      response: name -> f32[B, R] of each response.

        logps: nats, (weighted) sum over the response.
        ref_logps: the reference's under the same weights, no gradient.
        entropy: nats, summed over the response, no gradient.
        correct: tokens of the response that the policy thinks likeliest.
        certainty: mean over the response of log p − log Σ_v p_v², no gradient.
        kls: nats, Σ_t KL(ref‖policy) along the response.
        prompt_logps: nats, of its prompt but for the first token.
        noise: in (0, 1), drawn by step and record, no gradient.
        scores: of a reward model.
        labels, ratings: as in `Record`.
    """

    lengths: Array
    pairs: Array
    groups: Array | None = None
    token: Mapping[str, Array] = {}
    response: Mapping[str, Array] = {}


class PairLogps(NamedTuple):
    """What a loss sees of N pairs; f32[N] each, None where nobody asked for it.

    Attributes:
      chosen: log-prob of the chosen response under the policy, nats, summed.
      rejected: of the rejected response.
      ref_chosen: of the chosen response under the reference, no gradient.
      ref_rejected: of the rejected response.
      chosen_lengths: tokens.
      rejected_lengths: tokens.
      mask: bool[N], False where there is no pair; None = all count. Read by losses that
        couple the batch; for the others the caller masks.
      chosen_ratings: the data's own score of the chosen response.
      rejected_ratings: of the rejected response.
      chosen_kls: Σ_t KL(ref‖policy) along the chosen response, nats.
      rejected_kls: along the rejected response.
      chosen_prompt: log-prob of the prompt but for its first token, nats.
      noise: in (0, 1), drawn by step and record, no gradient.
    """

    chosen: Array
    rejected: Array
    ref_chosen: Array
    ref_rejected: Array
    chosen_lengths: Array
    rejected_lengths: Array
    mask: Array | None = None
    chosen_ratings: Array | None = None
    rejected_ratings: Array | None = None
    chosen_kls: Array | None = None
    rejected_kls: Array | None = None
    chosen_prompt: Array | None = None
    noise: Array | None = None


class SingleLogps(NamedTuple):
    """Responses judged one by one; f32[N] each.

    Attributes:
      logps: log-prob under the policy, nats, summed.
      ref_logps: under the reference, no gradient.
      labels: i32[N] 1 = desirable, −1 = undesirable, 0 = another prompt's response,
        there for KTO's estimate of the KL only.
      mask: bool[N], False where there is no response.
    """

    logps: Array
    ref_logps: Array
    labels: Array
    mask: Array


class ListLogps(NamedTuple):
    """N rankings of up to K responses, best first.

    Attributes:
      ratios: f32[N, K] log π/ref, nats.
      mask: bool[N, K], False behind the end of a shorter ranking.
      ratings: f32[N, K] the data's own scores; None where nobody asked for them.
    """

    ratios: Array
    mask: Array
    ratings: Array | None = None


class PairScores(NamedTuple):
    """A reward model's scores of N pairs; f32[N] each.

    Attributes:
      chosen: score of the chosen response.
      rejected: of the rejected response.
      margins: by how much they should differ at least; zeros where the data says none.
    """

    chosen: Array
    rejected: Array
    margins: Array


class TrainState(NamedTuple):
    """All that changes from step to step, and all that a checkpoint holds.

    Attributes:
      step: i32[] optimizer steps taken.
      params: float32 master weights of what is trained.
      opt_state: the optax state.
      stats: running statistics of the objective; {} where it has none.
      key: u32[2] raw PRNG key data of the run; steps fold their number into it.
      ref: parameters of a reference that follows the policy; None where it is frozen.
    """

    step: Array
    params: Params
    opt_state: Any
    stats: dict[str, Array]
    key: Array
    ref: Params | None = None


class Samples(NamedTuple):
    """Generated continuations of N prompts, n of each.

    Attributes:
      tokens: i32[N, n, G] ids; 0 after the end.
      mask: bool[N, n, G] True where a token was generated, the stop token included.
      logps: f32[N, n, G] nats, of each token under the distribution it was drawn from.
      ended: bool[N, n] by a stop token or string, not by the limit of G tokens.
    """

    tokens: Array
    mask: Array
    logps: Array
    ended: Array

    def ids(self) -> list[list[list[int]]]:
        """Lists the ids of each sample of each prompt; of samples on the host."""
        both = zip(self.tokens, self.mask, strict=True)
        return [
            [tokens[mask].tolist() for tokens, mask in zip(*of_prompt, strict=True)]
            for of_prompt in both
        ]


Sums = dict[str, tuple[Array, Array]]  # metric name -> (sum, count)
Reports = dict[str, Array]  # what a trunk says of a microbatch, summed over its rows
Frozen = dict[str, Params]  # role -> parameters that never change: `ref`, `reward`, …


class ApplyFn(Protocol):
    """Maps parameters and rows to hidden states and the head on them."""

    def __call__(self, params: Params, batch: Batch) -> tuple[Array, Head, Reports]:
        """Returns [B, T, D] hidden states, the head, and what the trunk reports."""
        ...


Stats = dict[str, Array]  # running statistics of an objective
Hyper = dict[str, Array]  # float hyper-parameters
Counts = dict[str, Array]  # what losses divide by: `pairs`, `chosen_tokens`, …


class Objective(Protocol):
    """What is minimised: scores per microbatch, a loss over what was scored."""

    @property
    def couples(self) -> bool:
        """Whether the loss of a part depends on the rest of the batch.

        Then it can only be taken over all microbatches at once.
        """
        ...

    def counts(self, batch: Batch) -> Counts:
        """Counts from the masks of a microbatch what its loss will be divided by."""
        ...

    def score(
        self, params: Params, frozen: Frozen, batch: Batch, key: Array, hyper: Hyper
    ) -> tuple[Columns, Reports]:
        """Runs the model on a microbatch; anything random is keyed by `Batch.ids`.

        Returns:
          The columns, and what the trunk reports; parts of a step add up.
        """
        ...

    def update(self, columns: Columns, stats: Stats, hyper: Hyper) -> Stats:
        """Takes the columns of a whole step into the running statistics."""
        ...

    def loss(
        self,
        columns: Columns,
        reports: Reports,
        stats: Stats,
        hyper: Hyper,
        counts: Counts,
    ) -> tuple[Array, Sums]:
        """Returns this part's share of the mean loss, and {name: (sum, count)}.

        Shares add up to the loss of the step, because `counts` are the whole step's.
        """
        ...

    def of_set(self, whole: Columns) -> dict[str, Array]:
        """Finds the metrics of an evaluation's whole set that are no means."""
        ...
