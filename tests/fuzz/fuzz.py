"""Feeds mutated inputs to the verbs and counts what comes of them.

    make fuzz SEED=0 N=1000                 # inputs, over all kinds
    make fuzz SEED=0 KINDS=template,weights
    make fuzz SEED=0 ONLY="template/17"     # one of them again, its files are kept

Each input is made and read in a process of its own, of 60 seconds and 2 GB: mostly in
one that is forked from a process that has imported everything, one in 20 by a new
Python (`--cold=1`: all of them). It fails if any of them ended in a traceback, took
too much of either, or was taken although damaged; those are kept in build/fuzz, beside
ends.tsv, a line for each input.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def main() -> int:
    """Sets what jax and others read when they are imported, and starts."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    os.environ |= {
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "fuzz"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    import fuzz_run

    return fuzz_run.main()


if __name__ == "__main__":
    sys.exit(main())
