"""Reads optimized HLO: what a program sends between devices, and its largest values.

What stands in a loop's body is counted as often as the loop runs: the trip count that
XLA wrote down (CPU), or what the loop's condition compares its counter with (TPU does
not write it down). Knows text alone, neither models nor meshes.
"""

import collections
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
FUSED = "all-reduce-scatter"  # a computation that TPUs run as one reduce-scatter
BYTES = {"pred": 1, "c64": 8, "c128": 16, "token": 0, "opaque": 0}

HEADING = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
LINE = re.compile(r"^  (?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")
SHAPE = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
CALLED = re.compile(r"(?:calls|to_apply|body|condition|called_computation)=%?([\w.-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
NAMES = re.compile(r"%([\w.-]+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
VIEWS = ("parameter", "tuple", "get-tuple-element", "bitcast", "while", "constant")


class Instruction(NamedTuple):
    """A line of HLO: its name, the text of its type, what it does, and the rest."""

    name: str
    type: str
    does: str
    rest: str


class Traffic(NamedTuple):
    """What the collectives of one kind do in a run of the program.

    Attributes:
      calls: how often they run.
      bytes: that a device receives by them.
      unknown: calls in loops of which the program does not say how long they run; they
        are counted with `trips` of `traffic`.
    """

    calls: int
    bytes: int
    unknown: int


class Value(NamedTuple):
    """A value that the program holds: bytes, type, and where it comes from."""

    bytes: int
    type: str
    origin: str


Computations = Mapping[str, list[Instruction]]


def parse(text: str) -> tuple[str, Computations]:
    """Splits a module into computations; returns the entry's name and all of them."""
    found, entry, lines = {}, "", list[Instruction]()
    for line in text.splitlines():
        if heading := HEADING.match(line):
            name = heading.group(1)
            lines = found[name] = []
            if line.startswith("ENTRY"):
                entry = name
        elif match := LINE.match(line):
            lines.append(Instruction(*match.groups()))
    return entry, found


def shapes_of(type: str) -> list[int]:
    """Lists the bytes of each array of a type, tuples taken apart."""
    sizes = []
    for kind, dims in SHAPE.findall(type):
        bits = re.search(r"\d+", kind)
        width = (
            BYTES.get(kind) if kind in BYTES else int(bits.group()) / 8 if bits else 0
        )
        count = math.prod(int(n) for n in dims.split(",") if n)
        sizes.append(math.ceil((width or 0) * count))
    return sizes


def group_size(rest: str) -> int:
    """Finds how many devices take part in a collective; 0 = it does not say."""
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(match.group(2))
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return match.group(1).count(",") + 1
    if match := re.search(r"replica_groups=mesh\[([^]]*)\] \{([^}]*)\}", rest):
        axes = dict(re.findall(r"('[^']+')=(\d+)", match.group(1)))
        return math.prod(int(axes[name]) for name in match.group(2).split(","))
    return 0


def received(kind: str, type: str, rest: str, devices: int) -> int:
    """Counts the bytes that a device receives by one collective, at the least.

    Args:
      kind: of `KINDS`.
      type: of its result; of one that has begun, (operands, results, …).
      rest: of its line.
      devices: of the program, where all take part.
    """
    sizes = [size for size in shapes_of(type) if size > 4] or [0]
    n = group_size(rest) or devices
    if n <= 1 and kind != "collective-permute":
        return 0
    share = (n - 1) / max(n, 1)
    if kind == "all-gather":
        return int(max(sizes) * share)
    if kind == "reduce-scatter":
        return int(min(sizes) * (n - 1))
    if kind == "all-reduce":
        return int(2 * _once(sizes) * share)
    if kind == "collective-permute":
        return max(sizes)
    return int(_once(sizes) * share)


def _once(sizes: list[int]) -> int:
    """Sums results; operands of a collective that has begun, as large, not again."""
    half, odd = divmod(len(sizes), 2)
    twice = not odd and sizes[:half] == sizes[half:]
    return sum(sizes[:half] if twice else sizes)


def traffic(text: str, *, devices: int, trips: int = 1) -> dict[str, Traffic]:
    """Adds up the collectives of a program, the most bytes first.

    Args:
      text: optimized HLO of one device.
      devices: that run it.
      trips: of loops that do not say how long they run.
    """
    entry, all_of_them = parse(text)
    totals = collections.defaultdict(lambda: [0, 0, 0])
    seen = set()
    for line, home, times, known in _reached(entry, all_of_them, trips):
        kind = line.does.removesuffix("-start")
        if kind not in KINDS:
            continue
        channel = re.search(r"channel_id=(\d+)", line.rest)
        key = (channel.group(1), home) if channel else (line.name, home)
        if key in seen:
            continue
        seen.add(key)
        kind = "reduce-scatter" if home.startswith(FUSED) else kind
        size = received(kind, line.type, line.rest, devices)
        total = totals[kind]
        total[0] += times
        total[1] += times * size
        total[2] += 0 if known else times
    order = sorted(totals.items(), key=lambda item: -item[1][1])
    return {kind: Traffic(*total) for kind, total in order}


def _reached(
    name: str, found: Computations, trips: int, times: int = 1, known: bool = True
) -> Iterator[tuple[Instruction, str, int, bool]]:
    """Walks all lines that a computation runs, those of what it calls included.

    Yields:
      A line, its computation, how often it runs, and whether that is known.
    """
    for line in found.get(name, ()):
        yield line, name, times, known
        called = CALLED.findall(line.rest)
        if match := BRANCHES.search(line.rest):
            called += NAMES.findall(match.group(1))
        count = loop_trips(line, found[name], found) if line.does == "while" else 1
        for each in called:
            yield from _reached(
                each, found, trips, times * (count or trips), known and bool(count)
            )


def loop_trips(
    line: Instruction, around: list[Instruction], found: Computations
) -> int | None:
    """Finds how often a loop runs; None = it does not say.

    Args:
      line: the `while`.
      around: the computation that it stands in.
      found: all computations.
    """
    if match := TRIPS.search(line.rest):
        return int(match.group(1))
    condition = re.search(r"condition=%?([\w.-]+)", line.rest)
    body = re.search(r"body=%?([\w.-]+)", line.rest)
    if condition is None or body is None:
        return None
    tests = _by_name(found.get(condition.group(1), []))
    compare = next((x for x in reversed(tests.values()) if x.does == "compare"), None)
    if compare is None or "direction=LT" not in compare.rest:
        return None
    counter, limit = (tests.get(n) for n in NAMES.findall(compare.rest)[:2])
    if counter is None or counter.does != "get-tuple-element":
        return None
    at = _index(counter)
    here = _by_name(around)
    operand = here.get((NAMES.findall(line.rest) or [""])[0])
    starts = _elements(operand)
    last = _number(limit)
    if last is None and limit is not None and limit.does == "get-tuple-element":
        last = _number(here.get(starts[_index(limit)])) if starts else None
    first = _number(here.get(starts[at])) if at < len(starts) else 0
    if last is None:
        return None
    stride = _stride(found.get(body.group(1), []), at)
    return max(0, math.ceil((last - (first or 0)) / stride))


def _by_name(lines: list[Instruction]) -> dict[str, Instruction]:
    return {line.name: line for line in lines}


def _index(line: Instruction) -> int:
    match = re.search(r"index=(\d+)", line.rest)
    return int(match.group(1)) if match else 0


def _elements(line: Instruction | None) -> list[str]:
    """Names what a tuple is made of; [] of anything else."""
    if line is None or line.does != "tuple":
        return []
    return NAMES.findall(line.rest.partition(")")[0])


def _number(line: Instruction | None) -> int | None:
    """Reads a whole constant."""
    if line is None or line.does != "constant":
        return None
    match = re.match(r"(-?\d+)\)", line.rest)
    return int(match.group(1)) if match else None


def _stride(body: list[Instruction], at: int) -> int:
    """Finds what a loop's body adds to its counter; 1 where it does not say."""
    lines = _by_name(body)
    last = lines[body[-1].name] if body else None
    elements = _elements(last)
    line, added = lines.get(elements[at]) if at < len(elements) else None, 0
    while line is not None and line.does in ("add", "copy", "bitcast"):
        operands = [lines.get(n) for n in NAMES.findall(line.rest.partition(")")[0])]
        added += sum(filter(None, map(_number, operands)))
        line = next((x for x in operands if x and x.does != "constant"), None)
    return added or 1


def largest(text: str, *, number: int, least: int = 2**20) -> list[Value]:
    """Lists the largest values that a program makes, each origin once.

    Args:
      text: optimized HLO of one device.
      number: of values, at most.
      least: bytes of one that is worth a word.
    """
    found = parse(text)[1]
    fusions = (x for lines in found.values() for x in lines if x.does == "fusion")
    held = {name for line in fusions for name in CALLED.findall(line.rest)}
    best: dict[str, Value] = {}
    for name, lines in found.items():
        for line in lines if name not in held else ():
            if line.does in VIEWS or line.type.startswith("("):
                continue
            size = sum(shapes_of(line.type))
            match = re.search(r'op_name="([^"]*)"', line.rest)
            origin = match.group(1) if match else line.name
            if size >= least and size > best.get(origin, Value(0, "", "")).bytes:
                kept = re.sub(r"\{.*", "", line.type)
                best[origin] = Value(size, kept, origin)
    return sorted(best.values(), reverse=True)[:number]
