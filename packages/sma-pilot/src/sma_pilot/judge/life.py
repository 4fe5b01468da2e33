"""Remaining life: what is left until each row's next event, and how wrong an arm is about it.

Both in shares of the plan's horizon, at which lives are capped: a row with no event within the
horizon has the life 1, however far the next one is. An arm's score is 1 less its predicted life.
"""

import numpy as np
from numpy.typing import NDArray

from sma_pilot.judge.events import Events
from sma_pilot.judge.means import MeanOfRows


def life_of_rows(
    time: NDArray[np.int64], positive: NDArray[np.bool_], events: Events, horizon_ns: int
) -> NDArray[np.float64]:
    """Return the capped remaining life [N] of every row that is normal or positive.

    Parameters
    ----------
    time : int64 [N]
        Nanoseconds since the epoch, of all rows of the slice.
    positive : bool [N]
        Rows within the horizon before an event.
    events : Events
        Of the slice; windows hold the positive rows.
    horizon_ns : int
    """
    life = np.ones(time.size)
    rows = np.flatnonzero(positive)
    if not events.count:
        return life
    event = np.searchsorted(events.window_start, rows, side="right") - 1
    life[rows] = (events.start_time[event] - time[rows]) / horizon_ns
    return np.clip(life, 0.0, 1.0)


def life_errors(
    score: NDArray[np.float32], life: NDArray[np.float64], bin_of_row: NDArray[np.int64]
) -> tuple[MeanOfRows, MeanOfRows]:
    """Return mean absolute and root mean squared error of the predicted life, of N > 0 rows."""
    error = (1.0 - score.astype(np.float64)) - life
    return (
        MeanOfRows(np.abs(error), bin_of_row),
        MeanOfRows(error**2, bin_of_row, root=True),
    )
