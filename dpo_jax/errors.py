"""What a user did or met, and the exit code that says so.

Every error a user can cause is a `UserError`: one line naming the field, the value, the
rule and the way out. Bugs of our own stay `AssertionError`s or whatever they are.
This room knows nothing of jax, of data or of models.
"""

import difflib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

from dpo_jax import trl

MAX_LINE = 1000  # bytes of one printed error line

EXIT_INTERNAL = 70
EXIT_PEER_LOST = 71
EXIT_PREEMPTED = 75
EXIT_LEASE_LOST = 76
EXIT_WATCHDOG = 124
EXIT_INTERRUPTED = 130


class UserError(ValueError):
    """An error that the user can mend; `code` is the exit code."""

    code = EXIT_INTERNAL


class ConfigError(UserError):
    """A configuration key, value or combination is wrong."""

    code = 2


class DataError(UserError):
    """A data file, row or source is wrong."""

    code = 3


class ModelError(UserError):
    """A model folder, tokenizer or checkpoint cannot be used."""

    code = 4


class DeviceError(UserError):
    """Batch, mesh and devices do not fit, or processes disagree."""

    code = 5


class NonFiniteError(UserError):
    """The loss or its gradient is not finite."""

    code = 6


class WriteError(UserError):
    """Something cannot be written."""

    code = 7


class RunFolderError(UserError):
    """The run folder is in use or belongs to another run."""

    code = 8


class SweepError(UserError):
    """Some trials of a sweep failed."""

    code = 9


class LeaseLostError(UserError):
    """Another worker has the trial."""

    code = EXIT_LEASE_LOST


class Preempted(BaseException):  # no error, and not for `except Exception` to swallow
    """A signal stopped the run after its state was committed at `step`."""

    def __init__(self, step: int):
        committed = f"; step {step} committed" if step else " before step 1"
        super().__init__(f"preempted{committed}")
        self.step = step


def one_line(error: BaseException) -> str:
    """Returns `error[CODE]: …` on one line of at most `MAX_LINE` bytes."""
    code = error.code if isinstance(error, UserError) else EXIT_INTERNAL
    text = "".join(map(_printable, " ".join(str(error).split())))
    line = f"error[{code}]: {text}"
    encoded = line.encode()
    if len(encoded) <= MAX_LINE:
        return line
    return encoded[: MAX_LINE - 4].decode(errors="ignore") + " …"


def _printable(character: str) -> str:
    """Escapes what could move a terminal's cursor or change its colours."""
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")


def unknown(field: str, value: object, others: Iterable[str]) -> str:
    """Says that a value is not known, with the nearest and all known ones."""
    names = sorted(str(name) for name in others)
    theirs = trl.VALUES.get(field, {}).get(str(value))
    near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.6)
    near = [theirs] if theirs in names else near
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"{field}={value!r} is not known{hint} Known: {', '.join(names)}"


def known(field: str, value: str, names: Collection[str]) -> str:
    """Returns the value of a field that takes one of these names.

    Raises:
      ConfigError: if it is none of them.
    """
    if value not in names:
        raise ConfigError(unknown(field, value, names))
    return value


@contextmanager
def collected(kind: type[UserError]) -> Iterator[list[str]]:
    """Yields a list for complaints; raises one `kind` of them all at the end.

    Args:
      kind: the class of the error to raise.

    Raises:
      kind: if the list is not empty when the block ends without another error.
    """
    complaints: list[str] = []
    yield complaints
    if complaints:
        raise kind(" · ".join(complaints))
