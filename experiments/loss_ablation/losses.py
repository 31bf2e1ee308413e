"""The dozen losses that are compared: what each is usually given, and what is tuned."""

from collections.abc import Mapping
from typing import Any, NamedTuple

Keys = dict[str, Any]


class Entry(NamedTuple):
    """A loss of the comparison; its name is `loss.name`.

    Attributes:
      strength: the option of its own that is tuned, of `config.loss`.
      values: tried on the embedded reviews; the first is its authors' usual one.
      pod: tried on UltraFeedback, the first is the default; where arXiv:2405.14734 has
        the loss, from what its table 7 tried.
      keys: what else it is given, of `config.loss`.
    """

    strength: str
    values: tuple[float, ...]
    pod: tuple[float, ...]
    keys: Mapping[str, Any] = {}


ENTRIES: dict[str, Entry] = {
    "dpo": Entry("beta", (0.1, 1.0), (0.01, 0.05, 0.1)),
    "ipo": Entry("beta", (0.1, 1.0), (0.1, 0.5, 1.0)),
    "hinge": Entry("beta", (0.05, 0.5), (0.05, 0.1, 0.5)),
    "exo_pair": Entry("beta", (0.1, 1.0), (0.1, 0.05, 0.5), {"label_smoothing": 1e-3}),
    "apo_zero": Entry("beta", (0.1, 1.0), (0.1, 0.05, 0.5)),
    "nca_pair": Entry("beta", (0.01, 0.1), (0.01, 0.05, 0.1)),
    "dpop": Entry("beta", (0.3, 3.0), (0.3, 0.1, 0.05), {"dpop_lambda": 50.0}),
    "r_dpo": Entry("beta", (0.1, 1.0), (0.1, 0.05, 0.01), {"length_alpha": 0.1}),
    "simpo": Entry("beta", (2.0, 10.0), (2.0, 2.5, 10.0), {"gamma": 1.0}),
    "orpo": Entry("beta", (0.1, 1.0), (0.1, 0.5, 1.0)),
    "cpo": Entry("beta", (0.1, 1.0), (0.1, 0.05, 0.01), {"nll_weight": 1.0}),
    "unlikelihood": Entry("unlikelihood_alpha", (0.5, 0.05), (0.5, 0.1, 0.05)),
}
