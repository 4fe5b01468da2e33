"""Several Ray nodes on one machine, any of which may be killed; for tests and experiments."""

import logging
import os
from typing import Any

# First: it sets what Ray reads when it is imported.
import sma_eval.sweep  # noqa: F401

# isort: split
import psutil
import ray
from ray.cluster_utils import Cluster

# Ray's workers step back for every other process; here somebody waits for them.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  (Ray spells it so)

_NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


class LocalCluster:
    """A head without processors and some nodes with one each, joined by this process.

    Parameters
    ----------
    nodes
        How many, beside the head.
    """

    def __init__(self, nodes: int) -> None:
        head = {**_NODE, "num_cpus": 0, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(nodes):
            self.add()
        ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR)

    @property
    def address(self) -> str:
        """``host:port`` of the head."""
        return str(self._cluster.address)

    def add(self) -> None:
        """Add a node."""
        self._cluster.add_node(**_NODE)

    def trial_processes(self) -> list[int]:
        """Return the ids of the processes that run trials."""
        return [
            process.pid
            for node in self._cluster.worker_nodes
            for process in _children(node)
            if process.name().startswith("ray::ImplicitFunc")
        ]

    def lose(self, pid: int) -> None:
        """Kill the node that a process runs on, at once, with all that runs there."""
        for node in list(self._cluster.worker_nodes):
            if pid in [process.pid for process in _children(node)]:
                self._cluster.remove_node(node, allow_graceful=False)
                return
        raise LookupError(f"process {pid} is on no node of the cluster")

    def close(self) -> None:
        """Leave the cluster and end it."""
        ray.shutdown()
        self._cluster.shutdown()


def _children(node: Any) -> list[psutil.Process]:
    (raylet,) = node.all_processes["raylet"]
    return psutil.Process(raylet.process.pid).children()
