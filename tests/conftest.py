"""Eight fake CPU devices, no network, and a compile cache shared by all tests."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import jax
import pytest

ROOT = Path(__file__).parent.parent
CACHE = ROOT / ".cache" / "jax"

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture
def shared() -> Path:
    """The folder of goldens and real data; skips where there is none."""
    folder = os.environ.get("DPO_JAX_SHARED", "")
    if not folder:
        pytest.skip("DPO_JAX_SHARED is not set")
    return Path(folder)
