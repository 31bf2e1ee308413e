"""Objects of Google Cloud Storage, changed only on condition of their generation.

Speaks the store's JSON API over HTTP: one request reads an object together with its
generation, and every change names the generation that it replaces (0 = none). The
store's own client library takes two requests to read, and says "precondition failed" of
a write that it repeated after it had been applied; here a change that was refused, or
whose answer was lost, is looked at again: who finds its own mark there has won.

Source: https://cloud.google.com/storage/docs/json_api/v1, request preconditions.
"""

import functools
import http.client
import json
import os
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any, NamedTuple

from dpo_jax.errors import ConfigError, WriteError

SCHEME = "gs://"
API = "https://storage.googleapis.com"
ACCESS = "https://www.googleapis.com/auth/devstorage.read_write"
SECONDS = 5.0  # for one request
WITHIN = 10.0  # seconds for one question, with all its repetitions
FIRST_PAUSE = 0.25  # seconds before a request is repeated, twice that the next time
AGAIN = frozenset((408, 409, 429, 500, 502, 503, 504))
REFUSED = frozenset((404, 412))  # of a change: look what stands there

_endpoint: list[str] = []  # of an emulator, instead of API
_signing = threading.Lock()  # credentials are renewed by one thread at a time


class Unreachable(OSError):
    """The store gave no answer in time: what was asked may have been done, or not."""


class Object(NamedTuple):
    """An object as it was at one instant.

    Attributes:
      data: its bytes.
      generation: rises with each change; a new object of the same name has another.
    """

    data: bytes
    generation: int


def use(endpoint: str) -> None:
    """Speaks to an emulator from now on; '' = to the store itself."""
    full = endpoint if "://" in endpoint or not endpoint else f"http://{endpoint}"
    _endpoint[:] = [full.rstrip("/")] if full else []


def split(url: str) -> tuple[str, str]:
    """Splits `gs://BUCKET/NAME` into bucket and name."""
    bucket, _, name = url.removeprefix(SCHEME).partition("/")
    return bucket, name.strip("/")


def read(url: str) -> Object | None:
    """Reads an object; None if there is none.

    Raises:
      Unreachable: if there is no answer in time.
      ConfigError: if it may not be read.
    """
    bucket, name = split(url)
    status, headers, data = _ask("GET", _place(bucket, name), alt="media")
    if status == 404:
        return None
    return Object(data, int(headers["x-goog-generation"]))


def exists(url: str) -> bool:
    """Tells whether there is an object of that name."""
    return _ask("GET", _place(*split(url)), fields="generation")[0] != 404


def create(url: str, data: bytes, mark: bytes) -> int | None:
    """Creates an object where none is; of all who try one wins.

    Args:
      url: of the object.
      data: its bytes.
      mark: bytes that no other writer's data hold.

    Returns:
      Its generation; None if another's stands there.

    Raises:
      Unreachable: if there is no answer in time; it may have been created.
      WriteError: if it may not be written.
    """
    status, generation = _put(url, data, 0)
    if status not in REFUSED:
        return generation
    found = read(url)
    return found.generation if found and mark in found.data else None


def replace(url: str, data: bytes, generation: int, mark: bytes) -> int | None:
    """Replaces an object of one's own.

    Args:
      url: of the object.
      data: its new bytes.
      generation: that is replaced.
      mark: bytes that all one's own writes hold, and no other's.

    Returns:
      Its new generation; None if it is another's now, or gone.

    Raises:
      As `create`.
    """
    while True:
        status, new = _put(url, data, generation)
        if status not in REFUSED:
            return new
        found = read(url)
        if found is None or mark not in found.data:
            return None
        if found.data == data:  # it was applied, and the answer lost
            return found.generation
        generation = found.generation  # of an earlier write of one's own


def delete(url: str, generation: int) -> bool:
    """Deletes an object of one generation; False if it is another now, or gone."""
    place = _place(*split(url))
    status, *_ = _ask("DELETE", place, ifGenerationMatch=generation)
    return status not in REFUSED


def names(folder: str) -> list[str]:
    """Lists the names of the objects in a folder, not of those in folders below."""
    return list(listed(folder))


def listed(folder: str) -> dict[str, int]:
    """Maps the names of the objects in a folder to their generations."""
    bucket, prefix = split(folder)
    prefix, page, found = f"{prefix}/" if prefix else "", "", {}
    while True:
        query = {"prefix": prefix, "delimiter": "/", "fields": "items(name,generation)"}
        query["fields"] += ",nextPageToken"
        query |= {"pageToken": page} if page else {}
        status, _, data = _ask("GET", f"/storage/v1/b/{bucket}/o", None, **query)
        if status == 404:
            raise ConfigError(f"{folder}: there is no such bucket")
        answer = json.loads(data)
        for item in answer.get("items", ()):
            found[item["name"].removeprefix(prefix)] = int(item["generation"])
        if not (page := answer.get("nextPageToken", "")):
            found.pop("", None)  # a marker of the folder itself
            return found


def _put(url: str, data: bytes, generation: int) -> tuple[int, int]:
    """Uploads an object; returns the status and, if that is good, its generation."""
    bucket, name = split(url)
    status, _, answer = _ask(
        "POST",
        f"/upload/storage/v1/b/{bucket}/o",
        data,
        uploadType="media",
        name=name,
        ifGenerationMatch=generation,
    )
    return status, 0 if status in REFUSED else int(json.loads(answer)["generation"])


def _place(bucket: str, name: str) -> str:
    return f"/storage/v1/b/{bucket}/o/{urllib.parse.quote(name, safe='')}"


def _ask(
    method: str, path: str, body: bytes | None = None, **query: Any
) -> tuple[int, Any, bytes]:
    """Sends a request until it is answered; returns status, headers and body.

    Raises:
      Unreachable: if there is no answer within `WITHIN`.
      ConfigError: if the store refuses to answer this process.
      WriteError: if it refuses a change.
    """
    url = f"{(_endpoint or [API])[0]}{path}?{urllib.parse.urlencode(query)}"
    until, pause = time.monotonic() + WITHIN, FIRST_PAUSE
    while True:
        try:
            status, headers, data = _once(method, url, body)
            said = f"it answers {status}"
        except (OSError, http.client.HTTPException) as error:
            status, headers, data, said = 503, {}, b"", f"{error}"
        if status < 400 or status in REFUSED:
            return status, headers, data
        if status not in AGAIN:
            why = " ".join(data.decode(errors="replace").split())[:200]
            kind = ConfigError if method == "GET" else WriteError
            raise kind(f"{url.partition('?')[0]}: {said}: {why}")
        pause *= 1 + random.random()
        if time.monotonic() + pause > until:
            raise Unreachable(f"{url.partition('?')[0]}: {said}")
        time.sleep(pause)


def _once(method: str, url: str, body: bytes | None) -> tuple[int, Any, bytes]:
    """Sends one request; an error of the server is an answer."""
    headers = {"Content-Type": "application/octet-stream", **_authorization()}
    request = urllib.request.Request(url, body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def _authorization() -> dict[str, str]:
    """Makes the header that says who asks; none for an emulator."""
    if _endpoint:
        return {}
    credentials, renew = _credentials(os.getpid())
    with _signing:
        if not credentials.valid:
            renew()
        return {"Authorization": f"Bearer {credentials.token}"}


@functools.cache
def _credentials(pid: int) -> tuple[Any, Callable[[], None]]:
    """Finds this machine's credentials, and how they are renewed."""
    del pid  # a fork finds its own
    try:
        from google import auth  # pyright: ignore (of the extra)
        from google.auth import exceptions as faults  # pyright: ignore
        from google.auth.transport import requests  # pyright: ignore
    except ImportError as error:
        raise ConfigError(f"gs:// needs the extra `gcs` ({error})") from error
    try:
        credentials, _ = auth.default(scopes=[ACCESS])
    except faults.DefaultCredentialsError as error:
        raise ConfigError(
            f"gs://: no credentials on this machine ({error}); see `gcloud auth "
            "application-default login`"
        ) from error

    def renew() -> None:
        try:
            credentials.refresh(requests.Request())
        except faults.TransportError as error:
            raise Unreachable(f"no token for gs://: {error}") from error
        except faults.RefreshError as error:
            raise ConfigError(f"gs://: the credentials are refused: {error}") from error

    return credentials, renew
