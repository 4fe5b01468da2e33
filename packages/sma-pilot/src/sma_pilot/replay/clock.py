"""The clock that times a replay, and the quiet it is read in."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Clock = Callable[[], int]
"""Nanoseconds since some moment, never going back. Tests hand in one of their own."""

wall_clock: Clock = time.perf_counter_ns
_SPIN_NS = 1_000_000
Wait = Callable[[Clock, int], None]
"""Returns when the clock shows a time. Tests hand in one that moves their clock."""


def timer_overhead_ns(clock: Clock, readings: int = 1001) -> int:
    """Return the median time between two readings with nothing between them, in ns.

    It is part of every service time, and the same for all arms.
    """
    gaps = []
    for _ in range(readings):
        begin = clock()
        gaps.append(clock() - begin)
    return sorted(gaps)[readings // 2]


@contextmanager
def garbage_collector_off() -> Iterator[None]:
    """Collect now and not again until the block ends.

    A collection walks every object of the process and would land on some arm's event by chance.
    A server that cares for its tail latency keeps collections off the path of a request as well.
    """
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def earlier_objects_settled() -> Iterator[None]:
    """Leave what exists now out of garbage collections until the block ends.

    A replay collects before every leg, and most of what a collection walks are the million objects
    of the libraries, which stay anyway: that takes longer than many a leg.
    """
    if gc.get_freeze_count():  # a caller's own, not ours to thaw
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        # The collector spaces full collections by how much outlived the last one: let it count
        # those objects again, or it would walk them over and over.
        gc.collect()


def wait_until(clock: Clock, time_ns: int) -> None:
    """Return when `clock` shows `time_ns`, or at once if it is later already."""
    while (left := time_ns - clock()) > 0:
        if left > _SPIN_NS:  # sleeping is late by about a tenth of a millisecond
            time.sleep((left - _SPIN_NS) / 1e9)
