"""The tiers of the paper's judged figures, and the rows of HH that they read."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dpo_jax.data import sources
from dpo_jax.data.sources.files import BadRow
from dpo_jax.data.sources.hh import split_transcripts

Keys = dict[str, Any]

REWARD: Keys = {
    "objective": "reward",
    "loss.name": "bradley_terry",
    "ref.mode": "none",
    "eval.rollouts": 0,
}
EXPORT_ALONE: Keys = {"checkpoint.after": "none"}  # what a finished trial keeps
HUMAN = "\n\nHuman:"


class Tier(NamedTuple):
    """What is trained, on what, and how it is sampled and judged.

    Attributes:
      trials: name -> (config, keys) of each run.
      config: that names the held-out prompts with their chosen responses.
      keys: of it.
      limit: prompts.
      samples: of each, at each temperature.
      new_tokens: of a sample, at most.
      judges: of `winrate --judge`, beside the tier's reward model.
      stops: strings that end a sample.
      data: writes `prompts.jsonl`, prompts with their chosen responses that are
        sampled instead, and what trials read as `{data}/…`, from the source that is
        named into a folder; None = the prompts are those of `config`.
      batch: samples that are drawn together.
      comparable: whether its rates estimate the paper's; else why not.
    """

    trials: dict[str, tuple[str, Keys]]
    config: str
    keys: Keys
    limit: int
    samples: int
    new_tokens: int
    judges: tuple[str, ...]
    comparable: str
    stops: tuple[str, ...] = ()
    data: Callable[[str, Path], None] | None = None
    batch: int = 32


STARTED: Keys = {**EXPORT_ALONE, "model.path": "{sft}", "model.preset": ""}
QUICK = Tier(
    trials={
        "sft": ("quickstart:stage=sft,steps=300", EXPORT_ALONE),
        "dpo": ("quickstart:stage=dpo,steps=150", {**STARTED, "eval.rollouts": 0}),
        "reward_model": (
            "quickstart:stage=dpo,steps=200",
            {**STARTED, **REWARD, "loss.beta": 0.1},  # its default: it is not used
        ),
    },
    config="quickstart:stage=dpo",
    keys={"eval.limit": 128},
    limit=128,
    samples=16,
    new_tokens=20,
    judges=("sentiment",),
    comparable="no: reviews of a grammar, a decoder of 2 layers, and its true reward",
    batch=512,
)
QUICK_PPO = (
    "ppo",
    {
        **STARTED,
        "data.train": "sentiment",
        "data.max_tokens": 32,
        "data.max_prompt_tokens": 12,
        "train.steps": 120,
        "rollout.prompts": 256,
        "rollout.samples": 1,
        "rollout.max_new_tokens": 20,
        "rollout.batch": 256,
        "reward.path": "{reward_model}",
        "ppo.epochs": 2,
        "ppo.minibatches": 2,
        "ppo.whiten_scores": True,
        "optimizer.lr": 5e-4,
    },
)
PYTHIA: Keys = {"model.path": "EleutherAI/pythia-2.8b", "model.dtype": "bfloat16"}


def full_tier(source: str, sft: str, preset: str, keys: Keys, new_tokens: int) -> Tier:
    """Makes the tier of the paper's size, with today's stand-ins.

    Args:
      source: of the pairs; `hh` is sampled on prompts of one human turn.
      sft: data that the reference is trained on; `source` = its chosen responses.
      preset: of `configs/dpo.py`.
      keys: of all trials.
      new_tokens: of a sample, at most.
    """
    is_hh = source == "hh"
    pairs = {**keys, **EXPORT_ALONE, "data.train": source, "data.eval": source}
    start = {**pairs, "model.path": "{sft}"}
    trials = {
        "sft": ("sft", {**PYTHIA, **pairs, "data.train": sft, "data.eval": ""}),
        "dpo": (f"dpo:preset={preset}", {**start, "model.dtype": "bfloat16"}),
        "reward_model": ("dpo", {**start, **REWARD, "model.dtype": "bfloat16"}),
    }
    if sft != source:
        trials["preferred_ft"] = ("sft", {**start, "model.dtype": "bfloat16"})
    return Tier(
        trials=trials,
        config=f"dpo:preset={preset}",
        keys={**keys, "data.eval": source},
        limit=256,
        samples=128,
        new_tokens=new_tokens,
        judges=(),
        comparable="in part: the judge is another than gpt-4-0314, which is retired",
        stops=(HUMAN,) * is_hh,
        data=write_single_turns if is_hh else None,
    )


def full_ppo(tier: Tier) -> tuple[str, Keys]:
    """Makes PPO against the learned reward of a tier of the paper's size.

    512 samples a turn, KL coefficient .05 and rate 3e-6 are those of arXiv:2403.17031,
    which reproduced PPO on TL;DR; the paper does not state its own.
    """
    given = {k: v for k, v in tier.trials["dpo"][1].items() if k != "data.eval"}
    turns = {
        "data.eval": "",
        "reward.path": "{reward_model}",
        "train.steps": 8_000,
        "rollout.prompts": 512,
        "rollout.samples": 1,
        "rollout.max_new_tokens": tier.new_tokens,
        "ppo.kl_coef": 0.05,
    }
    return "ppo", {**given, **turns}


def write_single_turns(source: str, out: Path) -> None:
    """Writes HH's prompts in which a human speaks once, and what was chosen."""
    once = [row for row in hh_rows(source) if is_single_turn(row)]
    write_rows(out / "prompts.jsonl", once)


def is_single_turn(row: Mapping[str, str]) -> bool:
    """Says whether a human speaks once in the prompt of a pair of HH."""
    return row["prompt"].count(HUMAN) == 1


def hh_rows(source: str) -> list[dict[str, str]]:
    """Reads the pairs of HH that hold their text: prompt, chosen, rejected.

    Args:
      source: as `data.eval` names it.
    """
    (part,) = sources.parts_of(source, "data.eval")
    found = []
    for _, fields in sources.read(sources.find(part, "eval"), sources.Request("eval")):
        try:
            if isinstance(fields, BadRow):
                continue
            row = split_transcripts(fields)
        except BadRow:
            continue  # four rejected texts do not begin as the chosen does
        if row["chosen"].strip() and row["rejected"].strip():
            found.append({key: row[key] for key in ("prompt", "chosen", "rejected")})
    return found


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a JSONL file."""
    lines = [json.dumps(row) + "\n" for row in rows]
    file.write_text("".join(lines), encoding="utf-8")
