"""Ray itself: one of our own on this machine, or a cluster that stands."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from sma_eval.errors import StudyError
from sma_eval.reach import require_answer
from sma_eval.resources import Resources

LOCAL = "local"


@contextmanager
def connected(address: str, resources: Resources) -> Iterator[None]:
    """Start a Ray of our own (``local``) or join a cluster, and leave it again.

    In a process that has joined a Ray already, that one is used, and stays.

    Raises
    ------
    StudyError
        When there is no such cluster, or this machine alone cannot hold one trial.
    """
    joined = ray.is_initialized()
    if not joined:
        _join(address)
    try:
        if address == LOCAL:  # a cluster may grow, this machine will not
            _require_room(resources)
        yield
    finally:
        if not joined:
            ray.shutdown()


def _join(address: str) -> None:
    if address.startswith("ray://"):
        # Ray would carry the sweep out on the cluster, out of reach of this process's observers.
        raise StudyError(
            f"--address {address}: the Ray client cannot follow a study; run it on a node of the "
            "cluster, with --address auto"
        )
    host, colon, port = address.rpartition(":")
    if colon:
        require_answer(address, host, port)
    options: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise StudyError(f"--address {address}: cannot join Ray there: {error}") from error


def _require_room(resources: Resources) -> None:
    have = ray.cluster_resources()
    for field, name, wanted in (
        ("cpus", "CPU", resources.total_cpus),
        ("gpus", "GPU", resources.total_gpus),
    ):
        if wanted > have.get(name, 0.0):
            raise StudyError(
                f"resources.{field}: a trial takes {wanted:g} and this machine has "
                f"{have.get(name, 0.0):g}; lower it, or run on a cluster with --address"
            )
