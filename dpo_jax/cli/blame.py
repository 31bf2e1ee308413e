"""Which errors of libraries are those of a user's machine, and not of this program."""

import errno
import os
import traceback
from pathlib import Path

from dpo_jax.errors import ConfigError, DeviceError, ModelError, UserError

PACKAGE = Path(__file__).parent.parent
PLATFORMS = "JAX_PLATFORMS"
SMALLER = (
    "raise batch.microbatches, lower data.max_tokens, or set model.remat='block', "
    "model.dtype='bfloat16' or more of mesh.fsdp"
)
OF_STORES = {"fsspec", "gcsfs", "s3fs", "adlfs", "huggingface_hub", "aiohttp", "etils"}
STORES = "give a local path, or one of gs://, s3://, az://, hf://"
OF_PATHS = (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EMFILE)
BEING_IMPORTED = "<module>"  # the name of a frame


def of_panic(error: BaseException) -> UserError | None:
    """Explains what a library in Rust raised in the place of an exception.

    Args:
      error: that nothing has caught.

    Returns:
      An error of the user's; None where no library has panicked.
    """
    if type(error).__module__ != "pyo3_runtime":
        return None
    told = str(error)[:300]
    return ModelError(
        f"tokenizers or safetensors cannot go on ({told}); look at the files of "
        "tokenizer.path and model.path"
    )


def of_machine(error: Exception) -> UserError | None:
    """Explains what a library raised because of what is installed, or set around it.

    Args:
      error: that nothing has caught.

    Returns:
      The same as an error of the user's; None where it is one of this program.
    """
    said = f"{type(error).__name__}: {error}"
    if "Unable to initialize backend" in str(error):
        said, platforms = f"jax finds no devices ({error})", os.environ.get(PLATFORMS)
        return DeviceError(
            f"{said}; {PLATFORMS}={platforms!r} names those it looks for"
        )
    if "RESOURCE_EXHAUSTED" in str(error) or isinstance(error, MemoryError):
        return DeviceError(f"the memory is full ({said}); {SMALLER}")
    if isinstance(error, OSError) and error.errno in OF_PATHS:
        shown = str(error.filename)
        shown = shown if len(shown) < 200 else f"{shown[:200]}…"
        return ConfigError(
            f"{shown!r} cannot be opened: {error.strerror}; name another"
        )
    if isinstance(error, ImportError) and not (error.name or "").startswith("dpo_jax"):
        return ConfigError(f"a library is missing ({said}); install it")
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if PACKAGE not in Path(frame.filename).parents
    ]
    if isinstance(error, KeyError) and str(error).endswith("://'"):
        return ConfigError(f"no files are read or written at {error}…; {STORES}")
    where = Path(frames[-1].filename).parts if frames else ()
    if isinstance(error, (ValueError, OSError)) and OF_STORES.intersection(where):
        return ConfigError(f"a path cannot be used ({said}); {STORES}")
    if BEING_IMPORTED not in [frame.name for frame in frames]:
        return None
    named = [
        name
        for name, value in os.environ.items()
        if name in str(error) or (value and repr(value)[1:-1] in str(error).split("'"))
    ]
    look = ", ".join(named) or "the environment"
    return ConfigError(f"a library cannot be imported ({said}); look at {look}")
