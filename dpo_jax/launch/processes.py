"""Processes of trials: started so that they end with their worker, told to stop."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import dpo_jax
from dpo_jax.train.handlers import handled

PR_SET_PDEATHSIG = 1


def start(
    arguments: Sequence[str], log: Path | None, environment: Mapping[str, str]
) -> subprocess.Popen:
    """Starts `python -m dpo_jax …`, with this package, and as `spawn` does.

    Args:
      arguments: from the verb on.
      log: where it prints; None = where this process does.
      environment: its variables.
    """
    home = os.fspath(Path(dpo_jax.__file__).parent.parent)
    paths = [home, *filter(None, [environment.get("PYTHONPATH")])]
    return spawn(
        [*interpreter(), *command(arguments)[1:]],
        log,
        {**environment, "PYTHONPATH": os.pathsep.join(paths)},
    )


def spawn(
    line: Sequence[str], log: Path | None, environment: Mapping[str, str]
) -> subprocess.Popen:
    """Starts a process that ends with this one.

    It is the first of a group of its own, so that a terminal's Ctrl-C comes to the
    worker alone, which passes it on; on Linux it is killed when its worker dies.

    Args:
      line: program and arguments.
      log: where it prints; None = where this process does.
      environment: its variables.
    """
    with contextlib.ExitStack() as stack:
        printed = None if log is None else stack.enter_context(open(log, "ab"))
        return subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=printed,
            env=environment,
            process_group=0,
            preexec_fn=_bound(),
        )


def command(arguments: Sequence[str]) -> list[str]:
    """Writes the command line of a trial."""
    return ["python", "-m", "dpo_jax", *arguments]


def interpreter() -> list[str]:
    """Names the Python of this process, which reads the working folder as it does."""
    return [sys.executable, *([] if os.getcwd() in sys.path else ["-P"])]


def _bound() -> Callable[[], None] | None:
    """Makes what binds a child to the life of this process, on Linux."""
    if sys.platform != "linux":
        return None
    parent, prctl = os.getpid(), ctypes.CDLL(None).prctl

    def bind() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before its child could be bound
            os._exit(128 + signal.SIGKILL)

    return bind


def mark(pid: int) -> str:
    """Names a process, so that no other and no later one has the same name.

    '' where there is none, or the system does not tell when a process began.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        dead = stat[0] == "Z"  # and its parent has yet to hear of it
        return "" if dead else f"{place()} {pid} {stat[19]}"  # 19: when it began
    except OSError:
        return ""


def place() -> str:
    """Names this host, since its boot, and the processes that can be seen from here."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    seen = os.readlink("/proc/self/ns/pid")
    return f"{socket.gethostname()} {boot} {seen}"


def is_gone(name: str) -> bool:
    """Tells that a named process of this host has ended; False where nobody can say."""
    here = mark(os.getpid())
    if not name or not here or here.rsplit(" ", 2)[0] != name.rsplit(" ", 2)[0]:
        return False
    return mark(int(name.split()[-2])) != name


def end_marked(name: str) -> bool:
    """Kills the group of a named process; False if it does not live on this host.

    A process that was stopped (SIGSTOP) together with its worker holds the lock of its
    run for ever, and would write when it goes on: it has lost its lease.
    """
    if not name or mark(pid := int(name.split()[-2])) != name:
        return False
    os.killpg(pid, signal.SIGKILL)
    return True


class Stop:
    """Whether this process is told to stop; passes that on to those it started."""

    def __init__(self):
        self.asked = False
        self._told: tuple[subprocess.Popen, ...] = ()

    def __bool__(self) -> bool:
        return self.asked

    def take(self, number: int, frame: object) -> None:
        """Handles a signal: the trial commits its state; a second one kills it."""
        again, self.asked = self.asked, True
        for process in self._told:
            process.send_signal(signal.SIGKILL if again else signal.SIGTERM)

    @contextlib.contextmanager
    def passed_on(self, *processes: subprocess.Popen) -> Iterator[None]:
        """Passes signals on to processes, one that has come already among them."""
        self._told = processes
        for process in processes if self.asked else ():
            process.send_signal(signal.SIGTERM)
        try:
            yield
        finally:
            self._told = ()


@contextlib.contextmanager
def stopping() -> Iterator[Stop]:
    """Yields what SIGTERM and SIGINT are told to; gives the handlers back."""
    stop = Stop()
    with handled((signal.SIGTERM, signal.SIGINT), stop.take):
        yield stop
