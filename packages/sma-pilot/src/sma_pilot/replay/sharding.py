"""The offline scenario split over workers: how batches are dealt, and come together again.

Whatever the number of shards, and whichever of them were there from an earlier attempt, the batches
end up as the parts that one walk on this machine would have written, byte for byte.
"""

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from sma_pilot.errors import RunError
from sma_pilot.progress import OnProgress
from sma_pilot.replay.card import read_json
from sma_pilot.replay.parts import PartWriter
from sma_pilot.replay.recorder import ROUTING, SCORES, Activation
from sma_pilot.replay.shards import BATCH_CARD, SHARDS, ShardJob
from sma_pilot.replay.timeline import Timeline, batches_of

_ATTEMPTS = 3
_LOOK_SECONDS = 2.0
_APPEAR_SECONDS = 60.0


class WorkerLostError(Exception):
    """A shard ended without a word: its process was killed, or the machine it ran on died."""


class Workers(Protocol):
    """Those who carry out shards. `cluster` has Ray's."""

    def room(self, threads: int, device: str) -> int:
        """Return how many shards run at once, each on so many threads or on a GPU; at least 1."""
        ...

    def start(self, job: ShardJob) -> Any:
        """Have `score_shard` called with `job` somewhere, and return what stands for the call."""
        ...

    def wait(self, calls: Sequence[Any], seconds: float) -> Iterable[Any]:
        """Return the calls that have ended, after so many seconds at the latest."""
        ...

    def end(self, call: Any) -> None:
        """Return if the call succeeded.

        Raises
        ------
        RunError
            The call failed.
        WorkerLostError
            It was lost.
        """
        ...

    def stop(self, call: Any) -> None:
        """End a call before its time."""
        ...


@dataclass(frozen=True)
class Sharding:
    """How the offline scenario is split.

    Parameters
    ----------
    workers : callable
        Starts or joins the workers for as long as its block runs.
    shards : int, optional
        How many; as many as run at once by default. There are never more than batches.
    """

    workers: Callable[[], AbstractContextManager[Workers]]
    shards: int | None = None


def shards_of(rows: Sequence[int], shards: int) -> list[tuple[int, ...]]:
    """Deal batches to shards: the longest first, each to the shard that has the fewest rows yet.

    No shard then has more than 4/3 of the rows of the best way to deal them [1]_.

    Parameters
    ----------
    rows : sequence of int
        Rows of each batch.
    shards : int
        At least 1; shards without a batch are left out.

    Returns
    -------
    list of tuple of int
        Places in `rows`, each in one shard.

    References
    ----------
    .. [1] R. L. Graham, "Bounds on multiprocessing timing anomalies", SIAM Journal on Applied
       Mathematics 17 (2), 1969.
    """
    dealt: list[list[int]] = [[] for _ in range(min(shards, len(rows)))]
    fewest = [(0, shard) for shard in range(len(dealt))]
    for place in sorted(range(len(rows)), key=lambda place: -rows[place]):
        have, shard = heappop(fewest)
        dealt[shard].append(place)
        heappush(fewest, (have + rows[place], shard))
    return [tuple(sorted(own)) for own in dealt]


def score_in_shards(
    workers: Workers,
    job: ShardJob,
    timeline: Timeline,
    shards: int | None,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Have every row of one arm scored, and leave scores and routes as `run_offline` does.

    Parameters
    ----------
    workers : Workers
    job : ShardJob
        Without batches.
    timeline : Timeline
        Of the same rows.
    shards : int or None
        See `Sharding`.
    on_progress : OnProgress

    Returns
    -------
    dict
        What was activated, ready for JSON.

    Raises
    ------
    RunError
        A shard failed, and the message tells on which entity; or its worker died over and over.
        What is finished stays, for the next attempt to go on from.
    """
    rows = [sum(lane.stop for lane in batch) for batch in batches_of(timeline.lanes)]
    waiting = [number for number in range(len(rows)) if number not in job.finished()]
    count = shards or workers.room(job.plan.replay.threads, job.plan.replay.device)
    dealt = shards_of([rows[number] for number in waiting], count)
    jobs = [replace(job, batches=tuple(waiting[place] for place in own)) for own in dealt]

    def look() -> None:
        done = sum(rows[number] for number in job.finished() if number < len(rows))
        on_progress(f"replay {job.arm}", done, timeline.rows)

    look()
    _carry_out(workers, jobs, look)
    _await_batches(job, len(rows))
    look()
    return _gather(job, len(rows)).figures()


def discard_shards(folder: Path, arm: str = "") -> None:
    """Delete what the shards of an arm, or of all, left in a replay folder: it is in parts now."""
    place = folder / SHARDS / arm
    if place.exists():
        shutil.rmtree(place)


def _carry_out(workers: Workers, jobs: Sequence[ShardJob], look: Callable[[], None]) -> None:
    """Run every job, once more each time that its worker was lost, and stop all when one fails."""
    running = {workers.start(job): (job, 1) for job in jobs}
    try:
        while running:
            for call in workers.wait(list(running), _LOOK_SECONDS):
                job, attempt = running.pop(call)
                try:
                    workers.end(call)
                except WorkerLostError as error:
                    if attempt == _ATTEMPTS:
                        raise RunError(
                            f"replay {job.arm}: a shard of {len(job.batches)} batches lost its "
                            f"worker {attempt} times: {error}; what is finished is kept, and the "
                            "same command goes on from there"
                        ) from error
                    running[workers.start(job)] = job, attempt + 1
            look()
    finally:
        for call in running:
            workers.stop(call)


def _await_batches(job: ShardJob, count: int) -> None:
    """Wait until every batch is seen here: a shared file system may show it late."""
    until = time.monotonic() + _APPEAR_SECONDS
    while missing := set(range(count)) - job.finished():
        if time.monotonic() > until:
            raise RunError(
                f"{job.place}: {len(missing)} of {count} batches were scored and are not seen "
                "here; keep --out on a file system that all nodes share, and replay again"
            )
        time.sleep(0.5)


def _gather(job: ShardJob, count: int) -> Activation:
    """Write all batches as the parts of one walk."""
    total = Activation()
    kinds = (SCORES, ROUTING) if job.keeps_routing else (SCORES,)
    for kind in kinds:
        with PartWriter(job.folder / kind, job.arm) as writer:
            for number in range(count):
                for part in sorted((job.batch(number) / kind).glob("part-*.parquet")):
                    writer.add(_read(part))
    for number in range(count):
        card = read_json(job.batch(number) / BATCH_CARD)
        total.add(Activation(card["rows"], Counter(card["runs"])))
    return total


def _read(part: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(part)
    except (OSError, pl.exceptions.PolarsError) as error:
        folder = part.parent.parent
        raise RunError(f"{folder}: damaged ({error}); delete it and replay") from error
