"""The lesson's figures: one function each, from numbers to a matplotlib figure.

One colour means one thing in all of them (`COLORS`). Nothing is computed here but
places on the page; this file knows neither jax nor the losses.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = {
    "policy": "#3b82c4",
    "ref": "#808890",
    "optimum": "#8a6fd1",
    "chosen": "#3f9e6b",
    "rejected": "#d9772b",
    "wrong": "#c2385a",
}
INK, FAINT = "#222222", "#bbbbbb"
STYLE = {
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
}


def out_folder() -> Path | None:
    """Reads `--out=DIR` (default `runs/lesson`); None in a notebook: nothing saved."""
    plt.rcParams.update(STYLE)
    if "ipykernel" in sys.modules:
        return None
    parser = argparse.ArgumentParser(description="From Bradley-Terry to DPO")
    parser.add_argument("--out", type=Path, default=Path("runs/lesson"))
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    plt.switch_backend("Agg")
    return folder


def show(figure: Figure, name: str, out: Path | None) -> None:
    """Saves a figure as `out/name.png`, or shows it in a notebook."""
    if out is None:
        plt.show()
        return
    figure.savefig(out / f"{name}.png", metadata={"Software": None})
    plt.close(figure)


def tree(
    answers: Sequence[str],
    chances: Callable[[str], Mapping[str, float]],
    products: Sequence[float],
) -> Figure:
    """Draws what may be said word by word, with the chance of every next word.

    Args:
      answers: the leaves, from top to bottom; neighbours share their beginnings.
      chances: (words of the answer so far) -> chance of each next word.
      products: probability of each answer.
    """
    figure, axes = plt.subplots(figsize=(9.5, 4.2))
    longest = max(len(answer.split()) for answer in answers)
    heights: dict[str, list[int]] = {}
    for row, answer in enumerate(answers):
        words = answer.split()
        for end in range(len(words) + 1):
            heights.setdefault(" ".join(words[:end]), []).append(-row)
    height = {text: float(np.mean(rows)) for text, rows in heights.items()}
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    for text, y in height.items():
        words = text.split()
        depth = len(words)
        axes.text(
            depth,
            y,
            words[-1] if words else "Where is\nShanghai ?",
            ha="center",
            va="center",
            bbox=box,
        )
        if not words:
            continue
        before = " ".join(words[:-1])
        chance = chances(before)[words[-1]]
        ends = (depth - 1, depth), (height[before], y)
        axes.plot(*ends, color=COLORS["ref"], lw=0.5 + 4 * chance, zorder=0)
        middle = np.mean(ends[0]), np.mean(ends[1])
        label = f"{chance:.2f}" if chance < 0.995 else "1"
        axes.text(*middle, label, ha="center", va="center", fontsize=8, bbox=box)
    for answer, product in zip(answers, products, strict=True):
        y = height[answer]
        axes.plot(
            (len(answer.split()) + 0.35, longest + 0.55), (y, y), ":", color=FAINT, lw=1
        )
        axes.text(longest + 0.6, y, f"{product:.3f}", va="center", weight="bold")
    axes.text(longest + 0.6, 0.6, "product", va="center", color=COLORS["ref"])
    axes.set(
        xlim=(-0.5, longest + 1.1),
        ylim=(0.3 - len(answers), 0.9),
        xticks=range(1, longest + 1),
        yticks=[],
        xlabel="word of the answer",
        title="A sentence's probability is the product along its path",
    )
    axes.spines["left"].set_visible(False)
    return figure


def sigmoid_of_pairs(pairs: Mapping[str, float]) -> Figure:
    """Draws Bradley-Terry's curve with some pairs on it (name -> reward gap)."""
    figure, axes = plt.subplots(figsize=(8, 4))
    gaps = np.linspace(-8.5, 8.5, 301)
    axes.plot(gaps, 1 / (1 + np.exp(-gaps)), color=INK, lw=1.5)
    axes.axhline(0.5, color=FAINT, lw=0.8, ls=":")
    axes.axvline(0, color=FAINT, lw=0.8, ls=":")
    for name, gap in pairs.items():
        y = 1 / (1 + np.exp(-gap))
        side, color = (1, "chosen") if gap > 0 else (-1, "rejected")
        axes.plot(gap, y, "o", color=COLORS[color], ms=7)
        axes.annotate(
            f"{name}: {y:.0%}",
            (gap, y),
            (7 * side, -5 * side),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="top" if side > 0 else "bottom",
            fontsize=9,
        )
    axes.set(
        xlabel="reward gap  r(first) − r(second)",
        ylabel="chance that the first is preferred",
        title="Bradley-Terry: a gap of rewards is a chance of winning",
    )
    return figure


def reward_model(
    gaps: np.ndarray,
    curves: Mapping[str, np.ndarray],
    truth: Sequence[float],
    learned: Sequence[float],
    answers: Sequence[str],
) -> Figure:
    """Draws the loss over the gap of two scores, and learned against true rewards.

    Args:
      gaps: the left axis.
      curves: expected loss at each gap, named; the minimum of each is marked.
      truth: reward of each answer.
      learned: score of each answer.
      answers: their texts.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for (name, losses), shade in zip(curves.items(), (FAINT, "#666666"), strict=True):
        low = int(np.argmin(losses))
        left.plot(gaps, losses, color=shade, lw=2)
        left.text(gaps[-1], losses[-1], f" {name}", va="center", fontsize=9)
        if 0 < low < len(gaps) - 1:
            left.plot(gaps[low], losses[low], "o", color=COLORS["optimum"])
            note = f"lowest where the gap\nof scores is {gaps[low]:.1f}"
            left.annotate(
                note,
                (gaps[low], losses[low]),
                (gaps[low] + 0.6, losses[low] + 1.4),
                arrowprops={"arrowstyle": "-", "color": COLORS["optimum"]},
                color=COLORS["optimum"],
                ha="center",
                fontsize=9,
            )
    left.set(
        xlabel="gap of scores  s(first) − s(second)",
        ylabel="loss, nats",
        title="One pair: how often it wins sets the best gap",
        xlim=(gaps[0], gaps[-1] + 2.2),
    )
    for reward, score, answer in zip(truth, learned, answers, strict=True):
        right.plot(reward, score, "o", color=COLORS["policy"], zorder=3)
        right.text(reward + 0.12, score - 0.12, answer, fontsize=8.5, va="top")
    ends = np.array([min(truth), max(truth)])
    shift = float(np.mean(learned) - np.mean(truth))
    right.plot(ends, ends + shift, color=FAINT, zorder=0)
    right.set(
        xlabel="true reward",
        ylabel="learned score",
        xlim=(min(truth) - 0.3, max(truth) + 1.9),
        ylim=(min(learned) - 0.5, max(learned) + 0.3),
        title="Six answers: scores are rewards, up to one constant",
    )
    return figure


def identity(
    kls: np.ndarray, objectives: np.ndarray, beta: float, best: float
) -> Figure:
    """Draws J of random policies over their KL to the optimum: a line."""
    figure, axes = plt.subplots(figsize=(8, 4))
    ends = np.array([0, kls.max()])
    axes.plot(ends, best - beta * ends, color=FAINT, lw=1)
    axes.plot(kls, objectives, ".", color=COLORS["policy"], ms=5, alpha=0.6)
    axes.plot(0, best, "D", color=COLORS["optimum"], ms=8, clip_on=False, zorder=4)
    axes.annotate(
        f"π*:  J = β log Z = {best:.3f}",
        (0, best),
        (0.06 * ends[1], best),
        color=COLORS["optimum"],
        va="center",
    )
    middle = float(np.median(kls))
    axes.annotate(
        f"every dot is a random policy;\nall lie on one line of slope −β = −{beta}",
        (middle, best - beta * middle),
        (middle + 0.06 * ends[1], best - beta * middle * 0.75),
        color=COLORS["policy"],
        va="bottom",
    )
    axes.set(
        xlabel="KL(π‖π*), nats",
        ylabel="J(π) = E[r] − β KL(π‖ref)",
        xlim=(0, None),
        title="To maximise J is to close the distance to one policy, π*",
    )
    return figure


def bars(
    axes: Axes, answers: Sequence[str], groups: Mapping[str, tuple[str, Sequence]]
) -> None:
    """Draws horizontal bars: a cluster an answer, in it a bar a group."""
    thick = 0.8 / len(groups)
    for place, (name, (color, values)) in enumerate(groups.items()):
        y = np.arange(len(answers)) + (place - (len(groups) - 1) / 2) * thick
        axes.barh(y, values, thick * 0.92, color=color, label=name)
        for at, value in zip(y, np.asarray(values), strict=True):
            side = 1 if value >= 0 else -1
            axes.annotate(
                f"{value:.3f}",
                (value, at),
                (4 * side, 0),
                textcoords="offset points",
                va="center",
                ha="left" if side > 0 else "right",
                fontsize=7.5,
                color=INK,
            )
    axes.set_yticks(range(len(answers)), answers)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.margins(x=0.12)


def policies(
    answers: Sequence[str], groups: Mapping[str, tuple[str, Sequence]], title: str
) -> Figure:
    """Draws the probability of each answer under several policies.

    Args:
      answers: their texts.
      groups: name -> (a colour, or its name in `COLORS`; probability of each answer).
      title: what is to be seen.
    """
    figure, axes = plt.subplots(figsize=(9, 0.9 + 0.22 * len(answers) * len(groups)))
    named = {name: (COLORS.get(c, c), values) for name, (c, values) in groups.items()}
    bars(axes, answers, named)
    axes.set(xlabel="probability", title=title)
    axes.legend(frameon=False, loc="lower right", fontsize=9)
    return figure


def sample_sizes(sizes: Sequence[int], errors: np.ndarray) -> Figure:
    """Draws the error of weighted regression over the number of samples.

    Args:
      sizes: numbers of samples.
      errors: [seeds, sizes] KL(π*‖π).
    """
    figure, axes = plt.subplots(figsize=(8, 4))
    middle = np.median(errors, 0)
    axes.loglog(sizes, errors.T, ".", color=COLORS["policy"], ms=4, alpha=0.4)
    axes.loglog(sizes, middle, color=COLORS["policy"], lw=2)
    axes.text(
        sizes[1] * 1.15, middle[1] * 1.6, "median of 20 fits", color=COLORS["policy"]
    )
    line = middle[0] / 6 * sizes[0] / np.array(sizes)
    axes.loglog(sizes, line, ":", color=INK, lw=1)
    axes.text(sizes[-1] * 1.2, line[-1], "∝ 1/n", va="center")
    axes.set(
        xlabel="answers sampled from the reference, n",
        ylabel="KL(π*‖fitted policy), nats",
        xlim=(sizes[0] * 0.8, sizes[-1] * 3),
        title="Weighted regression approaches π* as samples come in",
    )
    return figure
