"""What each name in metrics.jsonl means, for captions of the report and for the docs.

A name that holds `*` stands for several. Of several sources, an evaluation has each
name once more behind the source's: `hh/loss`.
"""

import fnmatch
from typing import NamedTuple


class Metric(NamedTuple):
    """What a metric means.

    Attributes:
      meaning: what it is.
      unit: of its values; '' = a number without one.
      healthy: what a run that goes well shows; '' = nothing can be said.
    """

    meaning: str
    unit: str = ""
    healthy: str = ""


METRICS: dict[str, Metric] = {
    "loss": Metric(
        "the training objective",
        "",
        "DPO starts at ln 2 = 0.6931 exactly, and falls",
    ),
    "rewards/margins": Metric(
        "reward of the chosen minus that of the rejected response",
        "",
        "starts at 0 and rises steadily; tens within an epoch are overfitting",
    ),
    "rewards/accuracies": Metric(
        "share of pairs whose chosen response has the higher reward, a tie counts half",
        "",
        "starts at 0.5; in evaluation 0.6 to 0.8 on human labels",
    ),
    "rewards/chosen": Metric(
        "β × log-ratio of policy to reference on the chosen response; implicit reward",
        "",
        "often falls below 0 although training goes well; watch the margin",
    ),
    "rewards/rejected": Metric(
        "the same of the rejected response", "", "falls faster than the chosen one's"
    ),
    "logps/chosen": Metric("log-probability of the chosen response", "nats"),
    "logps/rejected": Metric(
        "log-probability of the rejected response", "nats", "usually falls"
    ),
    "logps/ref_chosen": Metric(
        "log-probability of the chosen response under the reference",
        "nats",
        "depends on the data of the step alone",
    ),
    "logps/ref_rejected": Metric(
        "log-probability of the rejected response under the reference",
        "nats",
        "depends on the data of the step alone",
    ),
    "displacement/chosen": Metric(
        "log-ratio of policy to reference on the chosen response, mean",
        "nats",
        "below 0 by a few nats is usual; by more than the margin is not",
    ),
    "displacement/chosen_falling": Metric(
        "share of pairs whose chosen response became less likely than at the start",
        "",
        "above 0.5 is usual for DPO; `dpop` and mixtures with `sft` keep it down",
    ),
    "entropy": Metric(
        "of the policy's next token, over all response tokens",
        "nats",
        "changes slowly; a fall to near 0 is collapse",
    ),
    "mean_token_accuracy": Metric(
        "share of response tokens that are the policy's likeliest"
    ),
    "router/aux_loss": Metric(
        "load-balancing loss of the routers of experts, over all layers and tokens",
        "",
        "experts per token where all are even; rises where few experts get most",
    ),
    "router/largest_load": Metric(
        "tokens of the busiest expert of any layer, 1 = all are even",
        "",
        "changes slowly",
    ),
    "mismatched_kl": Metric(
        "mean log-ratio on responses of other prompts: the KL that KTO compares with",
        "nats",
    ),
    "lengths/*": Metric("tokens of a response", "tokens"),
    "scores/margins": Metric(
        "score of the chosen minus that of the rejected response", "", "rises from 0"
    ),
    "scores/accuracies": Metric(
        "share of pairs whose chosen response has the higher score, a tie counts half",
        "",
        "starts at 0.5; in evaluation 0.65 to 0.8 on human labels",
    ),
    "scores/brier": Metric(
        "squared error of the predicted preference", "", "0.25 is a coin's"
    ),
    "scores/calibration_error": Metric(
        "how far predicted preferences are from how often they hold", "", "near 0"
    ),
    "scores/*": Metric("score of the reward model"),
    "reward": Metric("of the turn's samples, mean", "of the reward", "rises"),
    "reward_std": Metric(
        "deviation of rewards among samples of one prompt",
        "of the reward",
        "0 leaves nothing to learn from",
    ),
    "rewards/*/mean": Metric("mean of one of several rewards", "of the reward"),
    "kl": Metric(
        "sequence KL of the policy to the reference, estimated on the samples",
        "nats",
        "rises slowly; the larger, the more the reward is being exploited",
    ),
    "kl_coef": Metric("coefficient of the KL in the reward", "", "settles"),
    "policy_loss": Metric("the term that moves the policy"),
    "value_loss": Metric("the critic's squared error", "", "falls"),
    "ratio": Metric(
        "probability of the samples now against when they were drawn",
        "",
        "1 in a turn's first update, then near 1",
    ),
    "clip_ratio": Metric(
        "share of tokens, or of samples, whose ratio is clipped", "", "below 0.3"
    ),
    "weights": Metric("mean weight that AWR gives a sample"),
    "completions/mean_length": Metric("of the turn's samples", "tokens"),
    "completions/clipped_ratio": Metric(
        "share of samples that did not end within the budget", "", "near 0"
    ),
    "absent_rewards": Metric("samples that the reward gave no verdict on", "", "0"),
    "turn": Metric("rollouts so far"),
    "rollout_seconds": Metric("drawing the samples of a turn", "s"),
    "reward_seconds": Metric("judging them", "s"),
    "update_seconds": Metric("learning from them", "s"),
    "rollouts/reward": Metric(
        "of sampled continuations of evaluation prompts, mean", "of the reward", "rises"
    ),
    "rollouts/kl": Metric(
        "sequence KL of the policy to the reference",
        "nats",
        "compare rewards at equal KL",
    ),
    "rollouts/length": Metric("of sampled continuations", "tokens"),
    "rollouts/best_of_*": Metric(
        "expected reward of the best of that many samples", "of the reward"
    ),
    "rollouts/absent_rewards": Metric("continuations without a verdict", "", "0"),
    "rollouts/rewards/*/mean": Metric("mean of one of several rewards"),
    "rollouts/*_se": Metric("standard error, over prompts"),
    "frontier/excess": Metric(
        "reward above the best that any policy reaches at this KL",
        "of the reward",
        "below 0, and close to it",
    ),
    "frontier/excess_se": Metric("standard error, over prompts", "of the reward"),
    "frontier/reward": Metric("of the frontier at this KL", "of the reward"),
    "frontier/flagged": Metric("1 = above it by 3 standard errors: a mistake", "", "0"),
    "frontier/trusted": Metric(
        "1 = the samples of the reference reach as far as this KL"
    ),
    "grad_norm": Metric(
        "of the gradient, before clipping", "", "steady; spikes ask for a lower lr"
    ),
    "lr": Metric("learning rate"),
    "pairs_per_second": Metric("over the whole mesh", "1/s"),
    "tokens_per_second": Metric("over the whole mesh, without padding", "1/s"),
    "step_seconds": Metric("an update took", "s"),
    "data_wait_seconds": Metric(
        "the devices waited for rows", "s", "a small part of step_seconds"
    ),
    "mfu": Metric(
        "FLOPs that the step needs, as a share of what the devices could do",
        "",
        "0.3 to 0.6 on accelerators",
    ),
    "padding_fraction": Metric(
        "of row positions without a token", "", "below 0.1 when packed"
    ),
    "scored_padding_fraction": Metric(
        "of the places where log-probs are computed, without a token"
    ),
    "*/share": Metric("of the step's pairs, from one source of a mixture"),
}


def find(name: str) -> Metric | None:
    """Finds what a metric means, also of one source of several; None = not known."""
    if name in METRICS:
        return METRICS[name]
    for known, metric in METRICS.items():
        if "*" in known and fnmatch.fnmatchcase(name, known):
            return metric
    _, slash, rest = name.partition("/")
    return find(rest) if slash else None


def captions(name: str) -> tuple[str, str]:
    """Says what a metric means, with its unit, and what is healthy; '' = not known."""
    found = find(name)
    if found is None:
        return "", ""
    unit = f", {found.unit}" if found.unit else ""
    return found.meaning + unit, found.healthy
