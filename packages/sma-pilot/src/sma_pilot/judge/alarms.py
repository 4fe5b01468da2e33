"""False alarms, and the threshold that keeps them to a declared number."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sma_pilot.judge.events import DAY_NS

LARGEST_ALARM_SHARE = 0.1
"""Largest share of normal time in alarm. Merged alarms are counted as one, so a score that is
over the threshold all day makes one false alarm: without this cap the count would reward it."""


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A score over `value` is an alarm.

    Attributes
    ----------
    value : float
        A score of a normal validation row: the highest that raises no alarm.
    false_alarms : int
        False alarms that it makes on the validation rows it was set on.
    entity_days : float
        Normal, scored time of all entities on those rows.
    capped : bool
        Whether `LARGEST_ALARM_SHARE`, not the declared rate, kept it from being lower.
    """

    value: float
    false_alarms: int
    entity_days: float
    capped: bool = False


def episode_starts(
    entity: NDArray[np.int32], time: NDArray[np.int64], merge_ns: int
) -> NDArray[np.bool_]:
    """Mark which alarm rows [K], sorted by entity and time, begin an alarm.

    Rows of one entity that are closer than `merge_ns` belong to one alarm.
    """
    if not time.size:
        return np.zeros(0, dtype=bool)
    apart = (np.diff(time) >= merge_ns) | (np.diff(entity) != 0)
    return np.concatenate([[True], apart])


def choose_threshold(
    score: NDArray[np.float32],
    entity: NDArray[np.int32],
    time: NDArray[np.int64],
    exposure: NDArray[np.int64],
    *,
    merge_ns: int,
    per_day: float,
) -> Threshold | None:
    """Find the lowest threshold that keeps false alarms to `per_day` a day and entity.

    Walks the distinct scores downwards and stops before the number of alarms first exceeds what
    is allowed. (Further down the number falls again, as alarms merge; those thresholds do not
    count.) Exact: every distinct score is a candidate.

    Parameters
    ----------
    score, entity, time, exposure : [N]
        Normal validation rows, sorted by entity and time; a NaN score is left out.
    merge_ns : int
        Rows closer than this are one alarm.
    per_day : float
        Alarms allowed a day and entity.

    Returns
    -------
    Threshold or None
        None when there is no scored row.
    """
    scored = ~np.isnan(score)
    score, exposure = score[scored], exposure[scored]
    entity, time = entity[scored], time[scored]
    total = int(exposure.sum())
    if total == 0:
        return None
    # The nudge keeps 0.29 a day over 100 days at 29, which floating point would make 28.
    allowed = int(per_day * total / DAY_NS + 1e-9)
    levels, level_of_row = np.unique(score, return_inverse=True)
    at_level = np.bincount(level_of_row, weights=exposure, minlength=levels.size)
    above = np.concatenate([np.cumsum(at_level[::-1])[::-1][1:], [0.0]])
    lowest = int(np.argmax(above <= LARGEST_ALARM_SHARE * total))
    rows = np.flatnonzero(level_of_row > lowest)
    order = rows[np.argsort(level_of_row[rows], kind="stable")]
    place = np.empty(score.size, dtype=np.int64)
    place[rows] = np.arange(rows.size)
    counts = _alarms_after_removal(entity[rows], time[rows], place[order], merge_ns)
    # counts[k]: alarms once the k lowest of `order` are off, so those at or under a level.
    off = np.searchsorted(level_of_row[order], np.arange(lowest, levels.size), side="right")
    by_level = counts[off]
    exceeding = np.flatnonzero(by_level > allowed)
    chosen = int(exceeding[-1]) + 1 if exceeding.size else 0
    return Threshold(
        value=float(levels[lowest + chosen]),
        false_alarms=int(by_level[chosen]),
        entity_days=total / DAY_NS,
        capped=not exceeding.size and lowest > 0,
    )


def _alarms_after_removal(
    entity: NDArray[np.int32], time: NDArray[np.int64], order: NDArray[np.int64], merge_ns: int
) -> NDArray[np.int64]:
    """Count alarms [K + 1] as the K alarm rows go off one after another, in `order`.

    A linked list of the rows still on makes each removal O(1): alarms are rows less the pairs of
    neighbours that are joined.
    """
    size = time.size
    times = time.tolist()
    same = np.diff(entity) == 0
    previous = np.where(np.concatenate([[False], same])[:size], np.arange(size) - 1, -1).tolist()
    following = np.where(np.concatenate([same, [False]])[:size], np.arange(size) + 1, -1).tolist()
    count = int(episode_starts(entity, time, merge_ns).sum())
    counts = [count]
    for row in order.tolist():
        left, right = previous[row], following[row]
        count -= 1
        if left >= 0:
            count += times[row] - times[left] < merge_ns
            following[left] = right
        if right >= 0:
            count += times[right] - times[row] < merge_ns
            previous[right] = left
            if left >= 0:
                count -= times[right] - times[left] < merge_ns
        counts.append(count)
    return np.array(counts)
