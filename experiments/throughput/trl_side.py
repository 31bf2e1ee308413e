"""Trains with TRL and says what it took, as JSON on the last line.

Run by `run.py`, in a process of its own so that peak memory is that of the training.
The reference's log-probs are computed beforehand, as TRL recommends where memory or
time counts; that pass is not among the steps' seconds.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import datasets
import torch
import transformers
import trl

from experiments.throughput import inputs


class Stopwatch(transformers.TrainerCallback):
    """Keeps the seconds of each optimizer step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._begun = 0.0

    def on_step_begin(self, *_: object, **__: object) -> None:
        """Starts."""
        self._begun = time.perf_counter()

    def on_step_end(self, *_: object, **__: object) -> None:
        """Stops."""
        self.seconds.append(time.perf_counter() - self._begun)


def options(args: argparse.Namespace) -> trl.DPOConfig:
    """Configures TRL: nothing cut, read in order, on a GPU if there is one."""
    return trl.DPOConfig(
        output_dir=str(args.folder / "trl"),
        max_steps=args.steps,
        per_device_train_batch_size=args.batch,
        gradient_accumulation_steps=args.pairs // args.batch,
        precompute_ref_log_probs=args.reference == "cached",
        precompute_ref_batch_size=args.batch,
        train_sampling_strategy="sequential",
        beta=inputs.BETA,
        learning_rate=inputs.LR,
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=inputs.CLIP,
        max_length=None,
        gradient_checkpointing=False,
        disable_dropout=True,
        bf16=args.dtype == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
    )


def main(argv: list[str] | None = None) -> None:
    """Trains for a few steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--pairs", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True, help="pairs at a time")
    parser.add_argument("--dtype", default="float32", help="of the computation")
    parser.add_argument("--reference", choices=("live", "cached"), required=True)
    args = parser.parse_args(argv)
    folder = str(args.folder / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32
    )
    rows = datasets.Dataset.from_json(str(args.folder / "pairs.jsonl"))
    watch = Stopwatch()
    trainer = trl.DPOTrainer(
        model=model,
        args=options(args),
        train_dataset=rows,
        processing_class=transformers.AutoTokenizer.from_pretrained(folder),
        callbacks=[watch],
    )
    trainer.train()
    found = {
        "losses": [
            line["loss"] for line in trainer.state.log_history if "loss" in line
        ],
        "seconds": watch.seconds,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
