"""What a trial inherits of the variables of its worker: names that are listed here.

A worker may have been started by SLURM, Kubernetes, MPI or Ray, or by a shell of one.
What they say of processes and ranks is meant for the worker; a trial is told its place
by `DPO_JAX_DISTRIBUTED` alone.
"""

from collections.abc import Mapping, Sequence

NAMES = (
    *("HOME", "PATH", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TERM", "TZ"),
    *("TMPDIR", "TEMP", "TMP", "LD_LIBRARY_PATH", "LD_PRELOAD", "NO_COLOR"),
    *("VIRTUAL_ENV", "CONDA_PREFIX", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GOOGLE_APPLICATION_CREDENTIALS"),
    *("GCE_METADATA_HOST", "GCE_METADATA_IP", "LIBTPU_INIT_ARGS"),
    "ALLOW_MULTIPLE_LIBTPU_LOAD",
    *("OPENAI_API_KEY", "OPENAI_BASE_URL"),  # of a judge
)
PREFIXES = (
    *("DPO_JAX_", "JAX_", "XLA_", "TF_", "TPU_", "MEGASCALE_", "LIBTPU_"),
    *("CUDA_", "NVIDIA_", "NCCL_", "ROCR_", "HIP_"),
    *("PYTHON", "LC_", "XDG_", "OMP_", "MKL_", "OPENBLAS_", "NPROC", "MALLOC_"),
    *("HF_", "TRANSFORMERS_", "TOKENIZERS_", "TENSORSTORE_", "CLOUDSDK_", "GCSFS_"),
    *("STORAGE_EMULATOR_", "WANDB_", "TRACKIO_", "TENSORBOARD_"),
)
PLACES = ("DPO_JAX_DISTRIBUTED",)  # of the worker itself


def of_trials(own: Mapping[str, str], more: Sequence[str] = ()) -> dict[str, str]:
    """Chooses what trials inherit.

    Args:
      own: the variables of this process.
      more: further names that a user wants them to have.
    """
    return {
        name: value
        for name, value in own.items()
        if name not in PLACES and (name in more or _is_listed(name))
    }


def _is_listed(name: str) -> bool:
    is_proxy = name.lower().endswith("_proxy")
    return is_proxy or name in NAMES or name.startswith(PREFIXES)
