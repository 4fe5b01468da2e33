"""Which judged events are sent one by one: a run of consecutive ones from a random time on."""

import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sma_pilot.replay.timeline import Lane, Stretch, Timeline


@dataclass(frozen=True)
class Stream:
    """Consecutive judged events of all entities.

    Parameters
    ----------
    past : tuple of Lane
        For each stretch that has events here: its rows before the first of them.
    lane : NDArray[int64], [Q]
        Index into `past` of each event.
    time : NDArray[int64], [Q]
        Nanoseconds since the epoch, not decreasing.
    """

    past: tuple[Lane, ...]
    lane: NDArray[np.int64]
    time: NDArray[np.int64]


def choose_stream(timeline: Timeline, size: int, seed: str) -> Stream:
    """Return `size` consecutive judged events from a random time on, or all if there are fewer.

    Parameters
    ----------
    timeline : Timeline
    size : int
    seed : str
        The same seed gives the same events, so that all arms of a pass get the same.
    """
    size = min(size, timeline.judged_rows)
    if size == 0:
        nothing = np.zeros(0, dtype=np.int64)
        return Stream((), nothing, nothing)
    since = timeline.random_judged_time(random.Random(seed).random(), size)
    judged = [s for s in timeline.stretches if s.judged_until_ns and s.judged_until_ns >= since]
    earliest = np.zeros(0, dtype=np.int64)
    found: list[tuple[Stretch, int, NDArray[np.int64]]] = []
    for stretch in sorted(judged, key=lambda s: (s.judged_from_ns, s.entity)):
        if len(earliest) == size and (stretch.judged_from_ns or 0) > earliest[-1]:
            break  # neither this stretch nor a later one has an event among the first
        offset = timeline.first_judged_row(stretch, since)
        time = timeline.read(stretch, offset, min(stretch.rows, offset + size)).time.numpy()
        found.append((stretch, offset, time))
        earliest = np.sort(np.concatenate([earliest, time]))[:size]
    time = np.concatenate([time for _, _, time in found])
    owner = np.repeat(np.arange(len(found)), [len(time) for _, _, time in found])
    entity = np.array([stretch.entity for stretch, _, _ in found])[owner]
    order = np.lexsort((entity, time))[:size]
    used, lane = np.unique(owner[order], return_inverse=True)
    past = tuple(Lane(found[index][0], found[index][1]) for index in used)
    return Stream(past, lane.astype(np.int64), time[order])
