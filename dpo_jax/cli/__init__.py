"""The verbs. Only this room reads flags and the environment, prints, and sets jax.

`main` is the top of every process: it maps errors to one line and an exit code.
"""

import importlib
import os
import sys
from collections.abc import Sequence

from dpo_jax.errors import (
    EXIT_INTERNAL,
    EXIT_PREEMPTED,
    MAX_LINE,
    ConfigError,
    Preempted,
    UserError,
    one_line,
    unknown,
)

VERBS = {
    "train": "train a policy, or go on training it, in a run folder",
    "show": "show a row as the model sees it: ids, text, mask, boundary, truncation",
    "sample": "continue prompts with one or several policies, side by side",
    "evaluate": "evaluate the newest checkpoint of a run",
    "export": "write a run's policy as a Hugging Face folder",
    "report": "write report.html of one or more runs",
}


def usage() -> str:
    """Lists the verbs."""
    verbs = "\n".join(f"  {verb:<10}{what}" for verb, what in VERBS.items())
    return f"usage: python -m dpo_jax VERB [flags]\n\n{verbs}\n"


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
    sys.path.insert(0, os.getcwd())  # where `configs` lies
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # of no PyTorch
    try:
        if verb not in VERBS:
            raise ConfigError(unknown("verb", verb, VERBS))
        return importlib.import_module(f"dpo_jax.cli.{verb}").main(rest)
    except Preempted as event:
        sys.stderr.write(f"{event}; relaunch to go on\n")
        return EXIT_PREEMPTED
    except SystemExit as event:  # --help
        return int(event.code or 0)
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # the top of the process
        return report_error(error, rest)


def report_error(error: Exception, arguments: Sequence[str]) -> int:
    """Prints one line, keeps the traceback in the run folder, returns the code."""
    workdir = _value(arguments, "--workdir")
    kept = None
    if workdir:
        from dpo_jax.train import runfolder

        kept = runfolder.write_error(workdir, error)
    if "--debug" in arguments:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, UserError):
        sys.stderr.write(one_line(error) + "\n")
        return error.code
    where = f" (traceback: {kept})" if kept else "; --debug shows the traceback"
    line = one_line(RuntimeError(f"{type(error).__name__}: {error}")).encode()
    room = MAX_LINE - len(where.encode())
    sys.stderr.write(line[:room].decode(errors="ignore") + where + "\n")
    return EXIT_INTERNAL


def _value(arguments: Sequence[str], flag: str) -> str:
    for at, argument in enumerate(arguments):
        if argument.startswith(flag + "="):
            return argument.partition("=")[2]
        if argument == flag and at + 1 < len(arguments):
            return arguments[at + 1]
    return ""
