"""A Ray cluster on this machine, with slices of fake TPUs of two hosts each.

python ray_cluster.py SLICES        prints its address; ends when its input does
"""

import os
import sys

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")

from ray.cluster_utils import Cluster

MEMORY = 80 * 2**20  # bytes of each node's object store


def host(slice_number, index):
    """Describes a host of a v4 slice of 2x2x2 chips, as Ray's own set-up would."""
    name, kind, topology = f"slice{slice_number}", "v4-16", "2x2x2"
    return dict(
        num_cpus=2,
        object_store_memory=MEMORY,
        resources={"TPU": 4, **({f"TPU-{kind}-head": 1} if index == 0 else {})},
        env_vars={
            "TPU_NAME": name,
            "TPU_WORKER_ID": str(index),
            "TPU_ACCELERATOR_TYPE": kind,
            "TPU_TOPOLOGY": topology,
        },
        labels={
            "ray.io/tpu-slice-name": name,
            "ray.io/tpu-worker-id": str(index),
            "ray.io/tpu-pod-type": kind,
            "ray.io/tpu-topology": topology,
            "ray.io/accelerator-type": "TPU-V4",
        },
    )


if __name__ == "__main__":
    head = dict(num_cpus=2, include_dashboard=False, object_store_memory=MEMORY)
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for number in range(int(sys.argv[1])):
        for index in range(2):
            cluster.add_node(**host(number, index))
    print(cluster.address, flush=True)
    sys.stdin.read()
    cluster.shutdown()
