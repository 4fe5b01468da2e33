"""One trial in several processes: Ray places them, `sma_core.parallel` lets them train together.

The processes of a trial are bundles of one placement group, so that all of them get their place or
none does: trials never wait for each other half placed. The first is Ray Tune's own, which reports
and is started again from its checkpoint; it starts the others, and they end with it.
"""

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from sma_eval.resources import Resources
from sma_eval.space import Trial
from sma_eval.trial import train_along

# How long the others may take to end once the first one has.
_FAREWELL_SECONDS = 60.0


def placement(resources: Resources) -> tune.PlacementGroupFactory:
    """Say what a trial takes, as one bundle for each of its processes."""
    bundle = {"CPU": resources.cpus}
    if resources.gpus:
        bundle["GPU"] = resources.gpus
    return tune.PlacementGroupFactory([bundle] * resources.processes)


@contextmanager
def company(run: Mapping[str, Any], folder: Path) -> Iterator[None]:
    """Have the other processes of a trial train along while the block trains.

    Parameters
    ----------
    run
        What the trial's process was told, as `sweep` tells it.
    folder
        Of the trial, on a disk that all its processes see.

    Raises
    ------
    RayActorError
        When another process died: the trial is not at fault, and can go on from its checkpoint.
    """
    resources = Resources(**run["resources"])
    if resources.processes == 1:
        yield
        return
    # What torchrun would set. Each process sees its own GPU alone, as the first.
    environment = {
        "WORLD_SIZE": str(resources.processes),
        "LOCAL_RANK": "0",
        "MASTER_ADDR": ray.util.get_node_ip_address(),
        "MASTER_PORT": str(_free_port()),
    }
    group: Any = ray.util.get_current_placement_group()
    companion: Any = ray.remote(_Companion)
    others = [
        companion.options(
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=rank
            ),
        ).remote()
        for rank in range(1, resources.processes)
    ]
    training = [
        other.train.remote({**environment, "RANK": str(rank)}, run, str(folder))
        for rank, other in enumerate(others, start=1)
    ]
    os.environ.update(environment, RANK="0")
    try:
        yield
        ray.get(training, timeout=_FAREWELL_SECONDS)
    except Exception as error:
        for one in training:
            _raise_if_dead(one, error)
        raise
    finally:
        for other in others:
            ray.kill(other)


class _Companion:
    """A process of a trial beside its first."""

    def train(self, environment: dict[str, str], run: Mapping[str, Any], folder: str) -> None:
        os.environ.update(environment)
        resources = Resources(**run["resources"])
        train_along(
            Trial.from_dict(run["trial"]),
            Path(run["dataset"]),
            Path(folder),
            device=resources.device,
            threads=resources.threads,
            sharding=resources.sharding,
            until=run["until"],
        )


def _raise_if_dead(training: Any, error: Exception) -> None:
    try:
        ready, _ = ray.wait([training], timeout=0.0)
        ray.get(ready)
    except RayActorError as dead:
        raise dead from error
    except Exception:  # noqa: S110  (it failed with the others, which `error` tells)
        pass


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        return found.getsockname()[1]
