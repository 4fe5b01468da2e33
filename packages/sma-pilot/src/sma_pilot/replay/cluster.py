"""Ray carries out the shards of a replay: the only module of the package that imports it.

Ray is the extra ``cluster``; without it this module cannot be imported, and says what is missing.
"""

import logging
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from sma_core.errors import SMAError
from sma_pilot.errors import PilotError, RunError
from sma_pilot.replay.sharding import Sharding, WorkerLostError
from sma_pilot.replay.shards import ShardJob, score_shard

# Under `uv run` Ray would build an environment for every worker; the one that stands is meant.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
# Without it Ray warns of a coming change of what a task without GPUs sees; this is that behaviour.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

# Ray reads them when it is imported.
try:
    import ray
    from ray.exceptions import RayError, RayTaskError
except ModuleNotFoundError as error:
    raise PilotError(
        '--address needs Ray, which is an extra: pip install "sma-pilot[cluster]"'
    ) from error

LOCAL, AUTO = "local", "auto"
_CLIENT = "ray://"
_CONNECT_SECONDS = 10.0


def sharding_over(address: str, shards: int | None) -> Sharding:
    """Return how to split a replay over the cluster at an address.

    Parameters
    ----------
    address : str
        ``auto`` for the cluster that this machine is a node of, ``host:port`` of a head,
        ``ray://host:port`` of a head's Ray client server, or ``local`` to start one here.
    shards : int or None
        See `Sharding`.

    Raises
    ------
    PilotError
        It is no address.
    """
    if address not in (LOCAL, AUTO):
        host, colon, port = address.removeprefix(_CLIENT).rpartition(":")
        if not (colon and host and "/" not in host and port.isdecimal()):
            raise PilotError(
                f"--address {address}: give auto, local, host:port of the cluster's head, or "
                "ray://host:port"
            )
    return Sharding(partial(_connected, address), shards)


@contextmanager
def _connected(address: str) -> Iterator["RayWorkers"]:
    """Start a Ray of our own (``local``) or join a cluster, and leave it again.

    In a process that has joined a Ray already, that one is used, and stays.
    """
    joined = ray.is_initialized()
    if not joined:
        _join(address)
    try:
        yield RayWorkers(address)
    finally:
        if not joined:
            ray.shutdown()


def _join(address: str) -> None:
    options: dict[str, Any] = {}
    if address == LOCAL:
        options["include_dashboard"] = False
    elif address != AUTO:
        # Ray would try for minutes.
        host, _, port = address.removeprefix(_CLIENT).rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise RunError(f"--address {address}: nothing answers there: {error}") from error
    if not address.startswith(_CLIENT):
        options |= {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(address=address, **options)
    except (ConnectionError, ImportError, RayError, RuntimeError, ValueError) as error:
        raise RunError(f"--address {address}: cannot join Ray there: {error}") from error


class RayWorkers:
    """See `Workers`: each shard is a task, on as many processors as a replay computes with.

    Parameters
    ----------
    address : str
        As the user gave it, for messages.
    """

    def __init__(self, address: str) -> None:
        self._address = address

    def room(self, threads: int, device: str) -> int:
        """See `Workers.room`."""
        have = ray.cluster_resources()
        fit = have.get("GPU", 0.0) if device == "cuda" else have.get("CPU", 0.0) // threads
        if fit < 1 and self._address == LOCAL:  # a cluster may grow, this machine will not
            wanted = "a GPU" if device == "cuda" else f"{threads} processors (replay.threads)"
            raise RunError(
                f"--address {LOCAL}: a shard takes {wanted}, and Ray finds none here; "
                "replay without --address, or on a cluster"
            )
        return max(1, int(fit))

    def start(self, job: ShardJob) -> Any:
        """See `Workers.start`."""
        settings = job.plan.replay
        task = _score.options(
            name=f"replay {job.arm}",
            num_cpus=settings.threads,
            num_gpus=1 if settings.device == "cuda" else 0,
            # The caller counts: Ray itself repeats without end what runs out of memory.
            max_retries=0,
        )
        return task.remote(job)

    def wait(self, calls: Sequence[Any], seconds: float) -> Iterable[Any]:
        """See `Workers.wait`."""
        return ray.wait(list(calls), timeout=seconds)[0]

    def end(self, call: Any) -> None:
        """See `Workers.end`."""
        try:
            failure = ray.get(call)
        except RayTaskError as error:
            raise RunError(
                f"--address {self._address}: a worker failed: {_last_line(error)}; every node "
                "needs the same sma-pilot as this machine"
            ) from error
        except RayError as error:
            raise WorkerLostError(_last_line(error)) from error
        if failure is not None:
            raise RunError(failure)

    def stop(self, call: Any) -> None:
        """See `Workers.stop`."""
        with suppress(RayError):  # the cluster may be gone, which is why there is something to stop
            ray.cancel(call, force=True)


@ray.remote
def _score(job: ShardJob) -> str | None:
    """Return what went wrong, in words: an exception would come back wrapped in Ray's own."""
    try:
        score_shard(job)
    except (PilotError, SMAError, OSError) as error:
        return str(error)
    return None


def _last_line(error: Exception) -> str:
    return str(error).strip().rpartition("\n")[2]
