"""The reference's log-probs on disk: one cache for every loss, layout and run.

A folder holds what one reference says, under a name made of its identity:

    CACHE/<16 hex>/KEY.json               the identity, for people
    CACHE/<16 hex>/<64 hex>.safetensors   a shard, named by the SHA-256 of its bytes
    CACHE/<16 hex>/<64 hex>.corrupt       one whose bytes are not those of its name
    CACHE/<16 hex>-2/                     written anew, where live scores disagreed

A shard holds `keys` u8[N, 32], `lengths` i32[N], `logps` f32[sum of lengths], nats, and
`checks` u8[N, 8], the start of a SHA-256 of each entry's key and log-probs. Keys are
SHA-256s of the ids of prompt and response (and of which tokens count, where not all
do; an entry is of those that count), so an entry says which tokens it is for,
whatever row, step or run they lie in. An entry of another length than its response, one
that is not finite, or one that is not what it was written as is not believed. Shards
appear whole and never change: several runs may fill a folder at once, and a pass that
was killed goes on behind its last shard.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from etils import epath
from safetensors import SafetensorError
from safetensors import numpy as tensors

from dpo_jax import files
from dpo_jax.data.layouts import scored_of
from dpo_jax.types import Record

Entries = dict[bytes, np.ndarray]  # key -> f32[scored tokens], nats
Identity = Mapping[str, Any]

FORMAT = 2
SHARD_TOKENS = 1 << 20  # 4 MiB of log-probs
KEY, SHARD = "KEY.json", ".safetensors"


def key_of(
    prompt: np.ndarray, response: np.ndarray, scored: np.ndarray | None = None
) -> bytes:
    """Returns the SHA-256 of a prompt's and a response's ids, and of which count.

    Args:
      prompt: i32[P] ids.
      response: likewise.
      scored: bool of each token of the response; None = all count, and the key is that
        of the ids.
    """
    digest = hashlib.sha256(np.array([len(prompt), len(response)], np.int64).tobytes())
    for ids in (prompt, response):
        digest.update(np.ascontiguousarray(ids, np.int32).tobytes())
    if scored is not None and not scored.all():
        digest.update(np.packbits(scored).tobytes())
    return digest.digest()


def keys_of(record: Record) -> list[bytes]:
    """Returns the key of each response of a record."""
    both = zip(record.responses, scored_of(record), strict=True)
    return [key_of(record.prompt, response, scored) for response, scored in both]


def logps_of(record: Record, *, entries: Entries) -> tuple[np.ndarray, ...]:
    """Returns what the reference says of a record's scored tokens, nats each.

    Raises:
      KeyError: if an entry is missing.
    """
    missing = [key for key in keys_of(record) if key not in entries]
    if missing:
        raise KeyError(f"the reference cache lacks a response of row {record.index}")
    return tuple(entries[key] for key in keys_of(record))


class Agreement(NamedTuple):
    """How far entries lie from log-probs scored live.

    Attributes:
      responses: compared.
      mean: of |difference| over all tokens, nats; NaN of none.
      largest: |difference| of a token, nats.
    """

    responses: int
    mean: float
    largest: float


def compare(entries: Entries, live: Entries) -> Agreement:
    """Compares the entries that both have."""
    both = [key for key in live if key in entries]
    gaps = [np.abs(entries[key] - live[key]) for key in both]
    if not gaps:
        return Agreement(0, float("nan"), float("nan"))
    all_gaps = np.concatenate(gaps)
    return Agreement(len(both), float(all_gaps.mean()), float(all_gaps.max()))


def name_of(identity: Identity) -> str:
    """Names the folder of a reference: 16 hex digits."""
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def newest_folder(cache: epath.Path, identity: Identity) -> epath.Path:
    """Finds the folder of a reference that was written last; it need not exist."""
    name, number = name_of(identity), 1
    while (cache / f"{name}-{number + 1}").exists():
        number += 1
    return cache / (name if number == 1 else f"{name}-{number}")


def next_folder(folder: epath.Path) -> epath.Path:
    """Names the folder to start where the entries of one are not to be trusted."""
    name, _, number = folder.name.partition("-")
    return folder.parent / f"{name}-{int(number or 1) + 1}"


def differences(cache: epath.Path, identity: Identity) -> list[str]:
    """Says in what the other references of a cache differ from this one, each once."""
    differing: set[str] = set()
    for folder in cache.iterdir() if cache.is_dir() else ():
        file = folder / KEY
        try:
            other = files.read_json(file) if file.exists() else dict(identity)
        except (OSError, ValueError):
            continue
        if not isinstance(other, dict):
            continue
        names = sorted({*identity, *other})
        differing.add(", ".join(n for n in names if other.get(n) != identity.get(n)))
    return sorted(differing - {""})


class Store:
    """The entries of one reference that a run wants, on disk and in memory.

    Attributes:
      folder: where the shards lie.
      entries: those read so far.
    """

    def __init__(self, folder: epath.Path, wanted: Mapping[bytes, int]):
        """Reads nothing yet.

        Args:
          folder: from `newest_folder`; it need not exist.
          wanted: keys to keep in memory, and how many scored tokens each entry has.
        """
        self.folder, self.entries = folder, Entries()
        self._wanted, self._seen = wanted, set()

    def refresh(self) -> None:
        """Reads the shards that were not read yet; sets aside what is not sound."""
        shards = self.folder.glob(f"*{SHARD}") if self.folder.exists() else ()
        for path in sorted(shards):
            if path.name not in self._seen and self._read(path):
                self._seen.add(path.name)

    def missing(self) -> int:
        """Counts the wanted entries that were not read."""
        return sum(key not in self.entries for key in self._wanted)

    def _read(self, path: epath.Path) -> bool:
        """Reads a shard; False if it is not sound, and may be written once more."""
        try:
            data = files.read_named(
                path,
                path.name.removesuffix(SHARD),
                "reference cache",
                "its log-probs are computed again",
            )
        except FileNotFoundError:  # another run has just set it aside
            return False
        except OSError as error:
            logging.error("%s cannot be read (%s): computed again", path, error)
            return False
        if data is None:
            return False
        for key, logps, check in _unpacked(data, path):
            if key not in self._wanted:
                continue
            fault = _fault(key, logps, check, self._wanted[key])
            if fault:
                logging.error(
                    "reference cache: an entry of %s %s: computed again", path, fault
                )
            else:
                self.entries[key] = logps
        return True

    def write(self, entries: Entries) -> None:
        """Writes a shard.

        Raises:
          WriteError: if it cannot be written.
        """
        data = _packed(entries)
        name = hashlib.sha256(data).hexdigest() + SHARD
        files.write_whole(self.folder / name, data)

    def write_identity(self, identity: Identity) -> None:
        """Leaves word of whose entries these are.

        Raises:
          WriteError: if it cannot be written.
        """
        if not (self.folder / KEY).exists():
            text = json.dumps(identity, indent=1, sort_keys=True) + "\n"
            files.write_whole(self.folder / KEY, text)


@contextlib.contextmanager
def writer(store: Store, *, shard_tokens: int) -> Iterator[Callable[[Entries], None]]:
    """Yields what takes entries, and writes a shard whenever there are enough tokens.

    What is left is written at the end of the `with` block, however it ends.

    Raises:
      WriteError: if a shard cannot be written.
    """
    held: Entries = {}

    def flush() -> None:
        entries = dict(held)
        held.clear()  # a shard that cannot be written is not tried again
        if entries:
            store.write(entries)

    def add(entries: Entries) -> None:
        held.update(entries)
        if sum(map(len, held.values())) >= shard_tokens:
            flush()

    try:
        yield add
    finally:
        flush()


def _packed(entries: Entries) -> bytes:
    """Lays entries out as the bytes of a shard, in the order of their keys."""
    keys = sorted(entries)
    return tensors.save(
        {
            "keys": np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), 32),
            "lengths": np.array([len(entries[key]) for key in keys], np.int32),
            "logps": np.concatenate([entries[key] for key in keys]),
            "checks": np.stack([_check_of(key, entries[key]) for key in keys]),
        }
    )


def _check_of(key: bytes, logps: np.ndarray) -> np.ndarray:
    digest = hashlib.sha256(key + logps.tobytes()).digest()
    return np.frombuffer(digest[:8], np.uint8)


def _fault(key: bytes, logps: np.ndarray, check: np.ndarray, length: int) -> str:
    """Says why an entry is not to be believed; '' if it is."""
    if len(logps) != length:
        return f"has {len(logps)} log-probs for a response of {length} tokens"
    if not np.isfinite(logps).all():
        return "is not finite"
    if not np.array_equal(check, _check_of(key, logps)):
        return "is not what it was written as"
    return ""


def _unpacked(
    data: bytes, path: epath.Path
) -> Iterator[tuple[bytes, np.ndarray, np.ndarray]]:
    """Yields the key, log-probs and check of every entry; none of what is no shard."""
    try:
        shard = tensors.load(data)
        keys, checks = (shard[name].astype(np.uint8) for name in ("keys", "checks"))
        ends = np.cumsum(shard["lengths"], dtype=np.int64)
        entries = np.split(shard["logps"].astype(np.float32), ends[:-1])
        entries = list(zip(keys, entries, checks, strict=True))
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        # it was named by its digest, so by whom?
        logging.error("%s is no shard of a cache (%s): not read", path, error)
        return
    for key, logps, check in entries:
        yield key.tobytes(), logps, check
