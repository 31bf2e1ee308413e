"""The launchers: a file each, and a row here."""

from dpo_jax.launch import gke, local, ray, slurm, tpu_vm
from dpo_jax.launch.job import Launcher

LAUNCHERS = {
    "local": Launcher(
        "workers on this machine", local.Options, local.render, local.launch
    ),
    "gke": Launcher("JobSets on GKE", gke.Options, gke.render, gke.launch),
    "slurm": Launcher("arrays of SLURM", slurm.Options, slurm.render, slurm.launch),
    "ray": Launcher("tasks of Ray", ray.Options, ray.render, ray.launch),
    "tpu_vm": Launcher(
        "queued resources of TPU VMs", tpu_vm.Options, tpu_vm.render, tpu_vm.launch
    ),
}
