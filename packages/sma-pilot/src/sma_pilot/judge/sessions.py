"""What is judged, a row, a window or a whole session, and the time that each stands for."""

import numpy as np
from numpy.typing import NDArray

from sma_pilot.judge.events import exposure_ns, nanoseconds, observed_ns
from sma_pilot.judge.measurements import AlignedSlice
from sma_pilot.plan import Plan


def judged_units(rows: AlignedSlice, plan: Plan) -> tuple[AlignedSlice, NDArray[np.int64]]:
    """Return what is right or wrong as a whole, and the time in ns that each stands for.

    Rows stand for the time until the next one. Sessions overlap, so of N sessions each stands for
    one Nth of the time in which there were any: a rate of false alarms is then one of the log.
    """
    if plan.task.by_class:
        units = last_of_units(rows, plan)
        return units, np.zeros(units.rows, np.int64)  # without alarms nobody asks for time
    if not plan.task.by_session:
        return rows, exposure_ns(rows, plan.log.period, plan.log.max_gap)
    sessions = last_rows(rows)
    share = observed_ns(rows.time, plan.log.period, plan.log.max_gap) // max(sessions.rows, 1)
    return sessions, np.full(sessions.rows, share, np.int64)


def last_rows(rows: AlignedSlice) -> AlignedSlice:
    """Keep the last row of each entity, which scores its session, with the session's label.

    A session is an anomaly if any of its rows is, and unknown if all of them are.
    """
    if not rows.rows:
        return rows
    last = np.flatnonzero(np.diff(rows.entity, append=-1))
    first = np.concatenate([[0], last[:-1] + 1])
    return rows.take(last, label=np.maximum.reduceat(rows.label, first))


def last_of_units(rows: AlignedSlice, plan: Plan) -> AlignedSlice:
    """Keep the last row of each unit that a classification tells: a window, or an entity."""
    if not rows.rows:
        return rows
    ends = np.diff(rows.entity, append=-1) != 0
    if plan.task.window is not None:
        window = rows.time // nanoseconds(plan.task.window)
        ends |= np.diff(window, append=window[-1] + 1) != 0
    return rows.take(np.flatnonzero(ends))
