"""When the synthetic machines fail, and how each kind of failure announces itself."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

BEARING, COOLANT, ENCODER = 1, 2, 3
"""Kinds of failure, as they stand in the log's label column; 0 is normal running."""

KINDS = {
    BEARING: "bearing wear",
    COOLANT: "coolant blockage",
    ENCODER: "encoder fault",
}

_HOUR = 12  # slots of five minutes
# Slots from the first sign to the failure: from and up to.
_PRECURSOR = {
    BEARING: (8 * _HOUR, 14 * _HOUR),
    COOLANT: (4 * _HOUR, 8 * _HOUR),
    ENCODER: (3 * _HOUR, 6 * _HOUR),
}
_DOWN = (6, 24)  # slots that a failure lasts
_SOUND = (6 * _HOUR, 42 * _HOUR)  # slots of sound running between a repair and the next first sign


@dataclass(frozen=True)
class Failure:
    """A failure of one machine, in slots since the start of the log.

    Parameters
    ----------
    kind : int
        One of `KINDS`.
    onset : int
        First slot with a sign of it.
    start, stop : int
        Slots in which the machine has failed, `stop` excluded.
    """

    kind: int
    onset: int
    start: int
    stop: int


def draw_failures(rng: np.random.Generator, slots: int) -> list[Failure]:
    """Draw the failures of a machine over `slots`; every three hold each kind once."""
    failures: list[Failure] = []
    slot = 0
    for kind in _kinds(rng):
        onset = slot + int(rng.integers(*_SOUND))
        start = onset + int(rng.integers(*_PRECURSOR[kind]))
        stop = start + int(rng.integers(*_DOWN))
        if stop >= slots:
            break
        failures.append(Failure(kind, onset, start, stop))
        slot = stop
    return failures


def severity(failures: list[Failure], kind: int, slots: int) -> NDArray[np.float64]:
    """Return how far each slot [T] is into a failure of `kind`: 0 sound, 1 failed.

    Wear accelerates, so it rises with the square of time; the others rise evenly.
    """
    curve = np.zeros(slots)
    power = 2.0 if kind == BEARING else 1.0
    for failure in failures:
        if failure.kind == kind:
            rise = np.linspace(0.0, 1.0, failure.start - failure.onset, endpoint=False)
            curve[failure.onset : failure.start] = rise**power
            curve[failure.start : failure.stop] = 1.0
    return curve


def label(failures: list[Failure], slots: int) -> NDArray[np.int8]:
    """Return the kind of failure that each slot [T] lies in, 0 for none."""
    kinds = np.zeros(slots, dtype=np.int8)
    for failure in failures:
        kinds[failure.start : failure.stop] = failure.kind
    return kinds


def _kinds(rng: np.random.Generator) -> Iterator[int]:
    for _ in count():
        yield from (int(kind) for kind in rng.permutation(list(KINDS)))
