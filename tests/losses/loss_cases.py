"""Records and options that the tests of the losses share."""

import functools

import jax
import numpy as np

from configs import parts
from dpo_jax.losses import LOSSES, find, keywords
from dpo_jax.types import ListLogps, PairLogps, PairScores, SingleLogps

RNG = np.random.default_rng(7)
LENGTHS = np.float64([3, 5, 2, 7, 4, 6]), np.float64([4, 2, 6, 5, 3, 4])
REF = [-lengths * RNG.uniform(0.5, 1.5, 6) for lengths in LENGTHS]
SHIFT = RNG.normal(0, 0.4, (2, 6))

PAIRS = PairLogps(
    chosen=REF[0] + SHIFT[0],
    rejected=REF[1] + SHIFT[1],
    ref_chosen=REF[0],
    ref_rejected=REF[1],
    chosen_lengths=LENGTHS[0],
    rejected_lengths=LENGTHS[1],
    chosen_ratings=np.float64([9, 8, 7, 6, 5, 4]),
    rejected_ratings=np.float64([1, 7.5, 5, 3, 4, 1]),
    chosen_kls=RNG.uniform(0, 2, 6),
    rejected_kls=RNG.uniform(0, 2, 6),
)
SINGLES = SingleLogps(
    logps=np.float64([-3, -6, -2, -4, -7, -5]),
    ref_logps=np.float64([-3.5, -5, -2.5, -4.1, -7.7, -6]),
    labels=np.int32([1, -1, 0, 1, -1, 0]),
    mask=np.ones(6, bool),
)
LISTS = ListLogps(
    ratios=RNG.normal(0, 1, (3, 4)),
    mask=np.arange(4) < np.int32([[4], [3], [1]]),
)
SCORES = PairScores(*RNG.normal(0, 1, (2, 6)), np.float64([0, 0, 0, 1, 2, 0.5]))
RECORDS = {"pairs": PAIRS, "singles": SINGLES, "lists": LISTS, "scores": SCORES}
VARIED = {
    "pairs": ("chosen", "rejected", "chosen_kls", "rejected_kls"),
    "singles": ("logps",),
    "lists": ("ratios",),
    "scores": ("chosen", "rejected"),
}  # what may have a gradient; the reference has none
STATS = {
    "reward_mean": 0.2,
    "reward_count": 8.0,
    "gap_mean": 0.1,
    "gap_seen": 1.0,
    "spread_mean": 0.05,
    "spread_std": 0.3,
    "spread_seen": 1.0,
}
OPTIONS = {**parts.loss().to_dict(), **STATS}


@functools.cache
def compiled(name, fixed):
    """Compiles values and gradients of a loss, in a hurry; float options are traced."""
    function = find(name, LOSSES).fn

    def total(varied, record, traced):
        values = function(record._replace(**varied), **dict(fixed), **traced)
        return values.sum(), values

    hurry = {"xla_backend_optimization_level": 0}
    return jax.jit(jax.grad(total, has_aux=True), compiler_options=hurry)


def value_and_grads(name, record, **changed):
    """Returns f[N] values, as NumPy, and {field: gradient of their sum}.

    Options are the configuration's defaults, but for what is given. Float64 records are
    computed in float64.
    """
    row = find(name, LOSSES)
    given = {key: {**OPTIONS, **changed}[key] for key in keywords(row.fn)}
    text = [k for k, v in given.items() if isinstance(v, str)] + ["divergence_alpha"]
    fixed = tuple((key, given.pop(key)) for key in text if key in given)
    fields = VARIED[row.takes]
    varied = {f: v for f in fields if (v := getattr(record, f)) is not None}
    with jax.enable_x64(record[0].dtype == np.float64):
        grads, values = compiled(name, fixed)(varied, record, given)
    return np.asarray(values), {f: np.asarray(grad) for f, grad in grads.items()}


def value(name, record, **changed):
    """Returns f[N] values, as NumPy; options as in `value_and_grads`."""
    return value_and_grads(name, record, **changed)[0]


def cast(record, dtype=np.float32):
    """Casts a record's floating-point fields."""
    floats = [
        v.astype(dtype) if v is not None and np.issubdtype(v.dtype, np.floating) else v
        for v in record
    ]
    return type(record)(*floats)
