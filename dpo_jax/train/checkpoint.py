"""Checkpoints that are verified before they are trusted.

The only module that imports orbax. A step folder `N/` is written by orbax; when orbax
has committed it, the manifest (see `manifest.py`) is written last, with the shapes and
dtypes of the leaves, `meta` and `metrics`; old steps go after that. Knows nothing of
models, data or the loop. On a pod every process makes the same calls, and process 0
alone writes manifests, renames and deletes.

A state is stored as the flat mapping from path (`params/w`, `opt_state/0/mu/w`) to
leaf; its types come back from the abstract state that a restore is given. Leaves
without elements are only described.
"""

import json
import os
import threading
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from dpo_jax.config import best_of
from dpo_jax.errors import (
    ConfigError,
    LeaseLostError,
    ModelError,
    RunFolderError,
    WriteError,
    unknown,
)
from dpo_jax.files import is_local, set_aside
from dpo_jax.sharding.agree import agreed
from dpo_jax.train import published, watchdog
from dpo_jax.train.hashing import hashed
from dpo_jax.train.leaves import (
    Description,
    check_same,
    describe,
    empty,
    explained,
    flat,
    placed,
)
from dpo_jax.train.manifest import (
    PARAMS,
    clear_leftovers,
    give_up,
    is_committed,
    is_foreign,
    newest_verified,
    prune,
    read_manifest,
    step_folders,
    write_manifest,
)
from dpo_jax.train.published import Pointer
from dpo_jax.types import Params, TrainState

EXIT_SECONDS = 10.0  # for a save in flight, where one of several processes fails
CRITIC = "params/value/"  # what is trained beside the policy
MAX_STEP = 2**31 - 1  # steps travel between processes as int32


class Checkpoints:
    """The checkpoints of one run; saves run in the background.

    One save is in flight at most. Every way out of a run must pass through `wait` (or
    leave the `with` block): only then is the last save committed.
    """

    def __init__(
        self,
        folder: os.PathLike | str,
        *,
        every_steps: int,
        keep: int,
        keep_best: str = "",
        after: str = "all",
        attempt: int = 0,
    ):
        """Touches nothing on disk.

        Args:
          folder: where the step folders lie; may be `gs://…`.
          every_steps: steps between saves, for `due`; 0 = only when asked.
          keep: how many of the newest steps are kept.
          keep_best: metric whose best step is kept as well, as `config.best_of` reads
            it; '' = none.
          after: what is kept once the run is done: `all`, `params` or `none`.
          attempt: the number of the lease of a run on gs://; steps are saved below it
            and published (see `published.py`). 0 = on a disk, and to read.
        """
        self._folder = epath.Path(folder)
        if is_local(self._folder):
            self._folder = self._folder.absolute()  # orbax refuses relative paths
        self._every_steps = every_steps
        self._keep = keep
        self._keep_best = best_of(keep_best)
        self._after = after
        self._attempt = attempt
        self._pointer = Pointer(self._folder, attempt) if attempt else None
        self._cleared = False
        self._saves = 0  # asked for, the same on all processes
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or jax.process_count() == 1:
            self.wait()
        elif self._thread is not None:  # the others may be in another collective
            self._thread.join(EXIT_SECONDS)

    def due(self, step: int) -> bool:
        """Says whether `step` is one of those that are saved on schedule."""
        return self._every_steps > 0 and step % self._every_steps == 0

    def committed_steps(self) -> list[int]:
        """Lists the steps whose manifest stands, ascending; verifies nothing."""
        return sorted(
            step
            for step, path in step_folders(self._folder).items()
            if is_committed(path)
        )

    def save(
        self,
        step: int,
        state: TrainState | dict[str, Params],
        meta: dict[str, Any],
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Starts saving `state` as `step`; returns once it is copied off the device.

        Waits for the save before. A step that is already committed stays as it is (a
        state is a function of its step); what a killed save left is overwritten.

        Args:
          step: optimizer steps taken.
          state: jax arrays, sharded or not; may be donated after the call.
          meta: JSON, comes back from `restore`.
          metrics: what `keep_best` compares; None where nothing was measured.

        Raises:
          WriteError: if this save cannot start, or the one before failed.
          ConfigError: if `metrics` are given but lack `keep_best`.
        """
        assert 0 <= step <= MAX_STEP, step
        self.wait()
        self._check_metrics(metrics)
        self._saves += 1
        if agreed(lambda: is_committed(self._at(step))):
            logging.info("step %d is already committed; kept as it is", step)
            return
        leaves = flat(state)
        record = {
            "step": step,
            "meta": json.loads(json.dumps(meta)),
            "metrics": {k: float(v) for k, v in (metrics or {}).items()},
            "arrays": describe(leaves),
        }
        full = {k: x for k, x in leaves.items() if x.size}
        needed = sum(x.nbytes for x in full.values())
        path = self._folder / self._place(step)
        try:
            agreed(lambda: self._prepare(path))
            with _uncompressed():
                response = ocp.save_async(path, full, overwrite=True)
        except Exception as error:
            told = explained(error, path, needed)
            if told is error:
                raise
            raise told from error
        self._thread = threading.Thread(
            target=self._finish, args=(response, path, record, needed)
        )
        self._thread.start()

    def wait(self) -> None:
        """Waits until the save in flight is committed, on every process.

        Raises:
          WriteError: if it could not be written, here or on another process.
        """
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        failure, self._failure = self._failure, None
        if jax.process_count() > 1:
            failed = multihost_utils.process_allgather(np.int32(failure is not None))
            if failure is None and np.any(failed):
                failure = WriteError(
                    f"{self._folder}: process {int(np.argmax(failed))} could not "
                    "write its part of the checkpoint; see its errors/"
                )
        if failure is not None:
            raise failure

    def finish(self, step: int, params: Params | None) -> None:
        """Gives up, once the run is done, what it is not to keep.

        `params` are those after the last step; None where they are not at hand. Where
        something cannot be written (WriteError) nothing is deleted.
        """
        self.wait()
        if self._after == "params" and params is not None:
            folder, attempt = self._folder / PARAMS, self._attempt
            with Checkpoints(folder, every_steps=0, keep=1, attempt=attempt) as apart:
                apart.save(step, {"params": params}, {})
        if jax.process_index() == 0:
            give_up(self._folder, self._after, self._pointer)

    def newest_verified(self, *, rename: bool = True) -> int | None:
        """Finds the newest step whose files match its manifest.

        Newer steps that fail are renamed to `N.corrupt`, never deleted, and only if
        an older one is sound; folders that were never committed are left alone.

        Args:
          rename: whether those that fail are renamed; a mere reader leaves them.

        Returns:
          The step; None if nothing was ever committed.

        Raises:
          ModelError: if steps were committed and all are corrupt.
        """
        step = agreed(lambda: self._newest(rename))
        return None if step is None else int(step)

    def _newest(self, rename: bool) -> int | None:
        if self._pointer is not None:
            self._pointer.take()
        return newest_verified(self._folder, rename=rename, pointer=self._pointer)

    def _place(self, step: int) -> str:
        """Names the folder in which a step is saved."""
        named = f"{published.name_of(self._attempt)}/" if self._attempt else ""
        return f"{named}{step}"

    def _at(self, step: int) -> epath.Path:
        """Finds the folder of a step."""
        plain = self._folder / str(step)
        return plain if plain.exists() else step_folders(self._folder).get(step, plain)

    def restore(
        self, step: int, abstract_state: TrainState
    ) -> tuple[TrainState, dict[str, Any]]:
        """Reads a whole state onto any devices.

        Args:
          step: a verified step.
          abstract_state: `jax.ShapeDtypeStruct` leaves with `sharding`; the result
            has its types, shapes, dtypes and shardings.

        Returns:
          (state, the `meta` it was saved with).

        Raises:
          RunFolderError: if it is of a version whose loss kept other statistics.
          ModelError: if leaves are missing, are left over, or differ in shape or
            dtype (nothing is cast), or if the step cannot be read.
          ConfigError: if it was evaluated and `keep_best` is none of its metrics.
        """
        path = self._at(step)
        record = read_manifest(path)
        self._check_metrics(record["metrics"])
        kept = {k for k in flat(abstract_state) if k.startswith("stats/")}
        if new := sorted(kept - record["arrays"].keys()):
            names = ", ".join(name.removeprefix("stats/") for name in new)
            raise RunFolderError(
                f"{path} is of version {record['meta'].get('version')}, in which the "
                f"loss did not keep {names}; choose another --workdir"
            )
        state = _load(path, record["arrays"], abstract_state, record["arrays"])
        return state, record["meta"]

    def restore_params(self, step: int, abstract_params: Params) -> Params:
        """Reads the parameters of a state and nothing else.

        Args:
          step: a verified step.
          abstract_params: `jax.ShapeDtypeStruct` leaves with `sharding`.

        Raises:
          ModelError: as `restore`, of the parameters alone.
        """
        path = self._at(step)
        arrays = read_manifest(path)["arrays"]
        params = {
            key: array
            for key, array in arrays.items()
            if key.startswith("params/") and not key.startswith(CRITIC)
        }
        return _load(path, arrays, {"params": abstract_params}, params)["params"]

    def _check_metrics(self, metrics: dict[str, float] | None) -> None:
        """Raises ConfigError if there are metrics but not the one compared."""
        name = self._keep_best[0]
        always = "rollouts/length" if name.startswith("rollouts/") else "loss"
        if name and metrics and always in metrics and name not in metrics:
            raise ConfigError(unknown("checkpoint.keep_best", name, metrics))

    def _prepare(self, path: epath.Path) -> None:
        """Makes room for a step: the folder, what a killed save left; on process 0."""
        if os.path.lexists(path) and is_foreign(path):
            logging.warning("%s becomes %s", path, set_aside(path).name)
        if not self._cleared:
            self._folder.mkdir(parents=True, exist_ok=True)
            clear_leftovers(self._folder)
            if self._pointer is not None:
                self._pointer.take()
                published.clear(self._folder, self._attempt)
        self._cleared = True

    def _finish(
        self, response: Any, path: epath.Path, record: dict, needed: int
    ) -> None:
        """Waits for orbax and commits; in the background, so faults are kept."""
        try:
            response.result()  # returns when every process has written its part
            watchdog.beat()
            hashes = hashed(path, record["step"], self._saves)
            if jax.process_index() == 0:
                write_manifest(path, {**record, "files": hashes})
                step, pointer = record["step"], self._pointer
                if pointer is not None:
                    pointer.change(add={step: self._place(step)})
                logging.info("step %d committed", step)
                prune(
                    self._folder,
                    keep=self._keep,
                    keep_best=self._keep_best,
                    pointer=pointer,
                )
        except Exception as error:
            lost = isinstance(error, LeaseLostError)
            self._failure = error if lost else explained(error, path, needed)
            if jax.process_index() == 0:
                clear_leftovers(self._folder)  # gives a full disk its space back


def _uncompressed() -> ocp.Context:
    """Stores arrays as they are: zstd costs four times the CPU and saves a fifth."""
    context = ocp.Context()
    context.array.saving.use_compression = False
    return context


def _load(path: epath.Path, arrays: Description, wanted: Any, due: Description) -> Any:
    """Reads `wanted`, which must be those of the stored arrays that are `due`.

    Statistics that the run keeps none of are left out: no loss reads them (the first
    edition kept those of `bco_pair` under `baseline='none'`).
    """
    leaves = flat(wanted)
    idle = {k for k in due.keys() - leaves.keys() if k.startswith("stats/")}
    check_same(path, {k: due[k] for k in due.keys() - idle}, describe(leaves))
    # Leaves without elements were not stored; all other paths must be named.
    target = {
        k: placed(leaves[k]) if k in leaves else ocp.PLACEHOLDER
        for k, (shape, _) in arrays.items()
        if 0 not in shape
    }
    try:
        loaded = ocp.load(path, target)
    except Exception as error:
        cause = error.__cause__ or error
        raise ModelError(
            f"{path} cannot be restored: {type(cause).__name__}: {cause}; "
            "use another step"
        ) from error
    values = [loaded[k] if k in loaded else empty(x) for k, x in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(wanted), values)
