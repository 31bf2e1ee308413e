"""The verbs. Only this room reads flags and the environment, prints, and sets jax.

`main` is the top of every process: it maps errors to one line and an exit code.
"""

import contextlib
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence

from dpo_jax import __version__, gcs
from dpo_jax.cli import blame, parent
from dpo_jax.cli.peers import place_of
from dpo_jax.errors import (
    EXIT_INTERNAL,
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    MAX_LINE,
    ConfigError,
    Preempted,
    UserError,
    one_line,
    unknown,
)
from dpo_jax.train.handlers import handled

VERBS = {
    "train": "train a policy, or go on training it, in a run folder",
    "plan": "compile a run's step for a topology, before it is booked: bytes, bounds",
    "show": "show a row as the model sees it: ids, text, mask, boundary, truncation",
    "sample": "continue prompts with one or several policies, side by side",
    "evaluate": "evaluate the newest checkpoint of a run",
    "winrate": "compare samples with other answers by judges: win rates, best-of-N",
    "bench": "score IFEval or RewardBench 2; write AlpacaEval's and Arena-Hard's files",
    "export": "write a run's policy as a Hugging Face folder",
    "sweep": "run the trials of a sweep file, each in a run folder of its own",
    "report": "write report.html of one or more runs, or of the losses",
}
EXAMPLES = {
    "train": "--config=dpo --config.model.path=MODEL --config.data.train=PAIRS.jsonl "
    "--workdir=runs/dpo",
    "plan": "--config=dpo --config.model.path=MODEL --topology=v4:2x2x4",
    "show": "--workdir=runs/dpo --index=3 --explain",
    "sample": "--workdir=runs/dpo --prompts=PROMPTS.jsonl --n=4 --out=samples.jsonl",
    "evaluate": "--workdir=runs/dpo --config.data.eval=HELD_OUT.jsonl",
    "winrate": "--samples=samples.jsonl --against=chosen --judge=model "
    "--config=runs.py --config.reward.path=REWARD_MODEL --out=winrate",
    "bench": "--name=ifeval --data=input_data.jsonl --samples=samples.jsonl "
    "--out=ifeval",
    "export": "--workdir=runs/dpo --out=policy --dtype=bfloat16",
    "sweep": "experiments/NAME/sweep.py --out=runs/NAME --dry_run",
    "report": "runs/dpo runs/simpo --out=report.html",
}
HELP = {"--help", "-h", "-help", "--helpfull"}


def usage() -> str:
    """Lists the verbs."""
    verbs = "\n".join(f"  {verb:<10}{what}" for verb, what in VERBS.items())
    more = "`dpo-jax VERB --help` lists flags and keys; `--version` tells the version."
    return f"usage: dpo-jax VERB [flags]\n\n{verbs}\n\n{more}\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb.

    Args:
      argv: program name, verb and flags; None = those of the process.

    Returns:
      The exit code of FAULTS: 0, or what went wrong.
    """
    arguments = list(sys.argv if argv is None else argv)
    if len(arguments) < 2 or arguments[1] in ("-h", "--help", "help"):
        sys.stdout.write(usage())
        return 0 if len(arguments) > 1 else ConfigError.code
    verb, rest = arguments[1], arguments[2:]
    if verb in ("--version", "version"):
        sys.stdout.write(f"dpo_jax {__version__}\n")
        return 0
    if verb in VERBS and HELP.intersection(rest):
        sys.stdout.write(f"{verb}: {VERBS[verb]}\n\n")
        sys.stdout.write(f"  dpo-jax {verb} {EXAMPLES[verb]}\n\n")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # of no PyTorch
    try:
        if verb not in VERBS:
            raise ConfigError(unknown("verb", verb, VERBS))
        if holding := [word[:80] for word in rest if "\0" in word]:
            raise ConfigError(f"{holding[0]!r} holds a NUL character")
        # what another process made must be seen: gcsfs keeps listings for ever
        os.environ.setdefault("FSSPEC_GCS", '{"use_listings_cache": false}')
        gcs.use(os.environ.get("STORAGE_EMULATOR_HOST", ""))
        named = os.environ.get("DPO_JAX_DISTRIBUTED", "")
        place = place_of(named)
        many = named == "auto" or (place is not None and place.count > 1)
        if many and verb != "sweep":  # which runs on one host, and starts processes
            code = parent.split()
            if code is not None:
                return code
        with preempted_early(verb):
            return importlib.import_module(f"dpo_jax.cli.{verb}").main(rest)
    except Preempted as event:
        sys.stderr.write(f"{event}; relaunch to go on\n")
        return EXIT_PREEMPTED
    except SystemExit as event:  # --help
        return int(event.code or 0)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:  # the top of the process
        return report_error(error, rest, keep=verb == "train")
    except BaseException as error:  # a library's that is written in Rust, and panics
        if (told := blame.of_panic(error)) is None:
            raise
        told.__cause__ = error
        return report_error(told, rest, keep=verb == "train")


@contextlib.contextmanager
def preempted_early(verb: str) -> Iterator[None]:
    """Makes SIGTERM end `train` as preempted until the run itself takes signals.

    Not where a parent watches over this process: it knows more, and jax takes SIGTERM.
    """
    if verb != "train" or parent.link() is not None:
        yield
        return

    def leave(number: int, frame: object) -> None:
        os.write(2, f"{Preempted(0)}; relaunch to go on\n".encode())
        os._exit(EXIT_PREEMPTED)

    with handled((signal.SIGTERM,), leave):
        yield


def report_error(
    error: Exception, arguments: Sequence[str], *, keep: bool = True
) -> int:
    """Prints one line, keeps the traceback in the run folder, returns the code.

    With several processes it does not return: who went on would meet the others in a
    collective, where they wait for something else. A verb that only reads a run folder
    leaves nothing in it.
    """
    if not isinstance(error, UserError) and (told := blame.of_machine(error)):
        told.__cause__, error = error, told
    link = parent.link()
    kept = _keep(error, value_of(arguments, "--workdir")) if keep else None
    if link is not None and not isinstance(error, UserError):
        time.sleep(parent.LINGER)  # a lost peer is no error of this process
    if "--debug" in arguments:
        traceback.print_exception(error)
    line = one_line(error)
    if not isinstance(error, UserError):
        where = f" (traceback: {kept})" if kept else "; --debug shows the traceback"
        whole = one_line(RuntimeError(f"{type(error).__name__}: {error}")).encode()
        room = MAX_LINE - len(where.encode())
        line = whole[:room].decode(errors="ignore") + where
    sys.stderr.write(line + "\n")
    code = error.code if isinstance(error, UserError) else EXIT_INTERNAL
    if link is not None:
        link.leave(code, line)
    return code


def _keep(error: Exception, workdir: str) -> str | None:
    """Writes the traceback into the run folder; returns its path, or None."""
    link = parent.link()
    if not workdir:
        return None
    try:
        from dpo_jax.train import runfolder

        rank = None if link is None else link.rank
        return runfolder.write_error(workdir, error, rank)
    except Exception:  # nothing may fail here: the error itself is to be told
        return None


def value_of(arguments: Sequence[str], flag: str) -> str:
    """Returns the value of a flag, before flags are parsed; '' = it is not given."""
    for at, argument in enumerate(arguments):
        if argument.startswith(flag + "="):
            return argument.partition("=")[2]
        if argument == flag and at + 1 < len(arguments):
            return arguments[at + 1]
    return ""
