"""Connections between the parents of a run's ranks, all to that of rank 0.

Rank 0 opens the address that the launcher named, and passes on what it hears. A rank
that ends says how; a connection that breaks without a word is a rank that was killed.
"""

import os
import re
import selectors
import socket
import sys
from collections.abc import Callable, Iterable
from typing import NamedTuple

from dpo_jax.errors import ConfigError, DeviceError


class Place(NamedTuple):
    """Where a process stands among those of its run."""

    host: str
    port: int
    count: int
    rank: int


def place_of(named: str) -> Place | None:
    """Reads `DPO_JAX_DISTRIBUTED`.

    Args:
      named: '' = alone; `auto` = jax finds the others; or `HOST:PORT,COUNT,INDEX`.

    Returns:
      The place; None for '' and `auto`.

    Raises:
      ConfigError: if it is none of these.
    """
    if named in ("", "auto"):
        return None
    rule = f"DPO_JAX_DISTRIBUTED={named!r} is not 'auto' or HOST:PORT,COUNT,INDEX"
    match = re.fullmatch(r"([^,\s]+):(\d{1,5}),(\d{1,6}),(\d{1,6})", named)
    if match is None:
        raise ConfigError(rule)
    place = Place(match[1], int(match[2]), int(match[3]), int(match[4]))
    if not 0 < place.port < 2**16 or place.rank >= place.count:
        raise ConfigError(f"{rule} with 0 < PORT < 65536 and INDEX < COUNT")
    return place


def free_port() -> int:
    """Finds a port of this host that nobody uses."""
    with socket.socket() as door:
        door.bind(("", 0))
        return door.getsockname()[1]


def ranks(numbers: Iterable[int]) -> str:
    """Writes `rank 1` or `ranks 1, 3`."""
    names = [str(number) for number in sorted(numbers)]
    return f"rank{'s' * (len(names) > 1)} {', '.join(names)}"


class Lines:
    """Lines that arrive at a pipe or socket, one call of a function each."""

    def __init__(
        self,
        source: int | socket.socket,
        selector: selectors.BaseSelector,
        take: Callable[[str], None],
        ended: Callable[[], None],
    ):
        """Starts to listen.

        Args:
          source: file descriptor or socket.
          selector: calls the `data` of a source that can be read.
          take: called with each line.
          ended: called once when no more can come.
        """
        self._source, self._selector = source, selector
        self._take, self._ended, self._rest = take, ended, b""
        selector.register(source, selectors.EVENT_READ, self.read)

    def read(self) -> None:
        """Takes what has arrived."""
        fd = self._source if isinstance(self._source, int) else self._source.fileno()
        try:
            arrived = os.read(fd, 2**16)
        except OSError:  # reset by the other side
            arrived = b""
        *lines, self._rest = (self._rest + arrived).split(b"\n")
        for line in lines:
            self._take(line.decode(errors="replace"))
        if not arrived:
            self._selector.unregister(self._source)
            self._ended()


class Peers:
    """This rank's connections: of rank 0 to all others, of others to rank 0."""

    def __init__(
        self,
        place: Place,
        selector: selectors.BaseSelector,
        take: Callable[[str], None],
        lost: Callable[[int], None],
    ):
        """Connects nothing yet.

        Args:
          place: of this rank.
          selector: see `Lines`.
          take: called with what a rank says.
          lost: called with the rank whose connection has ended.
        """
        self._place, self._selector = place, selector
        self._take, self._lost = take, lost
        self._door: socket.socket | None = None
        self._known: dict[int, socket.socket] = {}

    def missing(self) -> set[int]:
        """Returns the ranks that this one waits for."""
        wanted = range(1, self._place.count) if self._place.rank == 0 else [0]
        return {*wanted} - {*self._known}

    def attempt(self) -> None:
        """Tries to meet who is missing.

        Raises:
          OSError: if the address cannot be opened, or not yet be reached.
        """
        host, port, count, rank = self._place
        if rank == 0 and self._door is None:
            both = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if both else socket.AF_INET
            self._door = socket.create_server(
                ("", port), family=family, backlog=count, dualstack_ipv6=both
            )
            self._selector.register(self._door, selectors.EVENT_READ, self._accept)
        elif rank and not self._known:
            peer = socket.create_connection((host.strip("[]"), port), timeout=1)
            peer.sendall(f"hello {rank} {count}\n".encode())
            self._keep(0, peer)
            Lines(peer, self._selector, self._take, lambda: self._lost(0))

    def tell(self, text: str) -> None:
        """Says a line to all that this rank is connected to."""
        for peer in self._known.values():
            try:
                peer.sendall(f"{text}\n".encode())
            except OSError:  # it ended; its connection says so, too
                continue

    def close(self) -> None:
        """Closes all; what was said still arrives."""
        for peer in self._known.values():
            peer.close()
        if self._door is not None:
            self._door.close()

    def _accept(self) -> None:
        """Takes a connection; its first line says which rank it is."""
        assert self._door is not None
        peer, _ = self._door.accept()
        peer.settimeout(5)
        named: list[int] = []

        def take(line: str) -> None:
            if named:
                self._take(line)
                return
            rank = self._greeted(line, peer)
            if rank is None:
                peer.shutdown(socket.SHUT_RDWR)
            else:
                named.append(rank)
                self._keep(rank, peer)

        def ended() -> None:
            if named:
                self._lost(named[0])

        Lines(peer, self._selector, take, ended)

    def _greeted(self, line: str, peer: socket.socket) -> int | None:
        """Returns the rank that a greeting names; None where it cannot be one."""
        match = re.fullmatch(r"hello (\d{1,6}) (\d{1,6})", line)
        if match is None:  # no process of ours
            return None
        rank, count = map(int, match.groups())
        if count == self._place.count and rank in self.missing():
            return rank
        what = (
            f"rank {rank} of {count} cannot join {self._place.count} processes: the "
            "count differs, or two processes have this rank"
        )
        peer.sendall(f"end 0 {DeviceError.code} {what}\n".encode())
        return None

    def _keep(self, rank: int, peer: socket.socket) -> None:
        peer.settimeout(5)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if sys.platform == "linux":  # a host that lost power is missed in 25 s
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        self._known[rank] = peer
