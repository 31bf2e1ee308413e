"""What a mutated input is: files, the verb that reads them, and what may come of it."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
TIMES = ("seconds", "per_second", "mfu", "memory", "peak", "wait")  # in names of values

WRITTEN = (  # values as a command line has them
    *("0", "-1", "1", "2", "3", "1e9", "1e23", "1e400", "-1e400", "nan", "inf", "-inf"),
    *("1000000000", str(10**12), str(10**23), "9" * 5000, "0x10", "1_0", "True"),
    *("", " ", "()", "(1,)", "('a','b')", "((1,),(2,))", "[]", "{}", "None", "a,b"),
    *("x" * 300, "y" * 10_000, "../../x", "/dev/zero", "\0", "a\nb", "\u202e", "é"),
    *("(" * 200, "[" * 5000, "-" * 3000 + "1", "1+1j", "b'x'", "1e-400", "~", "/"),
)


class Case(NamedTuple):
    """A verb on a mutated input.

    Attributes:
      argv: verb and flags; `{case}` stands for the folder of the case.
      what: the mutation in words.
      codes: exit codes that blame the right thing.
      must: `any`: may run or be refused; `same`: must do as the unmutated input does;
        `refuse`: must be refused.
      like: name of the unmutated case that `same` is held against.
    """

    argv: Sequence[str]
    what: str
    codes: Sequence[int]
    must: str = "any"
    like: str = ""


class Base(NamedTuple):
    """The unmutated inputs, all below one folder."""

    folder: Path

    @property
    def pairs(self) -> Path:
        """Rows of strings."""
        return self.folder / "pairs.jsonl"

    @property
    def chats(self) -> Path:
        """Rows of chats."""
        return self.folder / "chats.jsonl"

    @property
    def model(self) -> Path:
        """A llama with its tokenizer."""
        return self.folder / "models" / "llama"

    @property
    def run(self) -> Path:
        """A finished run of two checkpoints."""
        return self.folder / "run"


def flags(values: dict[str, object]) -> list[str]:
    """Writes overrides."""
    return [f"--config.{key}={value}" for key, value in values.items()]


def training(base: Base, **changed: object) -> list[str]:
    """Returns a `train` of one step; `data__train=…` changes `data.train`."""
    values: dict[str, object] = {
        "objective": "sft",
        "loss.name": "sft",
        "ref.mode": "none",
        "model.path": base.model,
        "data.train": base.pairs,
        "data.max_tokens": 48,
        "data.max_prompt_tokens": 24,
        "data.layout": "padded",
        "data.row_tokens": 0,
        "batch.pairs": 2,
        "batch.microbatches": 1,
        "train.steps": 1,
        "train.watchdog_seconds": 0,
        "optimizer.warmup_steps": 0,
        "checkpoint.every_steps": 0,
    }
    values |= {key.replace("__", "."): value for key, value in changed.items()}
    return ["train", "--config=dpo", "--workdir={case}/run", *flags(values)]


def showing(base: Base, index: int = 0, **changed: object) -> list[str]:
    """Returns a `show` of a row."""
    values: dict[str, object] = {
        "model.path": base.model,
        "data.train": base.pairs,
        "data.max_tokens": 48,
        "data.max_prompt_tokens": 24,
    }
    values |= {key.replace("__", "."): value for key, value in changed.items()}
    return ["show", "--config=dpo", f"--index={index}", *flags(values)]


def outcome(case: Case, folder: Path) -> str:
    """Returns what must be equal where a mutation changes nothing.

    Args:
      case: that ended with 0.
      folder: of it.
    """
    verb = case.argv[0]
    if verb == "train":
        written = folder / "run" / "metrics.jsonl"
        lines = written.read_bytes().splitlines() if written.exists() else []
        return "\n".join(map(_untimed, lines))
    if verb == "export":
        files = sorted(folder.glob("out/*.safetensors"))
        return "".join(str(hash(file.read_bytes())) for file in files)
    if verb == "report":
        return ""
    text = (folder / "stdout").read_text(errors="replace")
    return text.replace(os.fspath(folder), "{case}")


def _untimed(line: bytes) -> str:
    """Writes a line of metrics without its timings; as it is, if it is none."""
    try:
        values = json.loads(line).items()
    except (ValueError, AttributeError):
        return repr(line)
    return json.dumps({k: v for k, v in values if not any(w in k for w in TIMES)})
