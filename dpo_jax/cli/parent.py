"""The parent of each process of a multi-process run; a process alone has none.

The process that was launched forks: the child runs the verb, the parent watches it. The
parents of all ranks are connected (see `peers.py`), so every rank hears at once how
another ended, and ends its child, which may wait for that rank in a collective. Jax's
aborts become exit codes, signals are passed on, and a child that gives no beat is
killed. Nothing here imports jax.
"""

import ctypes
import math
import os
import selectors
import signal
import socket
import sys
import threading
import time
from typing import NamedTuple, NoReturn

from dpo_jax.cli.peers import Lines, Peers, Place, free_port, ranks
from dpo_jax.errors import (
    EXIT_INTERRUPTED,
    EXIT_PEER_LOST,
    EXIT_PREEMPTED,
    EXIT_WATCHDOG,
    MAX_LINE,
    DeviceError,
    RunFolderError,
)

TICK = 0.1  # seconds between looks at the clock
SETTLE = 3.0  # for a child to name itself the fault of a user that its peer named
ABORTED = 2.0  # for news of a peer to arrive, after jax aborted the child
LINGER = 5.0  # for a peer's own error to arrive, before the child tells of its own
GRACE = 15.0  # beyond train.watchdog_seconds, so that the child's own stacks come first
PR_SET_PDEATHSIG = 1
GO_ON = "relaunch to go on"
TOO_EARLY = "preempted before step 1 of this launch"

_links: list["Link"] = []  # of this process to its parent, if it has one


def link() -> "Link | None":
    """Returns this process's connection to its parent; None if it has no parent."""
    return _links[0] if _links else None


class Link:
    """A child's connection to its parent."""

    def __init__(self, told: int, heard: int):
        self._told, self._heard = told, heard
        self.rank: int | None = None  # until the ranks have met

    def tell(self, text: str) -> None:
        """Writes a line to the parent."""
        os.write(self._told, (" ".join(text.split())[:MAX_LINE] + "\n").encode())

    def join(self, place: Place, seconds: float) -> int:
        """Waits until all ranks have met; returns a free port of rank 0's host.

        Where ranks are missing the parent says so and ends this process.
        """
        self.tell(f"join {' '.join(map(str, place))} {seconds:g}")
        port = int(os.read(self._heard, 16))
        self.rank = place.rank
        return port

    def keep_beating(self, seconds: float) -> None:
        """Starts a thread that shows the parent that this process can run.

        Args:
          seconds: of silence after which the parent kills this process.
        """
        parent = os.getppid()

        def beat() -> None:
            while True:
                self.tell(f"beat {seconds + GRACE:g}")
                _stop_with(parent)
                time.sleep(1)

        threading.Thread(target=beat, daemon=True).start()

    def leave(self, code: int, line: str) -> NoReturn:
        """Ends this process at once, before it meets another rank in a collective."""
        self.tell(f"said {line}")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _stop_with(parent: int) -> None:
    """Stops this process while its parent is stopped: the two are one to their user."""
    try:
        with open(f"/proc/{parent}/stat") as file:
            state = file.read().rpartition(")")[2].split()[0]
    except OSError:  # there is no such file system
        return
    if state == "T":
        os.kill(os.getpid(), signal.SIGSTOP)


def split() -> int | None:
    """Forks; returns None in the child, and the exit code in the parent, at the end."""
    (heard, told), (answered, answer) = os.pipe(), os.pipe()
    parent, child = os.getpid(), os.fork()
    if child:
        os.close(told)
        os.close(answered)
        return Parent(child, heard, answer).run()
    os.close(heard)
    os.close(answer)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before it could be bound
            os._exit(128 + signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both
    _links.append(Link(told, answered))
    return None


class Verdict(NamedTuple):
    """Why the child is ended.

    Attributes:
      code: exit code.
      text: for this rank's stderr.
      news: for the other ranks; '' = `text`.
    """

    code: int
    text: str
    news: str = ""


class Parent:
    """Watches one child, in one thread."""

    def __init__(self, child: int, heard: int, answer: int):
        """Starts to listen to the child, and to signals.

        Args:
          child: its process id.
          heard: file descriptor of what the child tells.
          answer: file descriptor of what it is answered.
        """
        self._child, self._answer = child, answer
        self._selector = selectors.DefaultSelector()
        self._peers: Peers | None = None
        self._rank, self._wait, self._address = 0, 0.0, ""
        self._met = self._asked = self._stepping = False
        self._ended: set[int] = set()
        self._said = ""
        self._verdict: Verdict | None = None
        self._kill_at = self._meet_until = self._silent_at = math.inf
        self._status: int | None = None
        self._signals, self._wakes = socket.socketpair()
        self._wakes.setblocking(False)
        signal.set_wakeup_fd(self._wakes.fileno())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGCONT):
            signal.signal(number, lambda number, frame: None)
        self._selector.register(self._signals, selectors.EVENT_READ, self._signalled)
        Lines(heard, self._selector, self._from_child, lambda: None)

    def run(self) -> int:
        """Watches until the child has ended; returns the exit code of both."""
        while self._status is None:
            self._turn()
        self._turn()  # what the child said last
        until = time.monotonic() + ABORTED
        while (
            self._status == -signal.SIGABRT
            and self._verdict is None
            and time.monotonic() < until
        ):
            self._turn()
        code, news = self._decide(self._status)
        if self._peers is not None:
            self._peers.tell(f"end {self._rank} {code} {news}")
            self._peers.close()
        return code

    def _turn(self) -> None:
        """Takes what has arrived, then looks at the clock."""
        for key, _ in self._selector.select(TICK):
            key.data()
        now = time.monotonic()
        if self._peers is not None and not self._met and self._verdict is None:
            self._meet(self._peers, now)
        if now > self._silent_at:
            text = (
                f"rank {self._rank} gave no beat for train.watchdog_seconds: it was "
                f"stopped, or stuck where nothing interrupts it; {GO_ON}"
            )
            self._end(Verdict(EXIT_WATCHDOG, text))
        if self._status is None:
            if now > self._kill_at:
                os.kill(self._child, signal.SIGKILL)
            pid, status = os.waitpid(self._child, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)

    def _end(self, verdict: Verdict, *, after: float = 0.0) -> None:
        """Ends the child, in `after` seconds; the first reason counts."""
        if self._verdict is None:
            self._verdict = verdict
            self._kill_at = time.monotonic() + after

    def _signalled(self) -> None:
        """Passes signals on; a launch that took no step has nothing to save."""
        for number in self._signals.recv(4096):
            if number == signal.SIGCONT and self._status is None:
                os.kill(self._child, signal.SIGCONT)
            if number not in (signal.SIGTERM, signal.SIGINT):
                continue
            if self._asked and number == signal.SIGINT:
                self._end(Verdict(EXIT_INTERRUPTED, "interrupted"))
            elif not self._stepping:
                early = f"{TOO_EARLY}; {GO_ON}"
                self._end(Verdict(EXIT_PREEMPTED, early, "early"))
            elif self._status is None:  # jax makes all ranks agree on a step
                os.kill(self._child, signal.SIGTERM)
            self._asked = True

    def _from_child(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "beat":
            self._silent_at = time.monotonic() + float(rest)
        elif word == "step":
            self._stepping = True
        elif word == "said":
            self._said = rest
        elif word == "join":
            host, port, count, rank, seconds = rest.split()
            place = Place(host, int(port), int(count), int(rank))
            self._rank, self._wait = place.rank, float(seconds)
            self._address = f"{host}:{port}"
            self._meet_until = time.monotonic() + self._wait
            self._peers = Peers(place, self._selector, self._from_peer, self._lost)

    def _meet(self, peers: Peers, now: float) -> None:
        """Tries once more to meet the other ranks; rank 0 lets all go on."""
        fault = ""
        try:
            peers.attempt()
        except OSError as error:
            fault = f" ({error})"
        if self._rank == 0 and not peers.missing():
            line = f"go {free_port()}"
            peers.tell(line)
            self._from_peer(line)
        elif now > self._meet_until + (0 if peers.missing() else self._wait):
            missing = ranks(peers.missing() or {0})
            text = (
                f"{missing} did not appear at {self._address} within distributed."
                f"timeout_seconds={self._wait:g}{fault}; start all, or wait longer"
            )
            self._end(Verdict(DeviceError.code, text))

    def _from_peer(self, line: str) -> None:
        """Takes `go PORT` of rank 0, or `end RANK CODE TEXT` of any."""
        word, _, rest = line.partition(" ")
        if word == "go":
            self._met = True
            os.write(self._answer, rest.encode())
            return
        rank, code, text = rest.split(" ", 2)
        self._ended.add(int(rank))
        if self._rank == 0 and self._peers is not None:
            self._peers.tell(line)
        self._told_of(int(rank), int(code), text)

    def _told_of(self, rank: int, code: int, text: str) -> None:
        """Ends the child as another rank ended, if it cannot go on without."""
        if code == EXIT_PREEMPTED and text == "early":
            what = f"{TOO_EARLY}, as rank {rank} was; {GO_ON}"
            self._end(Verdict(code, what, text))
        elif code in (0, EXIT_PREEMPTED):  # as all ranks do
            return
        elif code > 128:
            self._end(Verdict(EXIT_PEER_LOST, f"lost rank {rank} ({text}); {GO_ON}"))
        else:
            users = code <= RunFolderError.code
            told = text.removeprefix(f"error[{code}]: ") or f"exit code {code}"
            said = f"rank {rank} ended: {told}"
            self._end(Verdict(code, said, text), after=SETTLE if users else 0.0)

    def _lost(self, rank: int) -> None:
        """Takes the end of a connection; a rank that did not say so was killed."""
        if rank not in self._ended:
            self._ended.add(rank)
            text = f"lost rank {rank}; {GO_ON}"
            if self._rank == 0 and self._peers is not None:
                self._peers.tell(f"end {rank} {128 + signal.SIGKILL} it left no word")
            self._end(Verdict(EXIT_PEER_LOST, text))

    def _decide(self, status: int) -> tuple[int, str]:
        """Returns the exit code, and what the other ranks are told."""
        verdict = self._verdict
        if verdict is None and status < 0:
            verdict = self._died(-status)
        if verdict is None or status in (0, verdict.code, EXIT_PREEMPTED):
            return status, self._said
        plain = verdict.code in (EXIT_PREEMPTED, EXIT_INTERRUPTED)
        head = "" if plain else f"error[{verdict.code}]: "
        sys.stderr.write(f"{head}{verdict.text}\n")
        return verdict.code, verdict.news or verdict.text

    def _died(self, number: int) -> Verdict:
        """Says what the signal means that ended the child."""
        if number == signal.SIGABRT:
            what = "jax aborted this process, for the reason above: most likely "
            if self._met:
                return Verdict(EXIT_PEER_LOST, f"{what}a lost rank; {GO_ON}")
            what += "other processes did not appear within distributed.timeout_seconds"
            return Verdict(DeviceError.code, what)
        if number == signal.SIGTERM and not self._stepping:
            return Verdict(EXIT_PREEMPTED, f"{TOO_EARLY}; {GO_ON}", "early")
        return Verdict(128 + number, f"killed by {signal.Signals(number).name}")
