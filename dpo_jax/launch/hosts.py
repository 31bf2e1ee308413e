"""Several hosts that run each trial together: one leads, the others follow.

The worker of host 0 alone walks the list and touches leases. It announces each attempt
in a folder that all hosts of its group see: trial, attempt, and an address of its own
that no other attempt has. Each follower starts the same command as another rank, and
says when that has ended. The leader announces the next attempt when all ranks of the
last have ended. Every file is created once and never changed:

    0007.json        the 7th announcement; 0007.over: its rank 0 has ended
    0007.1.began     host 1 has started a rank of it; 0007.1.ended: that is gone
"""

import json
import re
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from dpo_jax import files
from dpo_jax.errors import EXIT_PEER_LOST, EXIT_PREEMPTED
from dpo_jax.folders import Folder, folder_at
from dpo_jax.gcs import Unreachable
from dpo_jax.launch import processes
from dpo_jax.launch.logs import Log
from dpo_jax.launch.processes import Stop
from dpo_jax.launch.trial import Planned

DISTRIBUTED = "DPO_JAX_DISTRIBUTED"  # HOST:PORT,COUNT,INDEX, for a trial's process
LEASE = "DPO_JAX_LEASE"  # names the file whose existence ends a trial with 76
POLL = 0.5  # seconds between looks at a shared disk
GRACE = 30.0  # seconds for a rank to end by itself, once rank 0 has
KILLED = 128 + signal.SIGKILL

T = TypeVar("T")
Tell = Callable[[str], None]
Start = Callable[[Sequence[str], Path, Mapping[str, str]], subprocess.Popen]


class Hosts(NamedTuple):
    """How many hosts run a trial together, and which this is.

    Attributes:
      count: of hosts, each with one process of the trial.
      index: of this host; 0 leads.
      group: names the hosts that belong together.
      address: of this host, as the others reach it.
      seconds: to wait for the others, and for a leader that says nothing.
    """

    count: int = 1
    index: int = 0
    group: str = ""
    address: str = ""
    seconds: float = 600.0


class Call(NamedTuple):
    """An announcement.

    Attributes:
      number: rises within a group.
      trial: its name; '' = none: the leader waits for work, or ends.
      token: of the attempt.
      address: HOST:PORT at which the ranks meet.
      successor: the file whose existence says that another worker has the trial.
      code: that the leader ends with; −1 = it goes on.
      mark: of the leader's process, which no other has.
    """

    number: int
    trial: str = ""
    token: int = 0
    address: str = ""
    successor: str = ""
    code: int = -1
    mark: str = ""


class Group:
    """What the hosts of a group tell each other."""

    def __init__(self, out: str, hosts: Hosts):
        """Touches nothing."""
        self._folder: Folder = folder_at(f"{out}/.sweep/hosts/{hosts.group}")
        self._mark = uuid.uuid4().hex
        self.poll = max(POLL, self._folder.rest / 2)

    def last(self) -> Call | None:
        """Reads the newest announcement."""
        named = (re.fullmatch(r"(\d+)\.json", n) for n in self._folder.names())
        numbers = [int(match[1]) for match in named if match]
        return self.read(max(numbers)) if numbers else None

    def read(self, number: int) -> Call:
        """Reads an announcement; one that is being created is none of a trial."""
        found = self._folder.read(f"{number:04}.json")
        try:
            return Call(**files.parse_json(found.data)) if found else Call(number)
        except (ValueError, TypeError):
            return Call(number)

    def announce(self, call: Call) -> Call:
        """Creates the next announcement; returns it with its number."""
        while True:
            before = self.insist(self.last)
            number = before.number + 1 if before else 1
            call = call._replace(number=number, mark=self._mark)
            if self._create(f"{number:04}.json", call._asdict()):
                return call

    def said(self, call: Call, what: str) -> bool:
        """Tells whether a file stands beside an announcement."""
        return self._folder.has(f"{call.number:04}.{what}")

    def say(self, call: Call, what: str, code: int = 0) -> None:
        """Puts a file beside an announcement."""
        about = {"code": code, "mark": self._mark}
        self._create(f"{call.number:04}.{what}", about)

    def log(self, call: Call, index: int) -> Log:
        """Names what a rank prints."""
        return Log(self._folder, f"{call.number:04}.{index}.log")

    def _create(self, name: str, about: Mapping[str, object]) -> bool:
        data, mark = json.dumps(about).encode(), self._mark.encode()
        return self.insist(lambda: self._folder.create(name, data, mark)) is not None

    def insist(self, ask: Callable[[], T]) -> T:
        """Asks until the store answers."""
        while True:
            try:
                return ask()
            except Unreachable:
                time.sleep(self.poll)


class Leader:
    """Announces attempts, and waits until the ranks of the last are gone."""

    def __init__(self, group: Group, hosts: Hosts):
        """Touches nothing."""
        self._group, self._hosts = group, hosts
        self.count = hosts.count
        self._call: Call | None = None
        self._began = False
        self._told = time.monotonic()

    def assemble(self, goes_on: Callable[[], bool]) -> str:
        """Waits until no rank of an earlier attempt is left.

        Args:
          goes_on: whether to wait on; called often.

        Returns:
          What is missing; '' = all hosts are ready.
        """
        if not self._began:
            self._call = self._group.insist(self._last_trial)
            self._began = True
            self.dismiss()  # the ranks of a leader that was killed
        until, missing = time.monotonic() + self._hosts.seconds, [""]
        while self._call and missing:
            call, others = self._call, range(1, self._hosts.count)
            ended = lambda i, c=call: self._group.said(c, f"{i}.ended")  # noqa: E731
            missing = self._group.insist(
                lambda e=ended, o=others: [str(i) for i in o if not e(i)]
            )
            if missing and (time.monotonic() > until or not goes_on()):
                names = f"host {', '.join(missing)} of {self._hosts.group}"
                return f"{names}: its rank of {call.trial} has not ended"
            time.sleep(self._group.poll if missing else 0)
        return ""

    def _last_trial(self) -> Call | None:
        """Finds the last announcement of a trial."""
        call = self._group.last()
        while call and not call.trial:
            call = self._group.read(call.number - 1) if call.number > 1 else None
        return call

    def call(self, trial: str, token: int, successor: str) -> str:
        """Announces an attempt; returns where its ranks meet."""
        address = f"{self._hosts.address}:{free_port()}"
        call = Call(0, trial, token, address, successor)
        self._call = self._group.announce(call)
        self._told = time.monotonic()
        return address

    def dismiss(self) -> None:
        """Says that rank 0 of the attempt has ended."""
        if self._call is not None:
            self._group.say(self._call, "over")

    def rest(self) -> None:
        """Shows followers, from time to time, that there is nothing to do now."""
        if time.monotonic() - self._told > self._hosts.seconds / 4:
            self._group.announce(Call(0))
            self._told = time.monotonic()

    def leave(self, code: int) -> None:
        """Sends the followers home."""
        self._group.announce(Call(0, code=code))


class Follower:
    """Starts the ranks that a leader announces, on this host."""

    def __init__(
        self,
        group: Group,
        hosts: Hosts,
        environment: Mapping[str, str],
        tell: Tell,
        start: Start = processes.start,
    ):
        """Has started nothing.

        Args:
          group: of this host.
          hosts: which it is.
          environment: of the processes that it starts.
          tell: takes lines for people.
          start: starts a process.
        """
        self._group, self._hosts = group, hosts
        self._environment, self._tell, self._start = environment, tell, start

    def follow(self, trials: Sequence[Planned], stop: Stop) -> int:
        """Follows until the leader ends; returns its exit code.

        Ends with 71 where the leader says nothing for too long, with 75 when told to.
        """
        planned = {trial.name: trial for trial in trials}
        last = self._group.insist(self._group.last)
        number = last.number if last else 0
        if last and last.trial:
            self._take(last, planned, stop)
        heard = time.monotonic()
        while not stop:
            call = self._group.insist(self._group.last)
            if call is None or call.number <= number:
                if time.monotonic() - heard > self._hosts.seconds:
                    self._tell(f"nothing was heard of host 0 of {self._hosts.group}")
                    return EXIT_PEER_LOST
                time.sleep(self._group.poll)
                continue
            number = call.number
            if call.code >= 0:
                return call.code
            if call.trial:
                self._take(call, planned, stop)
            heard = time.monotonic()
        return EXIT_PREEMPTED

    def _take(self, call: Call, planned: Mapping[str, Planned], stop: Stop) -> None:
        """Runs this host's rank of an attempt, unless it has been."""
        me = self._hosts.index
        said = self._said(call)
        if said(f"{me}.ended"):
            return
        if said(f"{me}.began"):  # by a worker that was killed, and its rank with it
            self._group.say(call, f"{me}.ended", KILLED)
        elif said("over") or call.trial not in planned:
            self._group.say(call, f"{me}.ended")
        else:
            self._group.say(call, f"{me}.began")
            code = self._run(call, planned[call.trial], stop)
            self._tell(f"{call.trial}: rank {me} ended with {code}")
            self._group.say(call, f"{me}.ended", code)

    def _said(self, call: Call) -> Callable[[str], bool]:
        """Makes what tells whether a file stands beside an announcement."""
        group = self._group
        return lambda what: group.insist(lambda: group.said(call, what))

    def _run(self, call: Call, trial: Planned, stop: Stop) -> int:
        """Runs a rank until it ends; kills it where rank 0 ended long ago."""
        me, count = self._hosts.index, self._hosts.count
        place = {DISTRIBUTED: f"{call.address},{count},{me}", LEASE: call.successor}
        log = self._group.log(call, me)
        self._tell(
            f"{call.trial}: rank {me} of attempt {call.token}, printing to {log}"
        )
        environment = {**self._environment, **place}
        process = self._start(trial.arguments, log.path, environment)
        over, said = 0.0, self._said(call)
        with stop.passed_on(process):
            while True:
                try:
                    code = process.wait(self._group.poll)
                    log.keep()
                    return code if code >= 0 else 128 - code
                except subprocess.TimeoutExpired:
                    pass
                if not over and said("over"):
                    over = time.monotonic()
                if over and time.monotonic() - over > GRACE:
                    process.kill()


def free_port() -> int:
    """Finds a port of this host that nobody uses."""
    with socket.socket() as door:
        door.bind(("", 0))
        return door.getsockname()[1]


def own_address() -> str:
    """Tells the address by which other hosts reach this one, as its system has it."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
            door.connect(("192.0.2.1", 9))  # of documentation: nothing is sent
            return door.getsockname()[0]
    except OSError:
        return "127.0.0.1"
