"""How batches get the reference's columns: asked on the device, or from the cache.

`ref.mode=cached` loads the reference once at the start of a launch: to compare entries
of the cache with k pairs scored live, and to score what the cache lacks. Then its
parameters are let go, and the loader's threads fill the column in.
"""

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from dpo_jax.config import Config
from dpo_jax.data.loader import Loader, as_it_is
from dpo_jax.errors import ModelError
from dpo_jax.models import attention, files
from dpo_jax.sharding import arrays, rules
from dpo_jax.train import annotate, manifest
from dpo_jax.train import reference as cache_lib
from dpo_jax.train.reference import Entries, Store, Writer
from dpo_jax.types import Array, Batch, Frozen, Params
from dpo_jax.wiring import model as model_wiring
from dpo_jax.wiring.model import Model, Reference

FOLDER = "ref_cache"  # beside the run folder, so that the runs of a sweep share it
BY_LENGTH = ("dynamic", "longrope")  # rope scalings that read data.max_tokens
TOLERANCES = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 5e-2}  # nats a token, mean


class Annotators(NamedTuple):
    """The two places where a batch may get the reference's columns.

    Attributes:
      on_host: on this host's rows, before they are global arrays: from the cache.
      on_device: live; see `annotate.Annotate`.
      live: the reference, where it is held.
    """

    on_host: Callable[[Batch], Batch]
    on_device: annotate.Annotate
    live: Reference | None

    @property
    def frozen(self) -> Frozen:
        """What the step is given and never changes."""
        return {} if self.live is None else {"ref": self.live.params}


NONE = Annotators(as_it_is, annotate.nothing, None)


class Step(NamedTuple):
    """A step of a loader, and the keys of the responses in it."""

    loads: Loader
    number: int
    keys: list[bytes]

    def rows(self) -> Batch:
        """Lays out this host's rows."""
        return self.loads.batch_at(self.number)


def annotators(
    config: Config,
    policy: Model,
    built: Mesh,
    *,
    whole: bool,
    loaders: Sequence[Loader],
    workdir: os.PathLike | str,
    pause: Callable[[], None],
) -> Annotators:
    """Builds what adds the reference's columns.

    Args:
      config: of the run.
      policy: whose folder the reference is by default.
      built: the mesh.
      whole: whether a loss needs the reference's whole distribution.
      loaders: whose batches will be annotated.
      workdir: the run folder.
      pause: called between the forward passes that fill the cache; may raise.

    Raises:
      ModelError: if the reference cannot be used.
      WriteError: if the cache cannot be written.
    """
    live = model_wiring.make_reference(config, policy, built, whole=whole)
    if live is None:
        return NONE
    if config.ref.mode != "cached":
        return Annotators(as_it_is, annotate.reference(live.score), live)
    steps = [
        Step(loads, number, keys_at(loads, number))
        for loads in loaders
        for number in range(len(loads))
    ]
    if not steps:
        return NONE
    cache = Cache(config, live, built, steps, pause)
    entries = cache.complete(cache_folder(config, workdir))
    fill = functools.partial(cache_lib.fill, entries=entries)
    return Annotators(fill, annotate.nothing, None)


def cache_folder(config: Config, workdir: os.PathLike | str) -> epath.Path:
    """Says where the caches of all references lie."""
    if config.ref.cache_dir:
        return epath.Path(config.ref.cache_dir)
    return epath.Path(workdir).parent / FOLDER


def keys_at(loads: Loader, step: int) -> list[bytes]:
    """Returns the keys of all responses of a step."""
    return [key for r in loads.records_at(step) for key in cache_lib.keys_of(r)]


def identity_of(config: Config, reference: Reference) -> dict[str, Any]:
    """Says what the log-probs depend on besides the tokens, and nothing else."""
    model, spec = reference.model, reference.model.spec
    scaling = spec.rope_scaling
    by_length = scaling is not None and scaling.kind in BY_LENGTH
    dtype = config.ref.dtype or config.model.dtype
    return {
        "format": cache_lib.FORMAT,
        "weights": weights_of(model, reference.params),
        "spec": repr(spec),
        "dtype": dtype,
        "attention": attention.resolve(
            config.model.attention, dtype=dtype, softcap=spec.attn_softcap
        ),
        "length": config.data.max_tokens if by_length else 0,
    }


def weights_of(model: Model, params: Params) -> dict[str, str]:
    """Returns the SHA-256 of each weight file, or of all that was drawn."""
    if model.folder is not None:
        names = [file.name for file in files.weight_files(model.folder)]
        found = manifest.hash_files(epath.Path(model.folder), names)
        return {name: entry["sha256"] for name, entry in found.items()}
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(f"{rules.path_name(path)} {leaf.dtype} {leaf.shape}".encode())
        digest.update(np.ascontiguousarray(on_host(leaf)).tobytes())
    return {"drawn": digest.hexdigest()}


def on_host(leaf: jax.Array) -> np.ndarray:
    """Copies an array to every host."""
    if leaf.is_fully_addressable:
        return np.asarray(leaf)
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))


def agreed(value: Array) -> np.ndarray:
    """Returns what process 0 holds, to all."""
    return np.asarray(multihost_utils.broadcast_one_to_all(np.asarray(value)))


class Cache:
    """Brings the cache of a reference up to what a run needs, while it is loaded."""

    def __init__(
        self,
        config: Config,
        live: Reference,
        built: Mesh,
        steps: Sequence[Step],
        pause: Callable[[], None],
    ):
        """Asks for the reference's identity; touches no cache.

        Raises:
          ModelError: if processes read different weights.
        """
        self._live, self._steps, self._pause = live, steps, pause
        self._place = arrays.row_sharding(built, leading=1)
        self._identity = identity_of(config, live)
        self._tolerance = TOLERANCES[self._identity["dtype"]]
        self._wanted = {key for step in steps for key in step.keys}
        mine = np.frombuffer(cache_lib.name_of(self._identity).encode(), np.uint8)
        if not np.array_equal(agreed(mine), mine):
            raise ModelError(
                f"{live.model.folder}: processes read different weights of the "
                "reference; give all the same files"
            )

    def complete(self, cache: epath.Path) -> Entries:
        """Reads the entries of all steps; scores and writes those that are missing.

        Args:
          cache: the folder of all references' caches.

        Raises:
          ModelError: if what was just written does not agree with live scores.
        """
        store = Store(cache_lib.newest_folder(cache, self._identity), self._wanted)
        store.refresh()
        self._tell(cache, store)
        sample = self._sample(store)
        if sample is not None and self._doubt(store, sample):
            store = Store(cache_lib.next_folder(store.folder), self._wanted)
            logging.error("reference cache: all is computed again in %s", store.folder)
            sample = None
        self._score_missing(store)
        multihost_utils.sync_global_devices("reference cache written")
        store.refresh()
        if store.missing():
            raise ModelError(
                f"{store.folder}: {store.missing()} responses are missing right after "
                "they were written; ref.cache_dir must be one folder that all "
                "processes share"
            )
        doubt = self._doubt(store, self._steps[0]) if sample is None else ""
        if doubt:
            raise ModelError(f"{store.folder}: {doubt}; set ref.mode='live'")
        return store.entries

    def _tell(self, cache: epath.Path, store: Store) -> None:
        """Says what was found, and in what other caches differ."""
        wanted = len(self._wanted)
        logging.info(
            "reference cache: %d of %d responses found in %s",
            wanted - store.missing(),
            wanted,
            store.folder,
        )
        others = cache_lib.differences(cache, self._identity)
        if others and not store.entries:
            logging.warning(
                "reference cache: %s holds other references, left alone; they differ "
                "from this one in: %s",
                cache,
                "; ".join(others),
            )

    def _sample(self, store: Store) -> Step | None:
        """Finds the first step with entries that were on disk; None without one."""
        known = [any(key in store.entries for key in s.keys) for s in self._steps]
        first = int(agreed(np.int32(known.index(True) if any(known) else -1)))
        return None if first < 0 else self._steps[first]

    def _doubt(self, store: Store, step: Step) -> str:
        """Compares entries with a step's pairs scored live; '' if they agree."""
        found = cache_lib.compare(store.entries, self._scored(step))
        gaps = np.array([found.mean], np.float32)
        worst = np.nanmax([0.0, *multihost_utils.process_allgather(gaps).flat])
        told = (
            f"{found.responses} responses scored live differ from the cache by "
            f"{found.mean:.2g} nats a token, at most {found.largest:.2g} (allowed: "
            f"{self._tolerance:g} on average)"
        )
        if worst <= self._tolerance:
            logging.info("reference cache: %s", told)
            return ""
        logging.error(
            "reference cache: %s is not to be trusted and left as it is: %s",
            store.folder,
            told,
        )
        return told

    def _scored(self, step: Step) -> Entries:
        """Scores this host's rows of a step under the reference."""
        rows = step.rows()
        batch = arrays.to_global(rows, self._place)
        scored = self._live.score(self._live.params, batch)["ref_logps"]
        return cache_lib.split(rows, arrays.to_local(scored, self._place))

    def _score_missing(self, store: Store) -> None:
        """Runs the reference over the steps that hold a response not yet known."""
        due = self._due(store)
        if not due:
            return
        if jax.process_index() == 0:
            store.write_identity(self._identity)
        logging.info(
            "reference cache: %d forward passes score the %d missing responses",
            len(due),
            store.missing(),
        )
        with Writer(store, shard_tokens=cache_lib.SHARD_TOKENS) as writer:
            for step in due:
                self._pause()
                scored = self._scored(step)
                new = {k: v for k, v in scored.items() if k not in store.entries}
                writer.add(new)

    def _due(self, store: Store) -> list[Step]:
        """Lists the steps to run, each missing response in one of them at least."""
        known, mask = set(store.entries), np.zeros(len(self._steps), np.int32)
        for at, step in enumerate(self._steps):
            if not known.issuperset(step.keys):
                mask[at] = 1
                known.update(step.keys)
        return [s for s, run in zip(self._steps, agreed(mask), strict=True) if run]
