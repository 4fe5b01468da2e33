"""One Ray for all tests of the laboratory: starting one takes longer than most of them."""

import logging
import os
import sys
from collections.abc import Iterator

import pytest

# What the command line sets before Ray is imported.
import sma_eval.sweep  # noqa: F401


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """Start Ray with two processors, joined by this process, and return its address."""
    import ray

    # Ray's workers step back for every other process; the test waits for them.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  (Ray spells it so)
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=100 * 2**20,
    )
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()
    sys.stdout.flush()
