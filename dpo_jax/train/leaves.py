"""The leaves of a state by path: what they are, whether they fit, why not written."""

import errno
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from dpo_jax.errors import ModelError, WriteError
from dpo_jax.sharding.rules import path_name

# orbax wraps what the system says into other classes; the words survive.
FULL = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)))
REFUSED = tuple(map(os.strerror, (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)))

Description = dict[str, list]  # path -> [shape, dtype name]


def flat(tree: Any) -> dict[str, Any]:
    """Maps paths to the leaves of a tree."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
    leaves = {path_name(keys): leaf for keys, leaf in pairs}
    assert len(leaves) == len(pairs), "two leaves have the same path"
    return leaves


def describe(leaves: dict[str, Any]) -> Description:
    """Says shape and dtype of each leaf, as JSON."""
    return {k: [list(x.shape), np.dtype(x.dtype).name] for k, x in leaves.items()}


def check_same(path: epath.Path, stored: Description, wanted: Description) -> None:
    """Raises ModelError with the names of all leaves that differ."""

    def says(entry: list) -> str:
        return f"{entry[1]}{entry[0]}"

    wrong = [
        f"{k} is {says(stored[k])} on disk, {says(wanted[k])} in this run"
        for k in sorted(stored.keys() & wanted.keys())
        if stored[k] != wanted[k]
    ]
    wrong += [f"{k} is not on disk" for k in sorted(wanted.keys() - stored.keys())]
    wrong += [f"{k} is not in this run" for k in sorted(stored.keys() - wanted.keys())]
    if wrong:
        raise ModelError(
            f"{path} does not fit this run, {len(wrong)} leaves differ; restore it "
            "with the model, optimizer and dtypes it was saved with: "
            f"{'; '.join(wrong)}"
        )


def explained(error: Exception, path: epath.Path, needed: int) -> Exception:
    """Turns a fault of the file system into a WriteError; leaves others as they are."""
    seen: BaseException | None = error
    while seen is not None:
        words = next((w for w in (*FULL, *REFUSED) if w in str(seen)), "")
        if words or isinstance(seen, OSError):
            reason = words or str(seen)
            free = "free some space or " * (reason in FULL)
            return WriteError(
                f"cannot write the checkpoint {path}: {reason}; it needs about "
                f"{needed} bytes; {free}use another --workdir"
            )
        seen = seen.__cause__ or seen.__context__
    return error


def placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Gives a leaf without sharding to the first local device."""
    if leaf.sharding is not None:
        return leaf
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def empty(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """Makes a leaf without elements."""
    return jax.device_put(jnp.zeros(leaf.shape, leaf.dtype), placed(leaf).sharding)
