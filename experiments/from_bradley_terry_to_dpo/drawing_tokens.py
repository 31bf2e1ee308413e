"""The lesson's figures of training and of tokens; the rules are those of `drawing`."""

from collections.abc import Iterator, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from drawing import COLORS, FAINT, INK, bars
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dpo_jax.types import Batch


def substitution(
    answers: Sequence[str],
    rewards: Sequence[float],
    ratios: Sequence[float],
    constant: float,
) -> Figure:
    """Draws r and β log(π*/ref) of each answer, always the same constant apart."""
    figure, axes = plt.subplots(figsize=(9, 3.8))
    rows = np.arange(len(answers))
    axes.hlines(rows, ratios, rewards, color=FAINT, lw=5, zorder=0)
    axes.plot(rewards, rows, "o", color=INK, ms=8)
    axes.plot(ratios, rows, "D", color=COLORS["optimum"], ms=8)
    axes.text(rewards[0] + 0.1, -0.45, "r", ha="center", va="bottom", weight="bold")
    axes.text(
        ratios[0],
        -0.45,
        "β log π*/ref",
        ha="center",
        va="bottom",
        color=COLORS["optimum"],
    )
    for row, (reward, ratio) in enumerate(zip(rewards, ratios, strict=True)):
        middle = (reward + ratio) / 2
        axes.text(middle, row + 0.18, f"{reward - ratio:.4f}", ha="center", va="top")
    axes.set_yticks(rows, answers)
    axes.set(
        ylim=(len(answers) - 0.4, -1.1),
        xlabel="reward",
        title=f"A policy carries its reward, β log Z = {constant:.4f} below it",
    )
    axes.axvline(0, color=FAINT, lw=0.8, ls=":", zorder=0)
    return figure


def training(
    losses: np.ndarray, floor: float, kls: np.ndarray, *, shown: int
) -> Figure:
    """Draws the DPO loss of the first `shown` steps, and KL(π*‖π) of twice as many."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8))
    left.plot(losses[:shown], color=COLORS["policy"], lw=2)
    for level, name in ((np.log(2), "ln 2: policy = ref"), (floor, "labels' entropy")):
        left.axhline(level, color=FAINT, lw=1, ls=":")
        left.annotate(
            name,
            (shown, level),
            (0, 5 if level == floor else -5),
            textcoords="offset points",
            ha="right",
            va="bottom" if level == floor else "top",
        )
    left.set(xlabel="step", ylabel="DPO loss, nats", title="The loss falls from ln 2 …")
    right.semilogy(kls[: 2 * shown], color=COLORS["policy"], lw=2)
    right.set(
        xlabel="step",
        ylabel="KL(π*‖π), nats",
        ylim=(1e-15, 10),
        title="… and the policy becomes the optimum of RLHF",
    )
    return figure


def gradient_weights(margins: np.ndarray, pushes: np.ndarray) -> Figure:
    """Draws how hard a pair is pushed, by jax.grad and by the paper's two formulas."""
    figure, axes = plt.subplots(figsize=(8.5, 4))
    line = np.linspace(-4, 4, 201)
    axes.plot(line, 1 / (1 + np.exp(line)), color=COLORS["policy"], lw=2)
    axes.plot(line, 1 / (1 + np.exp(-line)), "--", color=COLORS["wrong"], lw=1.5)
    axes.plot(margins, pushes, "o", color=INK, ms=5, zorder=3)
    axes.text(-3.9, 0.9, "§4:  σ(r̂(l) − r̂(w))", color=COLORS["policy"], va="top")
    axes.text(3.9, 0.9, "A.4 as printed", color=COLORS["wrong"], va="top", ha="right")
    axes.annotate(
        "dots: jax.grad of the\nproduction loss",
        (margins[np.argmax(margins)], pushes[np.argmax(margins)]),
        (2.3, 0.3),
        arrowprops={"arrowstyle": "-", "color": INK},
    )
    axes.set(
        xlabel="margin  r̂(chosen) − r̂(rejected)\n"
        "← pair still wrong                                pair already right →",
        ylabel="push on the pair  (|gradient| / β)",
        ylim=(0, 1),
        title="A pair is pushed as hard as the policy gets it wrong",
    )
    return figure


def gather(
    logps: np.ndarray,
    words: Sequence[str],
    row: Sequence[str],
    parents: Sequence[int],
    targets: Sequence[int],
) -> Figure:
    """Draws log-probs [T, V] as a heat map with the gathered cells marked.

    Args:
      logps: log-softmax of the logits of one row.
      words: of the vocabulary, V.
      row: the words of the row, T.
      parents: which token's logits predict.
      targets: ids that are predicted.
    """
    figure, axes = plt.subplots(figsize=(10, 4.8))
    image = axes.imshow(logps, cmap="Blues", vmin=-8, vmax=0, aspect="auto")
    figure.colorbar(image, ax=axes, label="log-prob of the next word", pad=0.01)
    for t, v in np.ndindex(logps.shape):
        scored = (t, v) in zip(parents, targets, strict=True)
        axes.text(
            v,
            t,
            f"{logps[t, v]:.1f}".replace("-0.0", "0.0").replace("-", "−"),
            ha="center",
            va="center",
            fontsize=8,
            weight="bold" if scored else "normal",
            color="white" if logps[t, v] > -2.5 else "#666666",
        )
    for t, v in zip(parents, targets, strict=True):
        axes.add_patch(
            Rectangle((v - 0.5, t - 0.5), 1, 1, fill=False, ec=COLORS["chosen"], lw=3)
        )
    first = min(parents)
    axes.axhline(first - 0.5, color=INK, lw=1, ls=":")
    axes.set_yticks(range(len(row)), [f"{word}  {t}" for t, word in enumerate(row)])
    axes.set_xticks(range(len(words)), words, rotation=40, ha="right")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    total = sum(logps[t, v] for t, v in zip(parents, targets, strict=True))
    axes.set(
        ylabel="token just read (its index)",
        xlabel="candidate for the next word",
        title=f"log π(y|x) is the sum of the four marked cells: −{-total:.3f}",
    )
    return figure


def forests(batches: Mapping[str, Batch], words: Sequence[str]) -> Figure:
    """Draws how layouts lay a pair out, with an arrow from each parent to its target.

    Args:
      batches: layout -> its rows.
      words: of the vocabulary.
    """
    figure, axes = plt.subplots(figsize=(11, 4.4))
    colors = ("#e4e6e8", COLORS["chosen"], COLORS["rejected"])
    y = 0.0
    for name, batch in batches.items():
        axes.text(-0.4, y - 0.75, name, ha="right", va="center", weight="bold")
        for row in range(len(batch.tokens)):
            y -= 0.75
            for t, (word, branch) in enumerate(
                zip(batch.tokens[row], batch.branches[row], strict=True)
            ):
                cell = (t + 0.04, y - 0.2)
                axes.add_patch(Rectangle(cell, 0.92, 0.4, color=colors[branch]))
                ink = "white" if branch else INK
                style = {"ha": "center", "va": "center", "fontsize": 7.5, "color": ink}
                axes.text(t + 0.5, y, words[word], **style)
            for parent, target in _arrows(batch, row):
                bend = -0.5 / (target - parent) ** 0.7
                axes.annotate(
                    "",
                    (target + 0.5, y + 0.2),
                    (parent + 0.5, y + 0.2),
                    arrowprops={
                        "arrowstyle": "->",
                        "connectionstyle": f"arc3,rad={bend:.2f}",
                        "color": INK,
                        "lw": 0.9,
                    },
                )
        y -= 0.4
    for x, role in enumerate(("prompt", "chosen", "rejected")):
        axes.text(
            9 + 1.7 * x,
            -0.9,
            role,
            color=COLORS["ref"] if not x else colors[x],
            weight="bold",
        )
    axes.text(9, -1.5, "arrows: which token predicts which", color=INK, fontsize=9)
    axes.set(xlim=(-2.2, 16), ylim=(y - 0.1, 0), title="One pair in three layouts")
    axes.axis("off")
    return figure


def _arrows(batch: Batch, row: int) -> Iterator[tuple[int, int]]:
    """Yields (parent, index of its target) of a row's scored entries."""
    for slot, end in enumerate(batch.ends[row]):
        parents = batch.parents[row][batch.slots[row] == slot]
        first = int(end) + 1 - len(parents)
        for offset, parent in enumerate(parents):
            yield int(parent), first + offset


def damage(
    answers: Sequence[str], optimum: Sequence, wrong: Sequence, title: str
) -> Figure:
    """Draws what a wrong line makes of the policy, beside the optimum."""
    figure, axes = plt.subplots(figsize=(9, 3.9))
    groups = {
        "π*, what the right line reaches": (COLORS["optimum"], optimum),
        "what the changed line reaches": (COLORS["wrong"], wrong),
    }
    bars(axes, answers, groups)
    axes.set(xlabel="probability", title=title)
    axes.legend(frameon=False, loc="lower right", fontsize=9)
    return figure


def summary(kls: Mapping[str, float]) -> Figure:
    """Draws KL(π*‖π) of every variant on a log scale; the first is the right one."""
    figure, axes = plt.subplots(figsize=(9, 0.8 + 0.42 * len(kls)))
    for row, value in enumerate(kls.values()):
        color = COLORS["wrong" if row else "policy"]
        axes.plot((1e-13, value), (row, row), color=color, lw=3)
        axes.plot(value, row, "o", color=color, ms=9)
        axes.text(value * 2.5, row, f"{value:.2g}", va="center")
    axes.set_yticks(range(len(kls)), list(kls))
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set(
        xscale="log",
        xlim=(1e-13, 1e3),
        xlabel="KL(π*‖π) after training, nats",
        title="One changed line each",
    )
    return figure
