"""Four trials for real engines, small; one waits for another. The argument: steps."""

from dpo_jax.launch import Trial

SMALL = {
    "batch.pairs": 8,
    "data.limit": 64,
    "data.max_tokens": 24,
    "data.eval": "",
    "eval.rollouts": 0,
    "checkpoint.every_steps": 20,
}


def get_sweep(arg="40"):
    start = {"model.preset": "", "model.path": "{sft}", "train.steps": 10}
    sft = f"quickstart:stage=sft,steps={arg}"
    return [
        Trial("sft", sft, SMALL),
        Trial("dpo", "quickstart", {**SMALL, **start}),
        Trial("seed1", sft, {**SMALL, "seed": 1, "train.steps": 10}),
        Trial("seed2", sft, {**SMALL, "seed": 2, "train.steps": 10}),
    ]
