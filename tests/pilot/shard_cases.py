"""Workers that carry out shards in this process, and a log of many machines to split over them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests.pilot.replay_cases import Sequence as Rows

from sma_pilot.errors import RunError
from sma_pilot.replay.sharding import Sharding
from sma_pilot.replay.shards import ShardJob, score_shard

MACHINES, BATCHES = 13, 3
"""Enough for three batches of eight stretches."""


def many_machines() -> tuple[Rows, ...]:
    """Machines whose stretches have all kinds of length, some on one side of the border alone."""
    pieces: list[Rows] = [("train", 0, 0, 100)]
    for machine in range(MACHINES):
        if machine % 5:
            pieces.append(("validation", machine, 120, 10 + 7 * machine % 40))
        if machine % 7:
            since = 400 if machine % 3 else 120 + 10 + 7 * machine % 40
            pieces.append(("judged", machine, since, 5 + 11 * machine % 60))
    order = ["train", "validation", "judged"]
    return tuple(sorted(pieces, key=lambda piece: order.index(piece[0])))


class HereWorkers:
    """Each shard is scored when its end is asked for, the latest started first.

    Parameters
    ----------
    room : int
        How many shards are said to run at once.
    before : callable, optional
        Called with the number of the call and its job before a shard is scored; what it raises is
        what the call ends with.
    """

    def __init__(self, room: int = 1, before: Callable[[int, ShardJob], None] | None = None):
        self._room = room
        self._before = before
        self.jobs: list[ShardJob] = []
        self.stopped: list[int] = []

    def room(self, threads: int, device: str) -> int:
        return self._room

    def start(self, job: ShardJob) -> int:
        self.jobs.append(job)
        return len(self.jobs) - 1

    def wait(self, calls: Sequence[int], seconds: float) -> Iterable[int]:
        return [calls[-1]]

    def end(self, call: int) -> None:
        if self._before is not None:
            self._before(call, self.jobs[call])
        score_shard(self.jobs[call])

    def stop(self, call: int) -> None:
        self.stopped.append(call)


def sharding(workers: Any, shards: int | None = None) -> Sharding:
    """Split over `workers`, which are there already."""

    @contextmanager
    def joined() -> Iterator[Any]:
        yield workers

    return Sharding(joined, shards)


def no_workers() -> Any:
    """Stand for workers that must not be asked for."""
    raise RunError("nobody was to be asked for")


def contents(folder: Path) -> dict[str, str]:
    """Return the hash of every file of scores and routes, and of nothing else."""
    return {
        str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest()
        for kind in ("scores", "routing")
        for path in sorted((folder / kind).rglob("*"))
    }
