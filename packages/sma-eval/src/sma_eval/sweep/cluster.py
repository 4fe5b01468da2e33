"""Ray itself: one of our own on this machine, or a cluster that stands."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from sma_eval.errors import StudyError
from sma_eval.reach import require_answer
from sma_eval.resources import Resources

from .client import CLIENT, await_folder

LOCAL = "local"


@contextmanager
def connected(address: str, resources: Resources, root: Path) -> Iterator[None]:
    """Start a Ray of our own (``local``) or join a cluster, and leave it again.

    In a process that has joined a Ray already, that one is used, and stays.

    Parameters
    ----------
    address
        ``local``, ``auto``, ``host:port`` of a head, or ``ray://host:port`` of its client server.
    resources
        Of a trial.
    root
        The study folder.

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
        if address.startswith(CLIENT):
            await_folder(root)
        yield
    finally:
        if not joined:
            ray.shutdown()


def _join(address: str) -> None:
    host, colon, port = address.removeprefix(CLIENT).rpartition(":")
    if colon:
        require_answer(address, host, port)
    options: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, ValueError, RuntimeError, ImportError) as error:
        hint = ""
        if address.startswith(CLIENT) and "timeout" in str(error):
            # Ray's client takes a refusal for silence.
            hint = "; if the cluster wants a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        # A server sends its whole traceback: what failed, and why, stand at its ends.
        said = [line for line in str(error).splitlines() if line.strip()] or [repr(error)]
        why = " ... ".join(dict.fromkeys((said[0], said[-1])))
        raise StudyError(f"--address {address}: cannot join Ray there: {why}{hint}") from error


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
