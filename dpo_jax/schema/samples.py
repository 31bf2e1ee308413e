"""Keys of on-policy runs: rewards, rollouts and the algorithms."""

from dpo_jax.schema.key import (
    COUNT,
    FLOATS,
    NOT_NEGATIVE,
    POSITIVE,
    SAMPLED,
    SHARE,
    Key,
)

SAMPLES: dict[str, Key] = {
    "reward.name": Key(
        "",
        "who judges samples: a row of rewards/, or several: 'length+model'; '' = "
        "'model' where reward.path is given",
    ),
    "reward.path": Key(
        "",
        "the reward model, a row 'model' of rewards/: an export of objective=reward, "
        "or an HF …ForSequenceClassification of one label",
    ),
    "reward.dtype": Key(
        "", "of its weights and computation; '' = model.dtype", choices=("", *FLOATS)
    ),
    "reward.standardize": Key(
        0,
        "> 0: the reward model's scores move to mean 0 and deviation 1 on so many "
        "samples of the reference after prompts of data.train, arXiv:1909.08593 §2.1; "
        "on-policy runs; kept in standard.json",
        SAMPLED,
    ),
    "reward.weights": Key(
        (), "of a sum of rewards, one number each; () = 1.0", items=float
    ),
    "reward.timeout_seconds": Key(
        600.0, "for all rewards together, each time they are asked", POSITIVE
    ),
    "value.path": Key(
        "",
        "ppo: the critic starts as this reward model, or as this language model with "
        "a head that says 0; '' = such a head on the policy's own trunk",
    ),
    "rollout.prompts": Key(64, "of a turn, over the whole mesh", COUNT),
    "rollout.samples": Key(4, "of each prompt", COUNT),
    "rollout.max_new_tokens": Key(64, "of a sample; longer ones are cut", COUNT),
    "rollout.temperature": Key(
        1.0,
        "that samples are drawn and scored at, those of evaluation likewise; > 0",
        POSITIVE,
    ),
    "rollout.batch": Key(
        128, "samples of a data shard that are drawn together, at most", COUNT
    ),
    "rollout.cache_dtype": Key(
        "",
        "of the keys and values kept while sampling, 'bfloat16' halves them; '' = "
        "model.dtype. What is trained on is scored again",
        choices=("", *FLOATS),
    ),
    "ppo.epochs": Key(4, "passes over a rollout (TRL)", COUNT),
    "ppo.minibatches": Key(1, "updates of a pass (TRL)", COUNT),
    "ppo.kl_coef": Key(
        0.05,
        "of the KL in the tokens' rewards (TRL); its start, if it adapts",
        NOT_NEGATIVE,
    ),
    "ppo.kl_estimator": Key(
        "k1",
        "or 'k3' (TRL), biased: detached, its gradient is not that of the KL",
        choices=("k1", "k3"),
    ),
    "ppo.kl_target": Key(
        0.0,
        "> 0: nats a sample that kl_coef adapts to, arXiv:1909.08593 §2.2; 0 = fixed",
        NOT_NEGATIVE,
    ),
    "ppo.kl_horizon": Key(10_000.0, "samples over which kl_coef adapts", POSITIVE),
    "ppo.clip": Key(0.2, "ε of the ratio, arXiv:1707.06347 eq. 7", POSITIVE),
    "ppo.value_clip": Key(0.2, "how far a value moves in a turn (TRL)", POSITIVE),
    "ppo.value_coef": Key(0.1, "of the critic's loss (TRL)", NOT_NEGATIVE),
    "ppo.gamma": Key(1.0, "discount", SHARE),
    "ppo.lam": Key(0.95, "λ of GAE, arXiv:1506.02438", SHARE),
    "ppo.missing_eos_penalty": Key(
        0.0, "off the score of a sample that was cut (TRL)", NOT_NEGATIVE
    ),
    "ppo.whiten_scores": Key(False, "scores of a rollout to mean 0, deviation 1"),
    "ppo.whiten_rewards": Key(False, "tokens' rewards to deviation 1 (TRL)"),
    "ppo.whiten_advantages": Key(True, "to mean 0, deviation 1 over the rollout (TRL)"),
    "rloo.epochs": Key(1, "passes over a rollout", COUNT),
    "rloo.minibatches": Key(1, "updates of a pass", COUNT),
    "rloo.kl_coef": Key(0.05, "of the KL in a sample's reward (TRL)", NOT_NEGATIVE),
    "rloo.clip": Key(0.2, "ε of the ratio (TRL)", POSITIVE),
    "rloo.ratio": Key(
        "sequence",
        "weighs whole samples, a mean over them; or 'token', a mean over tokens",
        choices=("sequence", "token"),
    ),
    "rloo.normalize": Key(
        "none",
        "or 'std': by the prompt's deviation, not leaving one out, as GRPO does "
        "(arXiv:2402.03300)",
        choices=("none", "std"),
    ),
    "rloo.missing_eos_penalty": Key(
        0.0, "off the score of a sample that was cut", NOT_NEGATIVE
    ),
    "awr.epochs": Key(1, "passes over a rollout", COUNT),
    "awr.minibatches": Key(1, "updates of a pass", COUNT),
    "awr.beta": Key(1.0, "temperature of exp(A/β), arXiv:1910.00177", POSITIVE),
    "awr.weight_clip": Key(20.0, "the largest weight", POSITIVE),
    "awr.baseline": Key(
        "prompt", "mean of a prompt's samples; or 'none'", choices=("prompt", "none")
    ),
    "awr.sampler": Key(
        "policy",
        "or 'ref': who draws; samples of the reference lead to the optimum of reward "
        "and KL",
        choices=("policy", "ref"),
    ),
    "awr.missing_eos_penalty": Key(
        0.0, "off the score of a sample that was cut", NOT_NEGATIVE
    ),
    "online.rank": Key(
        "best_worst",
        "which samples of a prompt are compared; or 'all_pairs', 'random'",
        choices=("best_worst", "all_pairs", "random"),
    ),
    "online.labels": Key(
        "order",
        "of rewards; or 'bradley_terry': drawn with probability σ(difference); or "
        "'soft': the loss of both orders, weighed by it",
        choices=("order", "bradley_terry", "soft"),
    ),
    "online.ref": Key(
        "fixed",
        "or 'each_round': the policy at the start of each turn; 'following': see "
        "ref.sync_every_steps",
        choices=("fixed", "each_round", "following"),
    ),
    "online.epochs": Key(1, "passes over a rollout", COUNT),
}
