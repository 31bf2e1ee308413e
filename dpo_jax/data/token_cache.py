"""Tokens kept on disk, named by all that they are made of, so that they are made once.

The runs of a sweep and the processes of a host share them. A file is named by the
digest of its bytes, and one that does not have it is set aside: nothing that was cut
short or altered is trained on. A cache that cannot be written costs time only.
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from absl import logging
from etils import epath
from safetensors import SafetensorError
from safetensors import numpy as tensors

from dpo_jax import files
from dpo_jax.data.prepare import Prepared
from dpo_jax.data.sources.files import open_binary
from dpo_jax.data.tokens import Records
from dpo_jax.errors import WriteError

ENDING = ".safetensors"
LIBRARIES = ("tokenizers", "transformers")
CHUNK = 1 << 22  # bytes hashed at a time


def name_of(
    settings: Mapping[str, Any], sources: list[str], tokenizer: Any
) -> str | None:
    """Names tokens by what they are made of: 32 hex digits.

    Args:
      settings: how rows are read, checked and tokenized; numbers and words.
      sources: the files that hold the rows, in order; their bytes count, their names
        do not.
      tokenizer: as `tokenize.load_tokenizer` returns.

    Returns:
      None for a tokenizer that cannot be written down.

    Raises:
      DataError: if a file cannot be read.
    """
    if not tokenizer.is_fast:
        return None
    made_of = {
        "settings": dict(settings),
        "sources": [_digest(file) for file in sources],
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "special": [tokenizer.bos_token_id, tokenizer.eos_token_id],
        "template": tokenizer.chat_template,
        "split_special_tokens": tokenizer.split_special_tokens,
        "libraries": [importlib.metadata.version(name) for name in LIBRARIES],
        "code": [_digest(str(file)) for file in sorted(_code())],
    }
    text = json.dumps(made_of, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _code() -> Iterator[Path]:
    """Lists the files of this room: tokens made by other code are not these."""
    return Path(__file__).parent.rglob("*.py")


def _digest(file: str) -> str:
    digest = hashlib.sha256()
    with open_binary(file, "data") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def kept(
    folder: os.PathLike | str, name: str, make: Callable[[], Prepared]
) -> Prepared:
    """Reads tokens from disk, or makes them and keeps them there.

    Of several processes of a host that want the same, one makes them.

    Args:
      folder: of the cache; it need not exist.
      name: from `name_of`.
      make: makes them.
    """
    place = epath.Path(folder)
    if (prepared := _read(place, name)) is not None:
        return prepared
    with _alone(place, name):
        if (prepared := _read(place, name)) is None:
            prepared = make()
            _write(place, name, prepared)
    return prepared


@contextlib.contextmanager
def _alone(folder: epath.Path, name: str) -> Iterator[None]:
    """Keeps other processes of this host from making the same tokens meanwhile."""
    with contextlib.ExitStack() as stack:
        if files.is_local(folder):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(open(folder / f"{name}.lock", "ab"))
                _lock(file)
            except OSError as error:
                logging.warning("token cache: %s cannot be locked: %s", folder, error)
        yield


def _lock(file: IO[bytes]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logging.info("waiting for a process that tokenizes the same rows")
        fcntl.flock(file, fcntl.LOCK_EX)


def _read(folder: epath.Path, name: str) -> Prepared | None:
    """Reads tokens; None if there are none, or none that are sound."""
    for path in sorted(folder.glob(f"{name}.*{ENDING}")):
        digest, again = path.name.split(".")[1], "the rows are tokenized again"
        try:
            data = files.read_named(path, digest, "token cache", again)
        except OSError as error:
            logging.error("token cache: %s cannot be read: %s", path, error)
            continue
        try:
            prepared = None if data is None else _unpacked(data)
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            logging.error(
                "token cache: %s holds no tokens (%s); %s", path, error, again
            )
            continue
        if prepared is not None:
            logging.info("tokens were read from %s", path)
            return prepared
    return None


def _write(folder: epath.Path, name: str, prepared: Prepared) -> None:
    data = _packed(prepared)
    path = folder / f"{name}.{hashlib.sha256(data).hexdigest()[:32]}{ENDING}"
    try:
        files.write_whole(path, data)
    except WriteError as error:
        logging.warning("token cache: the next launch tokenizes again: %s", error)
    else:
        logging.info("tokens are kept in %s", path)


def _packed(prepared: Prepared) -> bytes:
    records = prepared.records
    arrays = {
        "ids": records.ids,
        "starts": records.starts,
        "lengths": records.lengths,
        "firsts": records.firsts,
        "indices": records.indices,
        **{f"response/{name}": each for name, each in records.response.items()},
        **{f"token/{name}": each for name, each in records.token.items()},
    }
    about = {
        "report": json.dumps(prepared.report),
        "fingerprint": prepared.fingerprint,
        "ranked": json.dumps(records.ranked),
    }
    return tensors.save(arrays, metadata=about)


def _unpacked(data: bytes) -> Prepared:
    size = int.from_bytes(data[:8], "little")
    about = json.loads(data[8 : 8 + size])["__metadata__"]
    arrays = tensors.load(data)
    response, token = (_columns(arrays, of) for of in ("response/", "token/"))
    ranked = json.loads(about["ranked"])
    records = Records(**arrays, response=response, ranked=ranked, token=token)
    return Prepared(records, json.loads(about["report"]), about["fingerprint"])


def _columns(arrays: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Takes the arrays out whose names begin with a prefix."""
    names = sorted(name for name in arrays if name.startswith(prefix))
    return {name.removeprefix(prefix): arrays.pop(name) for name in names}
