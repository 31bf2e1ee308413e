"""Starts inputs one by one, watches over them and judges their ends.

Most are read by a fork of this process, which has imported what a verb imports but has
started neither jax nor a thread; a share of them, drawn by the seed, by a new Python.
"""

import argparse
import collections
import contextlib
import gc
import importlib
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from random import Random
from typing import NamedTuple

import fuzz_base
import fuzz_kinds
import jax._src.xla_bridge
from fuzz_cases import ROOT, Base, Case, outcome, showing, training

# all that a verb needs is imported before the fork, so that no input pays for it
from dpo_jax import build, cli, inspection
from dpo_jax.cli import evaluate, export, report, sample, show, train
from dpo_jax.report import html
from dpo_jax.train import throughput

IMPORTED = (build, inspection, evaluate, export, report, sample, show, train, html)
SECONDS = 60.0
MEMORY = 2 * 10**9  # bytes that are resident
FENCE = 6 * 2**30  # bytes of data, behind which not even a moment is allowed
COLD = 0.05  # of the inputs are read by a new Python
COLD_OF_KIND = {"environment": 0.25}  # libraries read variables when they are imported
LINE = re.compile(r"^error\[(\d+)\]: ", re.MULTILINE)
GOOD = ("clear error", "ran rightly")
BAD = (
    *("internal error", "traceback", "wrong form", "wrong blame", "damaged, yet taken"),
    *("sound, yet refused", "hang", "memory", "fault of the fuzzer"),
)


class Ended(NamedTuple):
    """How the process of an input ended."""

    code: int
    seconds: float
    memory: int
    stopped: str  # `hang`, `memory` or ''


class Child(NamedTuple):
    """A process that reads an input."""

    name: str
    pid: int
    folder: Path
    since: float
    cold: bool = False


def start(name: str, seed: int, base: Base, folder: Path, cold: bool) -> Child:
    """Forks a process that makes an input and runs its verb."""
    folder.mkdir(parents=True)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _work(name, seed, base, folder, cold)
    return Child(name, pid, folder, time.monotonic(), cold)


def is_cold(name: str, seed: int, share: float | None) -> bool:
    """Says whether a new Python reads an input; `share` None = the usual one."""
    kind = name.rpartition("/")[0]
    share = COLD_OF_KIND.get(kind, COLD) if share is None else share
    return Random(f"{seed}/{name}/cold").random() < share


def _work(name: str, seed: int, base: Base, folder: Path, cold: bool) -> None:
    """Makes the input, runs the verb and never returns."""
    code = 99
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_DATA, (FENCE, FENCE))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number, file in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(folder / file, os.O_WRONLY | os.O_CREAT), number)
        os.chdir(folder)
        case = make(name, seed, base, folder)
        (folder / "case.json").write_text(json.dumps(case._asdict()))
        argv = [word.replace("{case}", str(folder)) for word in case.argv]
        if cold:
            _become([sys.executable, "-m", "dpo_jax", *argv])
        throughput.matmul_flops_per_second = _flops_per_second
        code = cli.main(["dpo_jax", *argv])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _become(argv: list[str]) -> None:
    """Turns into a new process; comes back where no command line can hold the words."""
    os.environ["PYTHONPATH"] = str(ROOT)
    with contextlib.suppress(ValueError, OSError):  # a NUL, a surrogate, too long
        os.execv(argv[0], argv)


def _flops_per_second(dtype: str, *, size: int, seconds: float) -> float:
    """Stands for a measurement of the machine, which no input changes."""
    del dtype, size, seconds
    return 1e12


def controls(base: Base) -> dict[str, Case]:
    """Lists the unmutated cases that others are held against."""
    rows = {"pairs": base.pairs, "chats": base.chats}
    shows = {f"show {n}": showing(base, data__train=p) for n, p in rows.items()}
    trains = {f"train {n}": training(base, data__train=p) for n, p in rows.items()}
    return {n: Case(argv, n, ()) for n, argv in (shows | trains).items()}


def make(name: str, seed: int, base: Base, folder: Path) -> Case:
    """Makes the input `kind/number` of a seed, or the unmutated one of that name."""
    if name in (plain := controls(base)):
        return plain[name]
    kind, _, number = name.rpartition("/")
    return fuzz_kinds.KINDS[kind](Random(f"{seed}/{kind}/{number}"), base, folder)


def waited(pid: int) -> float:
    """Returns the seconds that a thread of a process was ready, without a processor."""
    told = [0.0]
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, IndexError):
            told.append(int(path.read_text().split()[1]) / 1e9)
    return max(told)


def resident(pid: int) -> int:
    """Returns the bytes that a process holds in memory."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * resource.getpagesize()


def poll(child: Child) -> Ended | None:
    """Returns how a process ended, or None; ends one that takes too much."""
    done, status, usage = os.wait4(child.pid, os.WNOHANG)
    spent = time.monotonic() - child.since
    if done:
        code = os.waitstatus_to_exitcode(status)
        most = usage.ru_maxrss * 1024
        return Ended(code, spent, most, "memory" if most > MEMORY else "")
    held = resident(child.pid)
    late = spent > SECONDS and spent - waited(child.pid) > SECONDS
    why = "hang" if late else "memory" if held > MEMORY else ""
    if not why:
        return None
    os.killpg(child.pid, signal.SIGKILL)
    os.wait4(child.pid, 0)
    return Ended(-9, spent, held, why)


def judge(case: Case | None, ended: Ended, folder: Path, plain: dict[str, str]) -> str:
    """Says of which kind the end of an input is, a word of `GOOD` or `BAD`."""
    if case is None:
        return "fault of the fuzzer" if not ended.stopped else ended.stopped
    if ended.stopped:
        return ended.stopped
    stderr = (folder / "stderr").read_text(errors="replace")
    if ended.code == 70:
        return "internal error"
    if "Traceback (most recent" in stderr or ended.code in (99, 1) or ended.code < 0:
        return "traceback"
    if ended.code:
        return _of_refusal(case, ended.code, stderr)
    if case.must == "refuse":
        return "damaged, yet taken"
    found = outcome(case, folder)
    if case.must == "same" and case.like in plain and found != plain[case.like]:
        return "damaged, yet taken"
    fresh = any(word.startswith("--config=") for word in case.argv)
    if case.argv[0] == "train" and fresh and re.search(r"\b(NaN|Infinity)\b", found):
        return "damaged, yet taken"
    return "ran rightly"


def _of_refusal(case: Case, code: int, stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if LINE.match(line)]
    codes = [int(LINE.match(line)[1]) for line in lines]  # pyright: ignore
    if codes != [code] or len(lines[0].encode()) > 1000:
        return "wrong form"
    if case.must == "same":
        return "sound, yet refused"
    return "clear error" if code in case.codes else "wrong blame"


def _case(folder: Path) -> Case | None:
    try:
        return Case(**json.loads((folder / "case.json").read_text()))
    except (OSError, ValueError):
        return None


class Tally:
    """Counts ends by kind of input, prints bad ones and keeps their files."""

    def __init__(self, seed: int, kept: Path, verbose: bool) -> None:
        self.seed, self.kept, self.verbose = seed, kept, verbose
        self.plain: dict[str, str] = {}
        self.counts: dict[str, collections.Counter] = collections.defaultdict(
            collections.Counter
        )

    def add(self, child: Child, ended: Ended) -> None:
        """Judges an ended input."""
        case = _case(child.folder)
        found = judge(case, ended, child.folder, self.plain)
        if "/" not in child.name:
            assert found == "ran rightly" and case, f"{child.name}: {found}"
            self.plain[child.name] = outcome(case, child.folder)
        else:
            self.counts[child.name.rpartition("/")[0]][found] += 1
            self._note(child, ended, found)
        bad = found in BAD
        if bad or self.verbose:
            self._tell(child, case, ended, found)
        if bad or self.verbose:
            target = self.kept / child.name.replace("/", "-").replace(" ", "_")
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(child.folder, target, symlinks=True, ignore=_too_much)
        shutil.rmtree(child.folder, ignore_errors=True)

    def _note(self, child: Child, ended: Ended, found: str) -> None:
        """Appends name, verdict, exit code, seconds, and who read it, to ends.tsv."""
        self.kept.mkdir(parents=True, exist_ok=True)
        by = "a new Python" if child.cold else "a fork"
        words = (child.name, found, ended.code, f"{ended.seconds:.1f}", by)
        with (self.kept / "ends.tsv").open("a") as file:
            file.write("\t".join(map(str, words)) + "\n")

    def _tell(self, child: Child, case: Case | None, ended: Ended, found: str) -> None:
        stderr = (child.folder / "stderr").read_text(errors="replace")
        last = stderr.strip().splitlines()[-1:] or [""]
        what = case.what[:300] if case else "not made"
        verb = case.argv[0] if case else ""
        sys.stdout.write(
            f"{found}: {child.name} ({what}), {verb} ended with {ended.code} after "
            f"{ended.seconds:.1f} s, {ended.memory / 1e6:.0f} MB: {last[0][:300]}\n"
            f'  again: make fuzz SEED={self.seed} ONLY="{child.name}"\n'
        )
        sys.stdout.flush()

    @property
    def bad(self) -> int:
        """How many ended badly."""
        return sum(c[name] for c in self.counts.values() for name in BAD)

    def table(self) -> str:
        """Renders the counts."""
        met = [n for n in BAD if any(c[n] for c in self.counts.values())]
        columns = ("tried", *GOOD, *met)
        total = sum(self.counts.values(), collections.Counter())
        lines = [f"{'kind':<20}" + "".join(f"{name:>20}" for name in columns)]
        for name, counted in [*self.counts.items(), ("all", total)]:
            numbers = (counted.total(), *(counted[n] for n in columns[1:]))
            lines.append(f"{name:<20}" + "".join(f"{n:>20}" for n in numbers))
        return "\n".join(lines)


def _too_much(folder: str, names: list[str]) -> set[str]:
    """Leaves out what cannot be copied: pipes, devices, files of gigabytes."""
    paths = [Path(folder) / name for name in names]
    return {
        p.name
        for p in paths
        if not p.is_symlink()
        and not p.is_dir()
        and not (p.is_file() and p.stat().st_size < 10**8)
    }


def names_of(kinds: list[str], count: int, first: int) -> list[str]:
    """Deals the inputs out over the kinds."""
    return [f"{kinds[n % len(kinds)]}/{first + n // len(kinds)}" for n in range(count)]


def run(
    names: list[str],
    seed: int,
    base: Base,
    tally: Tally,
    workers: int,
    cold: float | None,
) -> None:
    """Runs inputs, a few at a time; SIGTERM and Ctrl-C leave it at what has ended."""
    waiting, running = collections.deque(names), list[Child]()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _run(waiting, running, seed, base, tally, workers, cold)
    except KeyboardInterrupt:
        for child in running:
            os.killpg(child.pid, signal.SIGKILL)


def _run(
    waiting: collections.deque[str],
    running: list[Child],
    seed: int,
    base: Base,
    tally: Tally,
    workers: int,
    cold: float | None,
) -> None:
    while waiting or running:
        while waiting and len(running) < workers:
            name = waiting.popleft()
            folder = base.folder / "cases" / name.replace("/", "-").replace(" ", "_")
            running.append(start(name, seed, base, folder, is_cold(name, seed, cold)))
        for child in list(running):
            ended = poll(child)
            if ended is not None:
                running.remove(child)
                tally.add(child, ended)
        time.sleep(0.02)


def _made_apart(folder: Path) -> Base:
    """Makes the unmutated inputs in a fork: jax must not start before the others."""
    told = folder / "told"
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for number in (1, 2):
                os.dup2(os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
            fuzz_base.make(folder)
            told.write_text("\n".join(sys.modules))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0, told.read_text()
    _import(told.read_text().splitlines())
    return Base(folder)


def _import(names: list[str]) -> None:
    """Imports what a run imported, so that no fork of this process has to.

    A fork is a process as new as any only where nothing runs yet: neither a backend of
    jax nor a thread of Python.
    """
    for name in names:
        with contextlib.suppress(Exception):  # made by others when they are imported
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a collection in a fork must not touch, and so copy, every page
    assert not jax._src.xla_bridge.backends_are_initialized()
    assert threading.active_count() == 1, threading.enumerate()


def main() -> int:
    """Runs what the arguments ask for; 1 if anything ended badly."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=280, help="inputs")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument("--kinds", default="", help="of KINDS, by commas")
    parser.add_argument("--only", default="", help="kind/number, by commas")
    parser.add_argument("--cold", type=float, help="share read by a new Python")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", default=str(ROOT / "build" / "fuzz"))
    given = parser.parse_args()
    since = time.monotonic()
    kinds = [k for k in given.kinds.split(",") if k] or list(fuzz_kinds.KINDS)
    only = [name for name in given.only.split(",") if name]
    tally = Tally(given.seed, Path(given.keep) / f"seed{given.seed}", bool(only))
    with tempfile.TemporaryDirectory(prefix="dpo-jax-fuzz-") as folder:
        base = _made_apart(Path(folder))
        run(list(controls(base)), given.seed, base, tally, given.workers, 0.0)
        names = only or names_of(kinds, given.count, given.first)
        run(names, given.seed, base, tally, given.workers, given.cold)
    spent = time.monotonic() - since
    sys.stdout.write(f"\n{tally.table()}\n")
    tried = sum(counted.total() for counted in tally.counts.values())
    sys.stdout.write(f"seed {given.seed}, {tried} inputs, {spent:.0f} s: ")
    sys.stdout.write(
        f"{tally.bad} ended badly\n" if tally.bad else "none ended badly\n"
    )
    return int(tally.bad > 0)


if __name__ == "__main__":
    sys.exit(main())
