"""Tokens per second of generation against transformers, and the time of a rollout.

    python -m experiments.throughput.generation --model=FOLDER --out=DIR

`FOLDER` is a Llama of Hugging Face, as `python -m experiments.smollm2 --out=…` makes
one; torch has to be installed. Both continue the same prompts in one process, in turns,
and the best turn of each counts, so that other work on the machine hits both alike.
Prefill is in the time: transformers reads a prompt once for each of its samples.
`--batches= --rollout=0` leave parts out. Have nothing else run.
"""

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dpo_jax import markdown
from dpo_jax.cli import common
from dpo_jax.config import Config
from dpo_jax.configs import ppo
from dpo_jax.sampling import batches, pick
from dpo_jax.sampling.batches import Sampler
from dpo_jax.sharding.mesh import make_mesh
from dpo_jax.types import Params
from dpo_jax.wiring import generation, weights
from dpo_jax.wiring import model as model_wiring
from dpo_jax.wiring.model import Model

HOW: dict[str, dict[str, Any]] = {  # name -> options of both samplers
    "greedy": {"temperature": 0.0},
    "top-p .9": {"temperature": 1.0, "top_p": 0.9},
    "plain": {"temperature": 1.0},
}
SPREAD = (0.25, 1.0)  # lengths of a rollout's prompts, as shares of the longest


class Row(NamedTuple):
    """A line of the table.

    Attributes:
      prompts: that run together.
      samples: of each.
      how: tokens are picked, a name of `HOW`.
      ours: tokens per second, prefill included.
      theirs: of transformers; NaN without.
    """

    prompts: int
    samples: int
    how: str
    ours: float
    theirs: float


class Ours:
    """This project's generation of one model."""

    def __init__(self, model: Model, params: Params, new: int):
        """Compiles nothing yet.

        Args:
          model: to generate with.
          params: of it.
          new: tokens of a sample; none ends before.
        """
        self._model, self._params, self._new = model, params, new
        self._samplers: dict[str, Sampler] = {}

    def sampler(self, how: str, dtype: str = "") -> Sampler:
        """Returns the sampler of a way to pick, made once."""
        name = f"{how} {dtype}"
        if name not in self._samplers:
            self._samplers[name] = batches.make_sampler(
                generation.make_decoding(self._model.decoder, dtype),
                pick=pick.sampler(**HOW[how]),
                stops=(),
                max_new_tokens=self._new,
                mesh=make_mesh(1, 1, 1),
            )
        return self._samplers[name]

    def __call__(
        self,
        prompts: Sequence[np.ndarray],
        samples: int,
        how: str,
        *,
        batch: int,
        dtype: str = "",
    ) -> int:
        """Continues prompts; returns the tokens."""
        found, built = 0, self.sampler(how, dtype)
        for part, _, drawn in batches.rollouts(
            self._params,
            prompts,
            jax.random.key(0),
            sampler=built,
            n=samples,
            batch=batch,
        ):
            mask = built.read(drawn).mask
            found += int(mask[: len(part.ids)].sum())
        return found


def theirs(model: Any, new: int) -> Callable[..., int]:
    """Makes transformers' `generate` of a model do the same."""
    import torch

    def run(prompts: np.ndarray, samples: int, how: str) -> int:
        ids = torch.from_numpy(prompts).long()
        given = {**HOW[how]}
        given["do_sample"] = given["temperature"] > 0
        if not given["do_sample"]:
            del given["temperature"]
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                num_return_sequences=samples,
                top_k=0 if given["do_sample"] else None,
                pad_token_id=0,
                **given,
            )
        return out[:, ids.shape[1] :].numel()

    return run


def best_of(turns: int, *runs: Callable[[], int]) -> list[float]:
    """Lets functions take turns; returns the best tokens per second of each."""
    found = [0.0] * len(runs)
    for run in runs:
        run()  # compiled, warm
    for _ in range(turns):
        for i, run in enumerate(runs):
            begun = time.perf_counter()
            tokens = run()
            found[i] = max(found[i], tokens / (time.perf_counter() - begun))
    return found


def measure(
    ours: Ours, other: Callable | None, vocab: int, args: argparse.Namespace
) -> list[Row]:
    """Times each batch, each number of samples, and each way to pick."""
    rows, rng = [], np.random.default_rng(0)
    sizes = [tuple(map(int, one.split("x"))) for one in args.batches.split(",") if one]
    for prompts, samples in sizes:
        tokens = rng.integers(3, vocab, (prompts, args.prompt), np.int32)
        for how in HOW:
            if how == "greedy" and samples > 1:
                continue  # which are all the same
            count = prompts * samples
            mine = lambda t=tokens, n=samples, h=how, b=count: ours(t, n, h, batch=b)  # noqa: E731
            runs = [mine]
            if other is not None:
                runs.append(lambda t=tokens, n=samples, h=how: other(t, n, h))
            speeds = [*best_of(args.turns, *runs), float("nan")]
            rows.append(Row(prompts, samples, how, *speeds[:2]))
            sys.stdout.write(f"{line(rows[-1])}\n")
            sys.stdout.flush()
    return rows


def roll_out(ours: Ours, vocab: int, args: argparse.Namespace) -> dict[str, float]:
    """Times a rollout of prompts of many lengths, with each dtype of the cache."""
    rng = np.random.default_rng(1)
    low, high = (round(share * args.prompt) for share in SPREAD)
    lengths = rng.integers(max(low, 1), high + 1, args.rollout)
    prompts = [rng.integers(3, vocab, size, np.int32) for size in lengths]
    found = {}
    for dtype in ("", "bfloat16"):
        run = lambda d=dtype: ours(  # noqa: E731
            prompts, args.samples, "plain", batch=args.rows, dtype=d
        )
        run()
        begun = time.perf_counter()
        tokens = run()
        seconds = time.perf_counter() - begun
        found[dtype or "model.dtype"] = seconds
        sys.stdout.write(
            f"rollout of {args.rollout} × {args.samples} × {args.new}, cache "
            f"{dtype or 'as the model'}: {seconds:.1f} s, {tokens / seconds:.0f} "
            "tokens/s\n"
        )
        sys.stdout.flush()
    return found


def line(row: Row) -> list[str]:
    """Writes a line of the table."""
    speeds = f"{row.ours:.1f}", f"{row.theirs:.1f}", f"{row.ours / row.theirs:.2f}"
    return [str(row.prompts), str(row.samples), row.how, *speeds]


def table(rows: Sequence[Row]) -> str:
    """Writes the table."""
    head = "prompts", "samples", "picked", "tokens/s", "transformers", "×"
    return markdown.table(head, map(line, rows))


def config(args: argparse.Namespace) -> Config:
    """Configures the model as a run would have it."""
    chosen = ppo.get_config()
    with chosen.unlocked():
        chosen.model.path, chosen.model.dtype = str(args.model), args.dtype
    return chosen


def main(argv: list[str] | None = None) -> None:
    """Measures, writes results.json and table.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a folder of a Llama")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batches", default="1x1,8x1,32x1,8x4,32x4", help="N x n, …")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=32, help="tokens of a sample")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--dtype", default="float32", help="of our computation")
    parser.add_argument("--rollout", type=int, default=512, help="prompts; 0 = none")
    parser.add_argument("--samples", type=int, default=4, help="of a rollout's prompt")
    parser.add_argument("--rows", type=int, default=128, help="rollout.batch")
    parser.add_argument("--alone", action="store_true", help="leave transformers out")
    args = parser.parse_args(argv)
    chosen = config(args)
    common.setup_jax(chosen, debug=False)
    args.out.mkdir(parents=True, exist_ok=True)
    mesh = make_mesh(1, 1, 1)
    with jax.set_mesh(mesh):
        folder, spec = model_wiring.find_folder(str(args.model), "", is_scalar=False)
        longest = chosen.data.max_tokens
        model = model_wiring.make_model(chosen.model, folder, spec, longest)
        params = weights.load_params(model, mesh, seed=0)
        ours, other = Ours(model, params, args.new), None
        if not args.alone:
            import transformers

            loaded = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
            loaded.generation_config.eos_token_id = None
            other = theirs(loaded, args.new)
        rows = measure(ours, other, spec.vocab, args)
        seconds = roll_out(ours, spec.vocab, args) if args.rollout else {}
    load = os.getloadavg()[0]
    kept = {"rows": [row._asdict() for row in rows], "rollout_seconds": seconds}
    text = json.dumps(kept | {"load": load}, indent=1)
    (args.out / "results.json").write_text(text)
    (args.out / "table.md").write_text(table(rows))
    sys.stdout.write(f"\n{table(rows)}\nload {load:.1f}\n")


if __name__ == "__main__":
    main()
