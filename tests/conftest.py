"""Eight fake CPU devices, no network, and a compile cache shared by all tests.

Compiling takes longer than anything else here, so XLA is told to be quick about it, in
the processes that tests start as well. What is compared with other libraries, and what
runs nightly, is compiled as users compile it: `XLA_FLAGS=` in the Makefile.
"""

import os
from importlib import metadata
from pathlib import Path

os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    # twice as fast to compile; later versions of jax do not know the flag
    + " --xla_cpu_use_fusion_emitters=false"
    * metadata.version("jax").startswith("0.10."),
)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import jax
import pytest
from etils import epath
from etils.epath import backend
from fake_gcs import FakeStore
from fsspec.implementations import memory

from dpo_jax import gcs
from dpo_jax.train import compile_cache

ROOT = Path(__file__).parent.parent
CACHE = ROOT / ".cache" / "jax"

jax.config.update("jax_num_cpu_devices", 8)
compile_cache.use(CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture
def shared() -> Path:
    """The folder of goldens and real data; skips where there is none."""
    folder = os.environ.get("DPO_JAX_SHARED", "")
    if not folder:
        pytest.skip("DPO_JAX_SHARED is not set")
    return Path(folder)


@pytest.fixture
def quick_compilations():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def in_float64():
    with jax.enable_x64(True):
        yield


class Store(memory.MemoryFileSystem):
    """An object store: no append, no rename, each object put once or replaced whole."""

    protocol = ("gcs", "gs")
    cachable = False

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("gs:/"))

    def _open(self, path, mode="rb", **options):
        if mode not in ("rb", "wb"):
            raise AssertionError(f"{path} is opened with mode {mode!r}")
        return super()._open(path, mode, **options)

    def mv(self, *arguments, **options):
        raise AssertionError(f"renamed {arguments}")

    mv_file = rename = move = mv


@pytest.fixture
def store(monkeypatch):
    """An object store in memory behind gs://; makes its paths."""
    monkeypatch.setattr(Store, "store", {}, raising=False)
    monkeypatch.setattr(Store, "pseudo_dirs", [""])
    monkeypatch.setattr(backend.fsspec_backend, "fs", lambda path: Store())
    return epath.Path


@pytest.fixture
def fake_gcs(monkeypatch):
    """A store of gs:// over HTTP, with preconditions and faults; see fake_gcs.py."""
    monkeypatch.setattr(gcs, "FIRST_PAUSE", 0.01)
    fake = FakeStore()
    gcs.use(fake.url)
    yield fake
    gcs.use("")
    fake.close()
