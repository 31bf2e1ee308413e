"""A worker walks the trials of a sweep until each is done, or has failed.

Any number of workers may walk the same list: a lease keeps two from the same trial (see
`attempts.py`), what is done is skipped, what is stale is taken over, what is dead is
resumed. What a trial is worth is read from its run folder alone, never from the code
that its process ended with.
"""

import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dpo_jax.errors import (
    EXIT_INTERNAL,
    EXIT_LEASE_LOST,
    EXIT_PEER_LOST,
    EXIT_PREEMPTED,
    EXIT_WATCHDOG,
    RunFolderError,
    SweepError,
    WriteError,
)
from dpo_jax.folders import Folder
from dpo_jax.gcs import Unreachable
from dpo_jax.launch import attempts, processes, states
from dpo_jax.launch.attempts import Attempt, Claims, Lease
from dpo_jax.launch.hosts import DISTRIBUTED, LEASE, Leader
from dpo_jax.launch.logs import Log
from dpo_jax.launch.processes import Stop
from dpo_jax.launch.trial import Planned

POLL = 0.1  # seconds between looks at a process
REST = 1.0  # seconds before the list is walked again, where nothing was to be done
LET_GO = 10.0  # seconds for the lock of a process that was killed to be free
INFRASTRUCTURE = 20  # kills and lost peers that a trial may meet
FAILING = frozenset((*range(1, 8), EXIT_INTERNAL))  # the trial's own fault

Tell = Callable[[str], None]
Start = Callable[[Sequence[str], Path, Mapping[str, str]], subprocess.Popen]


class Rules(NamedTuple):
    """How a worker works.

    Attributes:
      failures: launches of a trial that may fail by a fault of its own.
      lease_seconds: without a beat, after which a trial is another's to take.
      first: place in the list that the walk starts from.
      only: the trial to run alone; '' = all.
      silent_seconds: a process that prints nothing for so long is ended; 0 = none is.
      pause: seconds before a worker ends whose only trial waits for others, so that an
        engine that starts it again at once does not spin.
    """

    failures: int = 3
    lease_seconds: float = 60.0
    first: int = 0
    only: str = ""
    silent_seconds: float = 0.0
    pause: float = 0.0


class Walk(NamedTuple):
    """What a walk ended with.

    Attributes:
      code: 0 all done, 9 some failed, 71 a host is missing, 75 told to stop, 76 a
        trial was taken.
      failed: name -> its error line.
      left: names of trials that are neither done nor failed.
    """

    code: int
    failed: dict[str, str]
    left: list[str]


class Worker:
    """Runs trials, one at a time."""

    def __init__(
        self,
        out: str,
        name: str,
        rules: Rules,
        environment: Mapping[str, str],
        tell: Tell,
        start: Start = processes.start,
        leader: Leader | None = None,
    ):
        """Has run nothing.

        Args:
          out: the folder of the sweep; may be `gs://…`.
          name: of the worker, for people.
          rules: how it works.
          environment: of the processes that it starts.
          tell: takes lines for people.
          start: starts a process.
          leader: of the hosts that run each trial together; None = this one alone.
        """
        self._leader, self._lonely = leader, False
        self._out, self._rules, self._tell = out, rules, tell
        self._environment, self._start = environment, start
        self._claims = Claims(name, rules.lease_seconds)
        self._failed: dict[str, str] = {}
        self._done: set[str] = set()
        self._before: dict[str, int] = {}

    def remember(self, trials: Sequence[Planned]) -> None:
        """Takes note of attempts that were made before: their failures are forgiven.

        They count against `Rules.failures`, but whoever launches a sweep again has
        mended something, so each trial is tried once.
        """
        for trial in trials:
            while trial.name not in self._before:
                try:
                    self._before[trial.name] = len(self._made(trial))
                except Unreachable as error:
                    self._tell(f"{trial.name}: {error}; asked again")

    def walk(self, trials: Sequence[Planned], stop: Stop) -> Walk:
        """Walks the list until each trial is done or has failed.

        Args:
          trials: all of the sweep, each behind those that it waits for.
          stop: whether to stop.
        """
        self.remember(trials)
        mine = [t for t in trials if self._rules.only in ("", t.name)]
        at = self._rules.first % len(mine)
        mine = [*mine[at:], *mine[:at]]
        needed = {trial.name: trial for trial in trials}
        while left := self._open(mine):
            moved = False
            for trial in left:
                code = EXIT_PREEMPTED if stop else self._tried(trial, needed, stop)
                moved = moved or code is not None
                if code in (EXIT_PREEMPTED, EXIT_LEASE_LOST):
                    code = EXIT_PEER_LOST if self._lonely else code
                    return Walk(code, dict(self._failed), names_of(self._open(mine)))
            if not moved:
                self._rest(stop)
        failed = dict(self._failed)
        return Walk(SweepError.code if failed else 0, failed, [])

    def _tried(
        self, trial: Planned, needed: Mapping[str, Planned], stop: Stop
    ) -> int | None:
        """Visits a trial; a store that does not answer is asked again later."""
        try:
            return self._visit(trial, needed, stop)
        except Unreachable as error:
            self._tell(f"{trial.name}: {error}; asked again later")
            return None

    def _rest(self, stop: Stop) -> None:
        """Waits before the list is walked again."""
        until = time.monotonic() + max(REST, attempts.folder_of(self._out, "").rest)
        while not stop and time.monotonic() < until:
            time.sleep(POLL)
        if self._leader is not None:
            self._leader.rest()

    def _open(self, trials: Sequence[Planned]) -> list[Planned]:
        return [t for t in trials if t.name not in self._done | self._failed.keys()]

    def _made(self, trial: Planned) -> list[Attempt]:
        return attempts.read_all(self._folder(trial))

    def _folder(self, trial: Planned) -> Folder:
        return attempts.folder_of(self._out, trial.name)

    def _visit(
        self, trial: Planned, needed: Mapping[str, Planned], stop: Stop
    ) -> int | None:
        """Does what can be done for a trial now; None = nothing, for now."""
        if wrong := next((n for n in trial.needs if n in self._failed), ""):
            return self._fails(trial, f"{trial.name} waits for {wrong}, which failed")
        state = states.state_of(trial)
        if state.word == "done":
            self._done.add(trial.name)
            self._tell(f"{trial.name}: done, {state.detail}")
            return 0
        if state.word == "damaged":
            line = f"error[{RunFolderError.code}]: {state.detail}"
            return self._fails(trial, line)
        if missing := self._missing(trial, needed):
            if not self._rules.only:
                return None
            return self._too_early(trial, needed, missing, stop)
        made = self._made(trial)
        before = self._before[trial.name]
        if line := spent(made, trial.id, self._rules.failures, before):
            return self._fails(trial, line)
        by_hand = not made or made[-1].code is not None
        if state.word == "running" and by_hand:
            return None  # not a worker's
        taken = self._claims.take(self._folder(trial), trial.id)
        if taken is None:
            return None
        lease, stale = taken
        if stale is not None:
            self._tell(f"{trial.name}: taken over from {stale.worker}")
            if processes.end_marked(stale.process):
                let_go(trial)
        return self._run(trial, lease, stop)

    def _missing(self, trial: Planned, needed: Mapping[str, Planned]) -> list[str]:
        return [n for n in trial.needs if states.state_of(needed[n]).word != "done"]

    def _too_early(
        self,
        trial: Planned,
        needed: Mapping[str, Planned],
        missing: Sequence[str],
        stop: Stop,
    ) -> int | None:
        """Pauses, as nothing else is to be done; says why it comes back."""
        self._tell(f"{trial.name}: waits for {', '.join(missing)}")
        until = time.monotonic() + self._rules.pause
        while not stop and time.monotonic() < until:
            time.sleep(POLL)
            if not self._missing(trial, needed):
                return None
        for name in missing:
            last = self._made(needed[name])[-1:]
            if last and last[0].id == needed[name].id and last[0].code in FAILING:
                return self._fails(
                    trial, f"{trial.name} waits for {name}, which failed"
                )
        return EXIT_PREEMPTED

    def _fails(self, trial: Planned, line: str) -> int:
        self._failed[trial.name] = line
        self._tell(f"{trial.name}: failed: {line}")
        return 0

    def _run(self, trial: Planned, lease: Lease, stop: Stop) -> int | None:
        """Runs a trial until its process ends; returns its exit code."""
        state = states.state_of(trial)
        if state.word in ("done", "running"):  # since it was looked at
            lease.end(0, "")
            return 0 if state.word == "done" else None
        place = self._meet(trial, lease, stop)
        if place is None:
            lease.end(EXIT_PREEMPTED, "")
            self._lonely = not stop
            return EXIT_PREEMPTED
        log = Log(self._folder(trial), f"{lease.token:04}.log")
        self._tell(f"{trial.name}: {state.word} {state.detail}, printing to {log}")
        environment = {**self._environment, **place, LEASE: lease.successor}
        process = self._start(trial.arguments, log.path, environment)
        with stop.passed_on(process):
            code = watched(process, lease, log, self._rules.silent_seconds)
        if self._leader is not None:
            self._leader.dismiss()
        line = error_line(log, code) if code else ""
        log.keep()
        if not lease.beat():
            owner = self._made(trial)[-1].worker or "another worker"
            self._tell(f"error[{EXIT_LEASE_LOST}]: {trial.name}: {owner} has the trial")
            return EXIT_LEASE_LOST
        return self._book(trial, lease, code, line, stop)

    def _meet(self, trial: Planned, lease: Lease, stop: Stop) -> dict[str, str] | None:
        """Calls the other hosts to a trial; None if one of them is missing."""
        if self._leader is None:
            return {}
        if missing := self._leader.assemble(lambda: not stop and lease.beat()):
            self._tell(f"{trial.name}: {missing}")
            return None
        address = self._leader.call(trial.name, lease.token, lease.successor)
        return {DISTRIBUTED: f"{address},{self._leader.count},0"}

    def _book(
        self, trial: Planned, lease: Lease, code: int, line: str, stop: Stop
    ) -> int | None:
        """Writes down how a launch ended; returns its exit code, None = try later."""
        state = states.state_of(trial)
        if code == 128 + signal.SIGTERM and stop:  # before it took signals
            code = EXIT_PREEMPTED
        if code == 0 and state.word != "done":
            code, line = (
                EXIT_INTERNAL,
                f"it ended with 0 and left {trial.folder} undone",
            )
        try:
            lease.end(code, line)
        except WriteError:
            if code:
                raise
        if code == 0:  # whether or not that could be written: the run folder says so
            self._done.add(trial.name)
        elif code == RunFolderError.code:
            return None if state.word == "running" else self._fails(trial, line)
        how = line or f"exit code {code}"
        if code == 0:
            how = f"done, {state.detail}{states.programs(trial)}"
        self._tell(f"{trial.name}: {how}")
        return code


def names_of(trials: Sequence[Planned]) -> list[str]:
    """Lists the names of trials."""
    return [trial.name for trial in trials]


def let_go(trial: Planned) -> None:
    """Waits until a process that was killed holds the run folder no longer."""
    until = time.monotonic() + LET_GO
    while states.state_of(trial).word == "running" and time.monotonic() < until:
        time.sleep(POLL)


def watched(
    process: subprocess.Popen, lease: Lease, log: Log, silent_seconds: float
) -> int:
    """Waits for a process, beating; ends it where the lease is lost, or it is stuck."""
    lease.beat(processes.mark(process.pid))
    size, since, silent = 0, time.monotonic(), False
    while True:
        try:
            code = process.wait(POLL)
            return EXIT_WATCHDOG if silent else code if code >= 0 else 128 - code
        except subprocess.TimeoutExpired:
            pass
        now, printed = time.monotonic(), log.size()
        if printed != size:
            size, since = printed, now
        silent = 0 < silent_seconds < now - since
        if silent or not lease.beat(progress=size):
            process.kill()


def spent(made: Sequence[Attempt], trial_id: str, failures: int, before: int) -> str:
    """Says why a trial is not to be launched again; '' = it may be.

    Being told to stop costs nothing, a kill or a lost peer little; a fault of its own
    ends a trial for those who walk the list then.

    Args:
      made: attempts at it so far.
      trial_id: of the trial; what it failed as another is forgotten.
      failures: launches that may fail by a fault of its own, in all.
      before: attempts that were made before this worker began.
    """
    ended = [a for a in made if a.id == trial_id and a.code is not None]
    own = [a for a in ended if a.code in FAILING]
    if own and own[-1].token > before:
        return own[-1].line
    if len(own) >= failures:
        again = f"after {len(own)} failures it is not tried again; see --failures"
        return f"{own[-1].line} ({again})"
    mild = (0, EXIT_PREEMPTED, EXIT_LEASE_LOST, RunFolderError.code)
    killed = [a for a in ended if a.code not in (*FAILING, *mild)]
    if len(killed) >= INFRASTRUCTURE:
        return f"{killed[-1].line} (the last of {len(killed)} like it)"
    return ""


def error_line(log: Log, code: int) -> str:
    """Finds the line that says how a trial ended among what it printed last."""
    lines = log.tail(1 << 16).decode(errors="replace").splitlines()
    told = [line for line in lines if line.startswith(("error[", "preempted"))]
    return told[-1] if told else f"exit code {code}; see {log}"
