"""What a loss is: a pure function, and the facts that the table says of it."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from dpo_jax.losses import pairwise, shared, tokens
from dpo_jax.types import Array, Counts, Hyper, Stats

LossFn = Callable[..., Array]
FIXED = ("divergence_alpha",)  # floats that choose a formula
PER_PAIR = {"tokens_per_pair": "chosen_tokens", "whole_per_pair": "whole_tokens"}
FACTS = (*PER_PAIR, "progress")  # keywords that are no options; `progress`: of the run


class Of(NamedTuple):
    """What a loss is a function of.

    Attributes:
      record: `pairs` (PairLogps), `singles` (SingleLogps), `lists` (ListLogps) or
        `scores` (PairScores).
      take: `(record, **options) -> arguments of the function`; None = the record.
    """

    record: str
    take: Callable[..., tuple[Array, ...]] | None = None


OF: dict[str, Of] = {
    "delta": Of("pairs", pairwise.delta),
    "ratios": Of("pairs", shared.log_ratios),
    "logps": Of("pairs", shared.summed_logps),
    "mean_logps": Of("pairs", shared.mean_logps),
    "pairs": Of("pairs"),
    "singles": Of("singles"),
    "lists": Of("lists"),
    "scores": Of("scores"),
}


class Running(NamedTuple):
    """Statistics that a loss keeps from step to step.

    They stand in the train state and in checkpoints. A step first updates them with its
    whole batch, then computes the loss with the new ones, which get no gradient.

    Attributes:
      start: name -> value before the first step; the loss function takes each name as a
        keyword-only parameter.
      update: `(record, stats, **options) -> stats`, pure.
      where: options that must have these values; where one has not, the statistics are
        not kept and the function gets those of the start.
    """

    start: Mapping[str, float]
    update: Callable[..., Stats]
    where: Mapping[str, str] = {}


class Loss(NamedTuple):
    """A row of the table.

    Attributes:
      fn: `(arguments, **options) -> f32[N]`, the arguments those of `of`.
      formula: as in the table of the documentation.
      source: where it was published.
      reference: whether the value depends on the reference.
      of: what it is a function of, a name of `OF`.
      per: what the sum is divided by: `pairs`, `chosen_tokens`, `singles`, `lists`.
      usual: options of the usual setting that differ from the configuration's defaults.
      couples: whether an element depends on other elements of the batch.
      columns: what it reads that is not always there: `ratings`, `kls`, `mismatched`
        (responses of label 0).
      token_weights: weights of its own on the tokens, a name of `tokens.WEIGHTS`; ''
        for none. The options of that function are options of the loss.
      running: statistics it keeps; None for none.
      positive: options whose 0 this loss cannot take although others can.
      means: it compares log-probs per token, and so do `rewards/*`.
    """

    fn: LossFn
    formula: str = ""
    source: str = ""
    reference: bool = True
    of: str = "pairs"
    per: str = "pairs"
    usual: Mapping[str, Any] = {}
    couples: bool = False
    columns: tuple[str, ...] = ()
    token_weights: str = ""
    running: Running | None = None
    positive: tuple[str, ...] = ()
    means: bool = False

    @property
    def takes(self) -> str:
        """Names the record that the loss is computed from."""
        return OF[self.of].record

    @property
    def takes_soft_labels(self) -> bool:
        """Tells whether a pair's loss can be averaged over both of its orders.

        Not where it is divided by the tokens of the chosen, or where pairs are coupled.
        """
        alone = not (
            self.couples or self.running or set(PER_PAIR) & {*keywords(self.fn)}
        )
        return self.takes == "pairs" and self.per == "pairs" and alone

    def __call__(self, record: Any, options: Mapping[str, Any]) -> Array:
        """Computes f32[N] of a record; of the options it takes those that it uses.

        Where facts of the batch are not among them, the record counts as the batch.
        """
        take = OF[self.of].take
        if set(PER_PAIR) & set(keywords(self.fn)) - set(options):
            options = {**per_pair(counts_of(record)), **options}
        given = (record,) if take is None else take(record, **pick(take, options))
        return self.fn(*given, **pick(self.fn, options))

    def bind(
        self,
        given: Mapping[str, Any],
        own: Mapping[str, Any] = {},
        *,
        name: str = "",
        weight: float | None = None,
    ) -> "Bound":
        """Gives a loss the options that it uses.

        Args:
          given: the options of all losses of a run, name -> value.
          own: those of this loss alone, which go first.
          name: of the loss in the run, one for each that has options of its own.
          weight: of its mean in a sum of several losses; None where it is the only one.
        """
        fixed, traced, values = {}, {}, {}
        for option in options(self):
            if option not in given and option not in own:  # a default of a user's
                continue
            value = given[option] if option in given else default_of(self, option)
            if option in own:
                value = type(value)(own[option])
            if not isinstance(value, float) or option in FIXED:
                fixed[option] = value
                continue
            traced[option] = f"{name}.{option}" if option in own else option
            values[traced[option]] = value
        if weight is not None:
            values[f"{name}.weight"] = weight
        return Bound(name, self, fixed, traced, values, weight is not None)


def per_pair(counts: Counts) -> dict[str, Array]:
    """Returns the facts of a batch that a loss may take as keywords.

    They are the tokens of its chosen responses (and of their prompts) a pair.
    """
    return {
        fact: counts[name] / jnp.maximum(counts["pairs"], 1.0)
        for fact, name in PER_PAIR.items()
        if {name, "pairs"} <= counts.keys()
    }


def counts_of(record: Any) -> Counts:
    """Counts what `per_pair` takes in a record of pairs that has no prompts."""
    lengths = record.chosen_lengths
    mask = jnp.ones(lengths.shape, bool) if record.mask is None else record.mask
    tokens = jnp.where(mask, lengths, 0.0).sum()
    return {"pairs": mask.sum(), "chosen_tokens": tokens, "whole_tokens": tokens}


class Bound(NamedTuple):
    """A loss with its options: one of the losses that a run minimises the sum of.

    Float options and the weight are traced, so that a sweep over them compiles once.

    Attributes:
      name: of the loss in the run.
      loss: the row of the table.
      fixed: option -> value, of those that choose a formula.
      traced: option -> its name among the hyper-parameters.
      hyper: the values of the hyper-parameters that it reads.
      weighted: whether the hyper-parameter `NAME.weight` multiplies its mean.
    """

    name: str
    loss: Loss
    fixed: Mapping[str, Any]
    traced: Mapping[str, str]
    hyper: Mapping[str, float]
    weighted: bool = False

    @property
    def running(self) -> Running | None:
        """The statistics that its options make it keep."""
        kept = self.loss.running
        if kept is None or any(self.fixed[k] != v for k, v in kept.where.items()):
            return None
        return kept

    @property
    def couples(self) -> bool:
        """Whether it can only be taken over a whole batch at once."""
        return self.loss.couples or self.running is not None

    def options(self, hyper: Mapping[str, Any]) -> dict[str, Any]:
        """Returns its options, and what stands for statistics that it does not keep."""
        start = self.loss.running.start if self.loss.running else {}
        return {**start, **self.fixed, **{o: hyper[n] for o, n in self.traced.items()}}

    def weight(self, hyper: Hyper) -> Array | float:
        """Returns its weight in the sum."""
        return hyper[f"{self.name}.weight"] if self.weighted else 1.0

    def update(self, record: Any, stats: Stats, hyper: Hyper) -> Stats:
        """Takes the record of a whole step into the statistics; others stay."""
        if self.running is None:
            return stats
        kept = {name: stats[name] for name in self.running.start}
        given = pick(self.running.update, self.options(hyper))
        return stats | self.running.update(record, kept, **given)


def keywords(function: Callable) -> list[str]:
    """Names the keyword-only parameters of a function, in order."""
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]


def pick(function: Callable, options: Mapping[str, Any]) -> dict[str, Any]:
    """Takes the options that a function has keyword-only parameters for."""
    return {name: options[name] for name in keywords(function) if name in options}


def default_of(loss: Loss, option: str) -> Any:
    """Returns the default that a function gives an option; None without one."""
    parameters = inspect.signature(loss.fn).parameters
    default = parameters[option].default if option in parameters else None
    return None if default is inspect.Parameter.empty else default


def range_of(loss: Loss, option: str) -> tuple[float, float, bool] | None:
    """Returns the range of an option that is `Annotated[float, RANGE]`, or None."""
    parameters = inspect.signature(loss.fn, eval_str=True).parameters
    if option not in parameters:
        return None
    return next(iter(getattr(parameters[option].annotation, "__metadata__", ())), None)


def options(loss: Loss) -> tuple[str, ...]:
    """Names the options that a loss uses, in order."""
    take, running = OF[loss.of].take, loss.running
    names = keywords(loss.fn) + (keywords(take) if take else [])
    if running is not None:
        names = [name for name in names if name not in running.start]
        names += keywords(running.update)
    if loss.token_weights:
        names += keywords(tokens.WEIGHTS[loss.token_weights])
    return tuple(name for name in dict.fromkeys(names) if name not in FACTS)
