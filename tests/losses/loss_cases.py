"""Records and options that the tests of the losses share."""

import functools

import jax
import numpy as np

from dpo_jax import schema
from dpo_jax.losses import LOSSES, find, options
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
    ratings=np.float64([[9, 7, 6, 2], [4, 3.5, 3, 0], [5, 0, 0, 0]]),
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
    "gap_std": 2.0,
    "gap_seen": 1.0,
    "spread_mean": 0.05,
    "spread_std": 0.3,
    "spread_seen": 1.0,
}
OPTIONS = {**schema.base().loss.to_dict(), **STATS}


@functools.cache
def compiled(rows):
    """Compiles values and gradients of losses together; float options are traced.

    Args:
      rows: (name, ((option, value), …) that are not traced) of each loss.
    """

    def one(name, fixed, varied, record, traced):
        def total(varied):
            chosen = {**dict(fixed), **traced}
            values = find(name, LOSSES)(record._replace(**varied), chosen)
            return values.sum(), values

        return jax.grad(total, has_aux=True)(varied)

    def every(inputs):
        return {name: one(name, fixed, *inputs[name]) for name, fixed in rows}

    hurry = {"xla_backend_optimization_level": 0}
    return jax.jit(every, compiler_options=hurry)


def inputs_of(name, record, changed):
    """Returns the options that are not traced, and (varied, record, traced)."""
    row = find(name, LOSSES)
    names = [*options(row), *(row.running.start if row.running else ())]
    given = {key: {**OPTIONS, **changed}[key] for key in names}
    text = [k for k, v in given.items() if isinstance(v, str)] + ["divergence_alpha"]
    fixed = tuple((key, given.pop(key)) for key in text if key in given)
    fields = VARIED[row.takes]
    varied = {f: v for f in fields if (v := getattr(record, f)) is not None}
    return fixed, (varied, record, {key: float(v) for key, v in given.items()})


def results(cases):
    """Computes {name: (values, {field: gradient of their sum})}, as NumPy.

    Args:
      cases: {name: (record, options that differ from the configuration's defaults)};
        float64 records are computed in float64.
    """
    found = {name: inputs_of(name, *case) for name, case in cases.items()}
    function = compiled(tuple((name, fixed) for name, (fixed, _) in found.items()))
    wide = any(record[0].dtype == np.float64 for record, _ in cases.values())
    with jax.enable_x64(wide):
        out = function({name: inputs for name, (_, inputs) in found.items()})
    return {name: (v, g) for name, (g, v) in jax.tree.map(np.asarray, out).items()}


def value_and_grads(name, record, **changed):
    """Returns f[N] values and {field: gradient of their sum}; see `results`.

    Where shapes and text options are the usual ones, all losses run in one function
    that is compiled once for all tests.
    """
    usual = RECORDS[find(name, LOSSES).takes]
    plain = inputs_of(name, usual, {})[0] == inputs_of(name, record, changed)[0]
    alike = [jax.tree.map(lambda x: (x.shape, x.dtype), r) for r in (usual, record)]
    every = {n: (RECORDS[find(n, LOSSES).takes], {}) for n in LOSSES}
    others = every if plain and alike[0] == alike[1] else {}
    return results({**others, name: (record, changed)})[name]


def value(name, record, **changed):
    """Returns f[N] values, as NumPy; options as in `value_and_grads`."""
    return value_and_grads(name, record, **changed)[0]
