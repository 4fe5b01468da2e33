"""The timer's own cost is known, and no collection falls on an event."""

import gc
from collections.abc import Iterator

import pytest

from sma_pilot.replay.clock import (
    earlier_objects_settled,
    garbage_collector_off,
    timer_overhead_ns,
    wall_clock,
)


def test_the_overhead_is_the_median_gap_of_the_clock():
    ticks = iter(range(0, 10_000, 7))
    assert timer_overhead_ns(lambda: next(ticks), readings=5) == 7


def test_one_slow_reading_is_not_the_overhead():
    readings = iter([0, 3, 10, 13, 20, 9_999])
    assert timer_overhead_ns(lambda: next(readings), readings=3) == 3


def test_the_clock_never_goes_back():
    readings = [wall_clock() for _ in range(100)]
    assert readings == sorted(readings)


def test_the_collector_rests_inside_the_block_only():
    def stopped_half_way() -> None:
        with garbage_collector_off():
            assert not gc.isenabled()
            raise KeyboardInterrupt

    assert gc.isenabled()
    with pytest.raises(KeyboardInterrupt):
        stopped_half_way()
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with garbage_collector_off():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_garbage_from_before_is_gone_before_the_block():
    class Loop:
        alive = 0

        def __init__(self) -> None:
            self.me = self
            Loop.alive += 1

        def __del__(self) -> None:
            Loop.alive -= 1

    Loop()
    with garbage_collector_off():
        assert Loop.alive == 0


@pytest.fixture
def nothing_frozen() -> Iterator[None]:
    """Thaw what tests/conftest.py froze."""
    gc.unfreeze()
    yield
    gc.freeze()


@pytest.mark.usefixtures("nothing_frozen")
def test_collections_leave_earlier_objects_alone_until_the_block_ends():
    def stopped_half_way() -> None:
        with earlier_objects_settled():
            assert gc.get_freeze_count() > 1000
            raise KeyboardInterrupt

    assert gc.get_freeze_count() == 0
    with pytest.raises(KeyboardInterrupt):
        stopped_half_way()
    assert gc.get_freeze_count() == 0


@pytest.mark.usefixtures("nothing_frozen")
def test_what_a_caller_has_frozen_stays_frozen():
    gc.freeze()
    with earlier_objects_settled():
        pass
    assert gc.get_freeze_count() > 0
