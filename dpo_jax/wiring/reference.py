"""How batches get the reference's columns: asked on the device, or from the cache.

`ref.mode=cached` loads the reference once at the start of a launch: to compare entries
of the cache with pairs scored live, and to score what the cache lacks. Then its
parameters are let go, and its log-probs are a column of the records.
"""

import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from dpo_jax import roles
from dpo_jax.data import layouts, ref_cache
from dpo_jax.data.loader import Loader
from dpo_jax.data.ref_cache import Entries, Store
from dpo_jax.errors import ModelError
from dpo_jax.models import attention, files
from dpo_jax.sharding import arrays, rules
from dpo_jax.train import annotate, manifest
from dpo_jax.types import Array, Frozen, Params
from dpo_jax.wiring import making, weights
from dpo_jax.wiring.data import folder_beside
from dpo_jax.wiring.model import Ask, Model

FOLDER = "ref_cache"  # beside the run folder, so that the runs of a sweep share it
BY_LENGTH = ("dynamic", "longrope")  # rope scalings that read data.max_tokens
TOLERANCES = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 5e-2}  # nats a token, mean
SAMPLED_STEPS = 3  # whose known entries are compared with live scores


class Referred(NamedTuple):
    """Where the steps and the evaluation of a run get the reference's columns.

    Attributes:
      frozen: `ref`, where a reference that does not move is held, beside what was.
      annotate: adds the columns on the device, where they are not in the records.
      train: batches of training; None where none are asked for.
      eval: batches of evaluation, likewise.
    """

    frozen: Frozen
    annotate: annotate.Annotate
    train: Loader | None
    eval: Loader | None


class Step(NamedTuple):
    """A step of a loader, and the keys of the responses in it."""

    loads: Loader
    number: int
    keys: list[bytes]


def refer(
    reference: Model | None,
    mesh: Mesh,
    *,
    ref: Mapping[str, Any],
    seed: int,
    score: Ask | None,
    train: Loader | None,
    held_out: Loader | None,
    workdir: os.PathLike | str,
    frozen: Frozen,
) -> Referred:
    """Loads the reference, or brings its cache up to what the batches need.

    Args:
      reference: its model; None without one.
      mesh: of the run.
      ref: `config.ref`.
      seed: of weights that are drawn.
      score: of the reference; None without one.
      train: batches of training.
      held_out: batches of evaluation.
      workdir: the run folder.
      frozen: with the `base` that it shares with the policy, where it does.

    Raises:
      ModelError: if the reference cannot be used.
      WriteError: if the cache cannot be written.
    """
    if reference is None or score is None:
        return Referred(frozen, annotate.nothing, train, held_out)
    if ref["sync_every_steps"]:  # it moves, so the train state holds it
        return Referred(frozen, annotate.reference(score), train, held_out)
    own = weights.own_params(reference, mesh, seed=seed)
    if ref["mode"] == "live":
        frozen = {**frozen, "ref": own} if own else frozen
        return Referred(frozen, annotate.reference(score), train, held_out)
    params = roles.whole(own, frozen)
    steps = [
        Step(loads, number, keys_at(loads, number))
        for loads in (train, held_out)
        if loads is not None
        for number in range(len(loads))
    ]
    entries = Entries()
    if steps:
        ask = functools.partial(score, params)
        cache = CacheFiller(identity_of(reference, params), ask, mesh, steps)
        folder = folder_beside(workdir, FOLDER, ref["cache_dir"])
        assert folder is not None, "a run has a folder"
        entries = cache.complete(folder)
    logps = functools.partial(ref_cache.logps_of, entries=entries)
    train, held_out = (
        None if loads is None else loads.with_tokens("ref_logps", logps)
        for loads in (train, held_out)
    )
    return Referred(frozen, annotate.nothing, train, held_out)


def keys_at(loads: Loader, step: int) -> list[bytes]:
    """Returns the keys of all responses of a step."""
    return [key for r in loads.records_at(step) for key in ref_cache.keys_of(r)]


def identity_of(reference: Model, params: Params) -> dict[str, Any]:
    """Says what the log-probs depend on besides the tokens, and nothing else."""
    decoder, scaling = reference.decoder, reference.spec.rope_scaling
    by_length = scaling is not None and scaling.kind in BY_LENGTH
    dtype = decoder.dtype.name
    return adapters_identity(reference) | {
        "format": ref_cache.FORMAT,
        "weights": weights_of(reference, params),
        "spec": repr(reference.spec),
        "dtype": dtype,
        "attention": attention.resolve(
            decoder.attention, dtype=dtype, softcap=reference.spec.attn_softcap
        ),
        "length": decoder.length if by_length else 0,
    }


def adapters_identity(reference: Model) -> dict[str, Any]:
    """Says what log-probs depend on besides, where there are adapters; not if fresh."""
    adapters = reference.adapters
    if adapters is None or adapters.folder is None:
        return {}
    hashes = manifest.hash_files(epath.Path(adapters.folder), [files.ADAPTER_WEIGHTS])
    return {
        "adapters": {name: entry["sha256"] for name, entry in hashes.items()},
        "scales": repr(adapters.scales),
    }


def weights_of(model: Model, params: Params) -> dict[str, str]:
    """Returns the SHA-256 of each weight file, or of all that was drawn."""
    if model.folder is not None:
        names = [file.name for file in files.weight_files(model.folder)]
        hashes = manifest.hash_files(epath.Path(model.folder), names)
        return {name: entry["sha256"] for name, entry in hashes.items()}
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(f"{rules.path_name(path)} {leaf.dtype} {leaf.shape}".encode())
        digest.update(np.ascontiguousarray(arrays.to_every_host(leaf)).tobytes())
    return {"drawn": digest.hexdigest()}


def agreed(value: Array) -> np.ndarray:
    """Returns what process 0 holds, to all."""
    return np.asarray(multihost_utils.broadcast_one_to_all(np.asarray(value)))


class CacheFiller:
    """Brings the cache of a reference up to what a run needs, while it is loaded."""

    def __init__(
        self,
        identity: dict[str, Any],
        ask: Callable[[Any], annotate.TokenColumns],
        mesh: Mesh,
        steps: Sequence[Step],
    ):
        """Touches no cache yet.

        Args:
          identity: of the reference.
          ask: jitted, what the reference says of a batch.
          mesh: of the run.
          steps: whose responses are wanted.

        Raises:
          ModelError: if processes read different weights.
        """
        self._identity, self._ask, self._steps = identity, ask, steps
        self._place = arrays.row_sharding(mesh, leading=1)
        self._tolerance = TOLERANCES[identity["dtype"]]
        self._wanted = {
            key: int(scored.sum())
            for loads, number, _ in steps
            for record in loads.records_at(number)
            for key, scored in zip(
                ref_cache.keys_of(record), layouts.scored_of(record), strict=True
            )
        }
        mine = np.frombuffer(ref_cache.name_of(identity).encode(), np.uint8)
        if not np.array_equal(agreed(mine), mine):
            raise ModelError(
                "processes read different weights of the reference; give all the same "
                "files"
            )

    def complete(self, cache: epath.Path) -> Entries:
        """Reads the entries of all steps; scores and writes those that are missing.

        Args:
          cache: the folder of all references' caches.

        Raises:
          ModelError: if what was just written does not agree with live scores.
        """
        store = Store(ref_cache.newest_folder(cache, self._identity), self._wanted)
        store.refresh()
        self._tell(cache, store)
        sample = self._sample(store)
        if sample and self._doubt(store, sample):
            store = Store(ref_cache.next_folder(store.folder), self._wanted)
            logging.error("reference cache: all is computed again in %s", store.folder)
            sample = []
        with making.alone(store.folder, lambda: not self._missing(store)) as beat:
            self._score_missing(store, beat)
        multihost_utils.sync_global_devices("reference cache written")
        store.refresh()
        if store.missing():
            raise ModelError(
                f"{store.folder}: {store.missing()} responses are missing right after "
                "they were written; ref.cache_dir must be one folder that all "
                "processes share"
            )
        doubt = "" if sample else self._doubt(store, self._steps[:1])
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
        others = ref_cache.differences(cache, self._identity)
        if others and not store.entries:
            logging.warning(
                "reference cache: %s holds other references, left alone; they differ "
                "from this one in: %s",
                cache,
                "; ".join(others),
            )

    def _sample(self, store: Store) -> list[Step]:
        """Picks steps with entries that were on disk, spread over all; [] of none."""
        known = [
            at
            for at, step in enumerate(self._steps)
            if any(key in store.entries for key in step.keys)
        ]
        places = np.linspace(0, len(known) - 1, SAMPLED_STEPS).round().astype(int)
        spread = [known[place] for place in places] if known else [-1] * SAMPLED_STEPS
        of_first = agreed(np.array(spread, np.int32)).tolist()
        return [self._steps[at] for at in sorted({*of_first} - {-1})]

    def _doubt(self, store: Store, sample: Sequence[Step]) -> str:
        """Compares entries with steps' pairs scored live; '' if they agree."""
        live: Entries = {}
        for step in sample:
            live |= self._scored(step)
        agreement = ref_cache.compare(store.entries, live)
        mean = agreement.mean if agreement.responses else 0.0  # another disk's entries
        worst = multihost_utils.process_allgather(np.array([mean], np.float32)).max()
        told = (
            f"{agreement.responses} responses scored live differ from the cache by "
            f"{agreement.mean:.2g} nats a token, at most {agreement.largest:.2g} "
            f"(allowed: {self._tolerance:g} on average)"
        )
        if worst <= self._tolerance:  # false of NaN
            logging.info("reference cache: %s", told)
            return ""
        logging.error(
            "reference cache: %s is not to be trusted and left as it is: %s",
            store.folder,
            told,
        )
        return told

    def _scored(self, step: Step) -> Entries:
        """Scores a step under the reference; every process gets all its responses."""
        batch = arrays.to_global(step.loads.batch_at(step.number), self._place)
        column = arrays.to_every_host(self._ask(batch)["ref_logps"])
        return {
            ref_cache.keys_of(record)[which]: column[at].copy()
            for record, which, at in step.loads.responses_at(step.number)
        }

    def _missing(self, store: Store) -> int:
        """Reads what other runs have written; counts what is missing still."""
        if store.missing():
            store.refresh()
        return store.missing()

    def _score_missing(self, store: Store, beat: Callable[[], object]) -> None:
        """Runs the reference over the steps that hold a response not yet known.

        Args:
          store: of its entries.
          beat: is called before each step.
        """
        store.refresh()  # of who was waited for
        due = self._due(store)
        if not due:
            return
        first = jax.process_index() == 0
        if first:
            store.write_identity(self._identity)
        logging.info(
            "reference cache: %d forward passes score the %d missing responses",
            len(due),
            store.missing(),
        )
        with ref_cache.writer(store, shard_tokens=ref_cache.SHARD_TOKENS) as add:
            for step in due:
                beat()
                scored = self._scored(step)
                new = {k: v for k, v in scored.items() if k not in store.entries}
                if first:
                    add(new)

    def _due(self, store: Store) -> list[Step]:
        """Lists the steps to run, each missing response in one of them at least."""
        known, mask = set(store.entries), np.zeros(len(self._steps), np.int32)
        for at, step in enumerate(self._steps):
            if not known.issuperset(step.keys):
                mask[at] = 1
                known.update(step.keys)
        return [s for s, run in zip(self._steps, agreed(mask), strict=True) if run]
