"""What on-policy runs refuse of a configuration, and what others refuse of theirs."""

from collections.abc import Sequence

from dpo_jax import config as config_lib
from dpo_jax import schema
from dpo_jax.config import Config
from dpo_jax.data import sources
from dpo_jax.errors import unknown
from dpo_jax.losses import Bound
from dpo_jax.objectives import ON_POLICY
from dpo_jax.sampling import compare
from dpo_jax.schema import Section
from dpo_jax.wiring import rewarding

LEAST_OF_FRONTIER = 32  # samples of a prompt
OF_SAMPLES = ("rollout", *ON_POLICY)  # sections that on-policy runs read


def on_policy_faults(config: Config) -> list[str]:
    """Complains of keys of samples where none are drawn, and of what samples refuse."""
    name = config.objective
    by = f"objective={name!r}"
    used = {"rollout", name} if name in ON_POLICY else set()
    faults = [
        fault
        for section in OF_SAMPLES
        if section not in used
        for fault in config_lib.unused_options(section, config[section], (), by)
    ]
    if name != "ppo":
        faults += config_lib.unused_options("value", config.value, (), by)
    if name not in ON_POLICY:
        return faults
    data, given = config.data, config[name]
    rows = {"layout", "row_tokens", "row_shapes", "cache_dir", "truncate_prompt"}
    rows |= {"truncate_response", "scored", "disjoint"}
    used = set(schema.section("data")) - rows
    faults += config_lib.unused_options("data", data, used, by)
    if name != "online":
        faults += config_lib.unused_options(
            "batch", config.batch, ("microbatches",), by
        )
    if not rewarding.names_of(config.reward):
        faults.append(f"{by} needs a reward: set reward.name or reward.path")
    if data.eval and not config.eval.rollouts:
        faults.append(
            f"data.eval={data.eval!r} is not used by {by} with eval.rollouts=0; "
            "set eval.rollouts, or data.eval=''"
        )
    tokens = data.max_prompt_tokens + config.rollout.max_new_tokens
    if tokens > data.max_tokens:
        faults.append(
            f"data.max_prompt_tokens={data.max_prompt_tokens} and rollout."
            f"max_new_tokens={config.rollout.max_new_tokens} exceed data.max_tokens="
            f"{data.max_tokens}"
        )
    return (
        faults
        + sample_faults(name, given, config.rollout, config.batch.pairs)
        + (drawn_reference_faults(name, given, config.ref))
    )


def whole_faults(by: str, online: Section, rollout: Section) -> list[str]:
    """Complains of what does not go with the reference's whole distribution.

    Args:
      by: whose loss reads it, for the message.
      online: `config.online`.
      rollout: `config.rollout`.
    """
    faults, heat = [], rollout["temperature"]
    if heat != 1:
        faults.append(
            f"rollout.temperature={heat} is not that of {by}, which reads the whole "
            "distribution as it is; use 1.0"
        )
    if online["ref"] == "each_round":
        faults.append(f"{by} needs a reference that stays; set online.ref='fixed'")
    return faults


def label_faults(losses: Sequence[Bound]) -> list[str]:
    """Complains of losses that cannot be taken of both orders of a pair."""
    return [
        f"online.labels='soft' is not for loss.name={bound.name!r}, which couples "
        "pairs or is divided by chosen tokens; use 'bradley_terry', which draws"
        for bound in losses
        if not bound.loss.takes_soft_labels
    ]


def sample_faults(name: str, given: Section, rollout: Section, pairs: int) -> list[str]:
    """Complains of numbers of samples that an algorithm cannot use.

    Args:
      name: of the objective.
      given: its section.
      rollout: `config.rollout`.
      pairs: `batch.pairs`.
    """
    prompts, samples, faults = rollout["prompts"], rollout["samples"], []
    alone = name == "awr" and given["baseline"] == "none"
    if samples < 2 and name != "ppo" and not alone:
        faults.append(
            f"rollout.samples={samples}: objective={name!r} compares the samples of a "
            "prompt; use at least 2"
        )
    if name != "online":
        parts = given["minibatches"]
        if prompts % parts:
            faults.append(
                f"rollout.prompts={prompts} is not a multiple of {name}.minibatches="
                f"{parts}"
            )
        return faults
    each = compare.pairs_of(given["rank"], samples)
    if pairs % max(each, 1) or prompts * each % pairs:
        faults.append(
            f"batch.pairs={pairs}: {each} pairs of each of rollout.prompts={prompts} "
            f"prompts do not fill updates of it; use a multiple of {each} that divides "
            f"{prompts * each}"
        )
    return faults


def drawn_reference_faults(name: str, given: Section, ref: Section) -> list[str]:
    """Complains of a reference that samples cannot be held against.

    Args:
      name: of the objective.
      given: its section.
      ref: `config.ref`.
    """
    faults, by = [], f"objective={name!r}"
    if ref["mode"] == "cached":
        faults.append(
            "ref.mode='cached' knows the responses of data.train, and "
            f"{by} draws others; set ref.mode='live'"
        )
    if ref["mode"] == "none" and given.get("kl_coef"):
        faults.append(
            f"{name}.kl_coef={given['kl_coef']} needs a reference; set ref.mode='live' "
            f"or {name}.kl_coef=0.0"
        )
    if ref["mode"] == "none" and given.get("sampler") == "ref":
        faults.append(f"{name}.sampler='ref' needs a reference; set ref.mode='live'")
    every = ref["sync_every_steps"]
    follows = name == "online" and given["ref"] == "following"
    if every and not follows:
        faults.append(
            f"ref.sync_every_steps={every} is not used by {by}"
            + " unless online.ref='following'" * (name == "online")
        )
    if follows and not every:
        faults.append("online.ref='following' needs ref.sync_every_steps > 0")
    return faults


def rollout_faults(
    given: Section, source: str, reference: str, judged: Sequence[str]
) -> list[str]:
    """Complains of rollouts without a reward or without a reference.

    Args:
      given: `config.eval`.
      source: `data.eval`.
      reference: `ref.mode`.
      judged: names of the rewards.
    """
    count, faults = given["rollouts"], []
    if not count:
        return [
            f"eval.{name}={given[name]} is not used by eval.rollouts=0; set it to "
            f"{schema.KEYS[f'eval.{name}'].default}, or sample"
            for name in ("rollouts_every_steps", "best_of", "frontier", "true_reward")
            if given[name] != schema.KEYS[f"eval.{name}"].default
        ]
    if sources.truth_of(source) is None and not (source and judged):
        known = ", ".join(sources.JUDGED)
        faults.append(
            f"eval.rollouts={count} needs a data.eval with a true "
            f"reward ({known}), not {source!r}, or reward.name or reward.path"
        )
    faults += frontier_faults(given, source, judged)
    if reference == "none":
        faults.append("eval.rollouts needs a reference; set ref.mode='live' or 0")
    if reference == "cached":
        faults.append(
            f"eval.rollouts={count} samples the reference, which "
            "ref.mode='cached' does not hold; set eval.rollouts=0 or ref.mode='live'"
        )
    return faults


def frontier_faults(given: Section, source: str, names: Sequence[str]) -> list[str]:
    """Complains of too few samples for a frontier, and of a truth that is none.

    Args:
      given: `config.eval`.
      source: `data.eval`.
      names: of the rewards.
    """
    faults, truth, samples = [], given["true_reward"], given["frontier"]
    if samples and (samples < LEAST_OF_FRONTIER or given["rollouts"] < 2):
        faults.append(
            f"eval.frontier={samples} with eval.rollouts={given['rollouts']}: a "
            f"frontier takes {LEAST_OF_FRONTIER} samples of 2 prompts at least; 0 = off"
        )
    if truth and sources.truth_of(source) is not None:
        faults.append(
            f"eval.true_reward={truth!r} is not used by data.eval="
            f"{source!r}, which has a true reward; set it to ''"
        )
    elif truth and truth not in names:
        faults.append(unknown("eval.true_reward", truth, names))
    return faults
