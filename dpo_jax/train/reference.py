"""The reference's log-probs on disk: one cache for every loss, layout and run.

A folder holds what one reference says, under a name made of its identity:

    CACHE/<16 hex>/KEY.json               the identity, for people
    CACHE/<16 hex>/<64 hex>.safetensors   a shard, named by the SHA-256 of its bytes
    CACHE/<16 hex>/<64 hex>.corrupt       one whose bytes are not those of its name
    CACHE/<16 hex>-2/                     written anew, where live scores disagreed

A shard holds `keys` u8[N, 32], `lengths` i32[N] and `logps` f32[sum of lengths], nats.
Keys are SHA-256s of the ids of prompt and response, so an entry says which tokens it is
for, whatever row, step or run they lie in. Shards appear whole and never change:
several runs may fill a folder at once, and a pass that was killed goes on behind its
last shard. NumPy and hashing; this room knows no models, no losses and no jax.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from etils import epath
from safetensors import SafetensorError
from safetensors import numpy as tensors

from dpo_jax.errors import WriteError
from dpo_jax.train import runfolder
from dpo_jax.types import Array, Batch, Record

Entries = dict[bytes, np.ndarray]  # key -> f32[tokens of the response], nats
Identity = Mapping[str, Any]

FORMAT = 1
SHARD_TOKENS = 1 << 20  # 4 MiB of log-probs
KEY, SHARD = "KEY.json", ".safetensors"


def key_of(prompt: np.ndarray, response: np.ndarray) -> bytes:
    """Returns the SHA-256 of a prompt's and a response's ids."""
    digest = hashlib.sha256(np.array([len(prompt), len(response)], np.int64).tobytes())
    for ids in (prompt, response):
        digest.update(np.ascontiguousarray(ids, np.int32).tobytes())
    return digest.digest()


def keys_of(record: Record) -> list[bytes]:
    """Returns the key of each response of a record."""
    return [key_of(record.prompt, response) for response in record.responses]


class Place(NamedTuple):
    """Where a response's scored tokens lie in a batch.

    Attributes:
      key: of prompt and response.
      row: (microbatch, row).
      entries: i64[tokens of the response] places along C, in order.
    """

    key: bytes
    row: tuple[int, int]
    entries: np.ndarray


def places(batch: Batch) -> Iterator[Place]:
    """Reads off a batch which responses of which prompts it scores, and where.

    Args:
      batch: NumPy arrays with a leading axis of microbatches.
    """
    microbatches, rows, slots = batch.ends.shape
    for row in np.ndindex(microbatches, rows):
        tokens, docs, of_entry = batch.tokens[row], batch.docs[row], batch.slots[row]
        is_prompt = batch.branches[row] == 0
        for slot in range(slots):
            entries = np.flatnonzero(of_entry == slot)
            if not len(entries):
                continue
            parent = batch.parents[row][entries[0]]  # the last token of the prompt
            prompt = tokens[is_prompt & (docs == docs[parent])]
            yield Place(key_of(prompt, batch.targets[row][entries]), row, entries)


def fill(batch: Batch, *, entries: Entries) -> Batch:
    """Adds the column `ref_logps` f32[microbatches, B, C] to this host's rows.

    Args:
      batch: NumPy arrays with a leading axis of microbatches.
      entries: of every response in it.

    Raises:
      KeyError: if one is missing.
    """
    found = np.zeros(batch.targets.shape, np.float32)
    for place in places(batch):
        if place.key not in entries:
            raise KeyError(
                f"the reference cache lacks a response of row {batch.ids[place.row]}"
            )
        found[place.row][place.entries] = entries[place.key]
    return batch._replace(token={**batch.token, "ref_logps": found})


def split(batch: Batch, logps: Array) -> Entries:
    """Takes a batch's log-probs apart, by response.

    Args:
      batch: NumPy arrays with a leading axis of microbatches.
      logps: f32[microbatches, B, C] nats.
    """
    return {
        place.key: np.array(logps[place.row][place.entries], np.float32)
        for place in places(batch)
    }


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
    found: set[str] = set()
    for folder in cache.iterdir() if cache.is_dir() else ():
        file = folder / KEY
        try:
            other = json.loads(file.read_text()) if file.exists() else dict(identity)
        except ValueError:
            continue
        names = sorted({*identity, *other})
        found.add(", ".join(n for n in names if other.get(n) != identity.get(n)))
    return sorted(found - {""})


class Store:
    """The entries of one reference that a run wants, on disk and in memory.

    Attributes:
      folder: where the shards lie.
      entries: those read so far.
    """

    def __init__(self, folder: epath.Path, wanted: Collection[bytes]):
        """Reads nothing yet.

        Args:
          folder: from `newest_folder`; it need not exist.
          wanted: keys to keep in memory.
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
            data = path.read_bytes()
        except FileNotFoundError:  # another run has just set it aside
            return False
        except OSError as error:
            logging.error("%s cannot be read (%s): computed again", path, error)
            return False
        if hashlib.sha256(data).hexdigest() != path.name.removesuffix(SHARD):
            _set_aside(path, len(data))
            return False
        for key, logps in _unpacked(data, path):
            if key in self._wanted:
                self.entries[key] = logps
        return True

    def write(self, entries: Entries) -> None:
        """Writes a shard.

        Raises:
          WriteError: if it cannot be written.
        """
        data = _packed(entries)
        name = hashlib.sha256(data).hexdigest() + SHARD
        _write_whole(self.folder / name, data)

    def write_identity(self, identity: Identity) -> None:
        """Leaves word of whose entries these are.

        Raises:
          WriteError: if it cannot be written.
        """
        if not (self.folder / KEY).exists():
            text = json.dumps(identity, indent=1, sort_keys=True) + "\n"
            _write_whole(self.folder / KEY, text.encode())


class Writer:
    """Gathers entries and writes a shard whenever there are enough tokens.

    What is left is written at the end of the `with` block, however it ends.
    """

    def __init__(self, store: Store, *, shard_tokens: int):
        self._store, self._shard_tokens = store, shard_tokens
        self._held, self._tokens = Entries(), 0

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()

    def add(self, entries: Entries) -> None:
        """Takes entries.

        Raises:
          WriteError: if a shard cannot be written.
        """
        self._held |= entries
        self._tokens += sum(map(len, entries.values()))
        if self._tokens >= self._shard_tokens:
            self._flush()

    def _flush(self) -> None:
        if self._held:
            held, self._held, self._tokens = self._held, Entries(), 0
            self._store.write(held)


def _packed(entries: Entries) -> bytes:
    """Lays entries out as the bytes of a shard, in the order of their keys."""
    keys = sorted(entries)
    return tensors.save(
        {
            "keys": np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), 32),
            "lengths": np.array([len(entries[key]) for key in keys], np.int32),
            "logps": np.concatenate([entries[key] for key in keys]),
        }
    )


def _unpacked(data: bytes, path: epath.Path) -> Iterator[tuple[bytes, np.ndarray]]:
    try:
        found = tensors.load(data)
    except SafetensorError as error:  # it was named by its digest, so by whom?
        logging.error("%s is no shard of a cache (%s): not read", path, error)
        return
    ends = np.cumsum(found["lengths"], dtype=np.int64)
    for key, logps in zip(
        found["keys"], np.split(found["logps"], ends[:-1]), strict=True
    ):
        yield key.tobytes(), logps


def _set_aside(path: epath.Path, size: int) -> None:
    """Renames a shard that was cut short or altered; says so, loudly."""
    name = path.name.removesuffix(SHARD)
    target, n = path.with_name(f"{name}.corrupt"), 2
    while target.exists():
        target, n = path.with_name(f"{name}.{n}.corrupt"), n + 1
    logging.error(
        "reference cache: sha256 mismatch in %s (%d bytes): cut short or altered; its "
        "log-probs are computed again, the file is kept as %s",
        path,
        size,
        target.name,
    )
    try:
        path.rename(target)
    except OSError as error:
        logging.warning("cannot rename %s: %s", path, error)


def _write_whole(path: epath.Path, data: bytes) -> None:
    """Makes a file appear with all its bytes or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not runfolder.is_local(path):  # an object appears whole
            path.write_bytes(data)
            return
        partial = f"{path.parent}/.{uuid.uuid4().hex}.part"
        try:
            with open(partial, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            if os.path.exists(partial):
                os.unlink(partial)
    except OSError as error:
        raise WriteError(
            f"cannot write {path} ({len(data)} bytes): {error}; make room, or set "
            "ref.cache_dir"
        ) from error
