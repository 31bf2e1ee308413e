"""The figure of a sweep: differences with their intervals, and reward against KL."""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dpo_jax.report import stats
from dpo_jax.report.comparison import KL, REWARD, Comparison, Setting
from dpo_jax.report.figures import color
from dpo_jax.report.frontier import NATS

MARKS = "osD^vP*X"  # with as many colours: tells 64 methods apart


def draw(found: Comparison, measure: str) -> bytes:
    """Draws the comparison of a sweep; returns a PNG.

    Args:
      found: the comparison.
      measure: what rewards are called.
    """
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(setting.method for setting in found.settings))
    height = max(4.0, 1.5 + 0.32 * len(methods))
    figure = Figure(figsize=(11, height), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.3))
    draw_differences(left, found, methods, measure)
    draw_plane(right, found, methods, measure)
    handles, labels = right.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    text = io.BytesIO()
    figure.savefig(text, format="png")
    return text.getvalue()


def style(methods: Sequence[str], method: str) -> dict[str, Any]:
    """Returns the colour and the mark of a method."""
    at = methods.index(method)
    return {"color": color(at), "marker": MARKS[(at // 8 + at) % len(MARKS)]}


def draw_differences(
    axes: Any, found: Comparison, methods: Sequence[str], measure: str
) -> None:
    """Draws each method's best against the base's, from top to bottom."""
    rows = list(reversed(found.tuned))
    axes.axvline(0.0, color="0.6", lw=0.8)
    for height, row in enumerate(rows):
        mean = row.difference.mean
        if mean is None:
            axes.plot(0.0, height, mfc="white", **style(methods, row.setting.method))
        else:
            known = not math.isnan(row.difference.p)
            error = mean.mean - mean.interval[0] if known else None
            of = style(methods, row.setting.method)
            axes.errorbar(mean.mean, height, xerr=error, capsize=2, lw=1.2, **of)
    names = [f"{row.setting.method}\n{row.setting.text}" for row in rows]
    axes.set_yticks(range(len(rows)), [n.strip() for n in names], fontsize=7)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    of = f"{stats.CONFIDENCE:.0%} interval (uncorrected)"
    axes.set_xlabel(f"{measure} − {found.arms.base}'s, {of}", fontsize=8)
    axes.set_title("Each at its best setting, on test prompts", fontsize=9)


def draw_plane(
    axes: Any, found: Comparison, methods: Sequence[str], measure: str
) -> None:
    """Draws every setting by its KL and reward, one standard error each way."""
    best = [row.setting for row in found.tuned]
    for method in methods:
        label: str | None = method
        of = [s for s in found.settings if s.method == method]
        for setting in sorted(of, key=lambda setting: setting not in best):
            if setting.values:
                _point(axes, found, setting, setting in best, label, methods)
                label = None
    axes.set_xscale("function", functions=(_root, np.square))
    axes.set_xlim(left=0.0)
    axes.set_xticks(ticks := [nats for nats in NATS if nats <= axes.get_xlim()[1]])
    axes.set_xticklabels([f"{nats:g}" for nats in ticks])
    axes.grid(alpha=0.25)
    axes.set_xlabel("KL to the reference, nats (scale of √KL)", fontsize=8)
    axes.set_ylabel(measure, fontsize=8)
    axes.set_title("Every setting, filled where it is a method's best", fontsize=9)


def _root(values: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(values, 0.0))


def _point(
    axes: Any,
    found: Comparison,
    setting: Setting,
    filled: bool,
    label: str | None,
    methods: Sequence[str],
) -> None:
    """Draws a setting; nothing where its KL is not known."""
    kl, reward = (setting.mean(row, found.test) for row in (KL, REWARD))
    if math.isnan(kl.mean):
        return
    of = style(methods, setting.method)
    axes.errorbar(
        kl.mean,
        reward.mean,
        xerr=None if math.isnan(kl.se) else kl.se,
        yerr=None if math.isnan(reward.se) else reward.se,
        mfc=of["color"] if filled else "white",
        ms=6,
        lw=0.8,
        ls="none",
        label=label,
        **of,
    )
