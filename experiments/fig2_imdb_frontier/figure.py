"""Figure 2 (left), with what its authors did not draw: the frontier and the cost."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from dpo_jax.report.figures import COLORS
from experiments.fig2_imdb_frontier.points import METHODS, Bounds, Experiment, Point

Paper = Mapping[str, Sequence[tuple[float, float]]]  # method -> (KL, reward)

FARTHEST = 20.0  # nats, of the paper's axis
KLS = (0, 0.2, 0.5, 1, 2, 3, 5, 8, 12, 16, 20)
INK, GREY = "#333333", "#9a9a9a"
COLOR = dict(zip(METHODS, COLORS, strict=False))
PAPER = {  # what the paper calls a method -> ours
    "DPO (Ours)": "dpo",
    "Unlikelihood": "unlikelihood",
    "Preferred-FT": "preferred_ft",
    "PPO (Our impl.)": "ppo",
    "PPO-GT (Our impl.)": "ppo_gt",
    "PPO-GT (TRL)": "ppo_gt",
}
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.1,
    "legend.frameon": False,
}


def draw(found: Experiment, paper: Paper) -> Figure:
    """Draws ours beside the paper's, and ours against seconds and samples."""
    matplotlib.rcParams.update(STYLE)
    canvas = Figure(figsize=(12.0, 8.6), layout="constrained", dpi=130)
    ((ours, theirs), (seconds, samples)) = canvas.subplots(2, 2)
    low = min((point.reward for point in found.points), default=0.4)
    draw_frontier(ours, found)
    draw_paper(theirs, paper)
    limits = (min(low, 0.45) - 0.03, 1.01)
    for axes in (ours, theirs):
        axes.set_xscale("function", functions=(np.sqrt, np.square))
        axes.set(xlim=(0.0, FARTHEST), ylim=limits, xticks=KLS)
        axes.set_xlabel("KL to the reference, nats a response; square-root scale")
        axes.set_ylabel("true reward")
    draw_cost(seconds, found.points, "seconds")
    seconds.set_title("The same against training time")
    seconds.set(xscale="log", ylim=limits, ylabel="true reward")
    seconds.set_xlabel("seconds of training steps, evaluation and compiling left out")
    draw_cost(samples, found.points, "samples")
    samples.set_title("The same against samples drawn to learn from")
    samples.set(ylim=limits, xlabel="samples drawn", ylabel="true reward")
    return canvas


def draw_frontier(axes: Any, found: Experiment) -> None:
    """Draws every evaluation, the frontier above them, and best-of-N."""
    draw_bounds(axes, found.bounds)
    for method in METHODS:
        of = [point for point in found.points if point.method == method]
        label: str | None = METHODS[method]
        for trial in dict.fromkeys(point.trial for point in of):
            line = [point for point in of if point.trial == trial]
            kls = [point.kl for point in line]
            axes.plot(kls, [p.reward for p in line], "-", color=COLOR[method], lw=0.7)
            axes.errorbar(
                kls,
                [point.reward for point in line],
                xerr=[point.kl_se for point in line],
                yerr=[point.reward_se for point in line],
                fmt="o",
                ms=3,
                lw=0.6,
                color=COLOR[method],
                label=label,
            )
            label = None
    beyond = sum(point.kl > FARTHEST for point in found.points)
    right = f" ({beyond} lie beyond {FARTHEST:g} nats)" if beyond else ""
    axes.set_title(f"Ours: every evaluation of every trial{right}")
    axes.legend(loc="lower right", fontsize=8)


def draw_bounds(axes: Any, bounds: Bounds) -> None:
    """Draws the frontier, dotted where too few samples carry it, and best-of-N."""
    trusted = [place[:2] for place in bounds.trusted]
    if trusted:
        axes.plot(*zip(*trusted, strict=True), color=INK, lw=1.6, label="frontier")
    farthest = trusted[-1:]
    beyond = [p[:2] for p in bounds.curve if farthest and p.kl >= farthest[0][0]]
    if len(beyond) > 1:
        text = "estimate, too few samples"
        axes.plot(*zip(*beyond, strict=True), ":", color=INK, lw=1.2, label=text)
    for best, mark, text in (
        (bounds.best_of, "s", "best-of-N by the truth (bound of KL)"),
        (bounds.best_of_learned, "D", "best-of-N by the learned reward"),
    ):
        if best:
            _, kls, rewards, _ = zip(*best, strict=True)
            style = {"color": GREY, "ms": 4, "mec": INK, "mew": 0.5, "ls": "none"}
            axes.plot(kls, rewards, mark, label=text, **style)


def draw_paper(axes: Any, paper: Paper) -> None:
    """Draws the points of the paper's figure."""
    for name, places in paper.items():
        mark = "^" if "TRL" in name else "o"
        kls, rewards = zip(*places, strict=True)
        axes.plot(kls, rewards, mark, ms=4, color=COLOR[PAPER[name]], label=name)
    axes.set_title("The paper's, IMDb with gpt2-large (decoded from its figure)")
    axes.legend(loc="lower right", fontsize=8)


def draw_cost(axes: Any, points: Sequence[Point], cost: str) -> None:
    """Draws reward against a cost: a line a trial."""
    for method in METHODS:
        of = [point for point in points if point.method == method and point.step]
        label: str | None = METHODS[method]
        for trial in dict.fromkeys(point.trial for point in of):
            line = [point for point in of if point.trial == trial]
            axes.plot(
                [getattr(point, cost) for point in line],
                [point.reward for point in line],
                "o-",
                ms=3,
                lw=0.8,
                color=COLOR[method],
                label=label,
            )
            label = None
    axes.legend(loc="lower right", fontsize=8)
