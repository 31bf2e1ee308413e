"""What may differ between two runs that are equal."""

TIMING_KEYS = {
    "tokens_per_second",
    "pairs_per_second",
    "step_seconds",
    "data_wait_seconds",
    "mfu",
    "rollout_seconds",
    "reward_seconds",
    "update_seconds",
}
