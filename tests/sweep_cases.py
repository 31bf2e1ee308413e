"""Run folders of sweeps, made by hand."""

import json
from pathlib import Path

import numpy as np

from dpo_jax import schema
from dpo_jax.config import flat, to_json
from dpo_jax.report.arms import Entry


def config(**keys):
    """A flat configuration; `loss__beta=1.0` stands for `loss.beta`."""
    return {
        **flat(schema.base()),
        **{key.replace("__", "."): value for key, value in keys.items()},
    }


def entry(out, name, usual=None, **keys):
    """A finished trial with these keys, whose `--config` says `usual`."""
    base = config(**(usual or {}))
    return Entry(name, str(Path(out) / name), {**base, **config(**keys)}, base)


def finish(folder, rewards, kls=None, losses=(0.7, 0.5), prompts="p", lengths=None):
    """Leaves what a finished, sampled run leaves and the table reads."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    rows = [
        {"step": step, "split": "train", "loss": loss}
        for step, loss in enumerate(losses, start=1)
    ]
    known = [r for r in rewards if r is not None]
    rows.append(
        {"step": len(losses), "split": "eval", "rollouts/reward": float(np.mean(known))}
    )
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text)
    of_policy = {
        "reward": list(rewards),
        "kl": list(kls or [1.0] * len(rewards)),
        "length": list(lengths or [9.0] * len(rewards)),
    }
    kept = {"step": len(losses), "measure": "true reward", "prompts": prompts}
    (folder / "rollouts.json").write_text(json.dumps({**kept, "policy": of_policy}))


def finish_whole(planned, rewards):
    """Leaves of a planned trial what makes it done, and a table of it."""
    finish(planned.folder, rewards)
    folder, steps = Path(planned.folder), planned.config.train.steps
    (folder / "config.json").write_text(to_json(planned.config))
    results = {"step": steps, "values": {"loss": 0.5}}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "report.html").write_text("a page")


def grid(out, methods, seeds=(0, 1, 2), width=20, noise=0.05):
    """Finishes `method -> {beta: (reward, kl)}`, β .1 usual; returns the entries.

    A seed and a prompt have the same luck under every method.
    """
    entries, random = [], np.random.default_rng(0)
    luck = random.normal(0.0, noise, (max(seeds) + 1, 1))
    luck = luck + random.normal(0.0, noise, width)
    for method, settings in methods.items():
        for beta, (reward, kl) in settings.items():
            for seed in seeds:
                keys = {"loss__name": method, "loss__beta": beta, "seed": seed}
                name = f"{method}.{beta:g}.{seed}"
                made = entry(out, name, {"loss__name": method}, **keys)
                own = random.normal(0.0, noise / 5, width)
                values = (reward + luck[seed] + own).tolist()
                finish(made.folder, values, [kl] * width)
                entries.append(made)
    return entries
