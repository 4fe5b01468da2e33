"""What a row is taught, and how an answer becomes a score, for tasks whose answer is a class.

`session_anomaly` is taught the id of the session's next event; how unlikely that was is its score.

The other two learn from labelled events, as classes of the time to the next one. `alarm` has two:
farther than the horizon, and within it; the score is the probability of the second.
`remaining_life` cuts the horizon into classes of equal width, with one more for all that is
farther. The expected remaining life under the model's distribution is its prediction, and the score
is what of the horizon it takes away: 0 far from any event, towards 1 as one comes near. A
regression taught by cross entropy over classes [1]_ needs no scale of its own and no clipping, and
a horizon is a cap by construction.

References
----------
.. [1] J. Farebrother et al., "Stop regressing: training value functions via classification for
   scalable deep RL", ICML 2024.
"""

from datetime import timedelta

import numpy as np
from numpy.typing import NDArray

from sma_pilot.plan import Task, format_duration

LIFE_CLASSES = 20
"""Classes that the horizon of `remaining_life` is cut into. The middle of one is at most a 40th of
the horizon from any life in it."""
IGNORED = -1

_ALARM_CLASSES = ("no event within the horizon", "event within the horizon")


def class_names(task: Task) -> tuple[str, ...]:
    """Return the names of the task's classes; none for a task that does not learn from events."""
    if task.horizon is None:
        return ()
    if task.kind == "alarm":
        return _ALARM_CLASSES
    width = task.horizon / LIFE_CLASSES
    uppers = [width * (number + 1) for number in range(LIFE_CLASSES)]
    whole = all(upper % timedelta(milliseconds=1) == timedelta(0) for upper in uppers)
    within = [
        f"at most {format_duration(upper)}" if whole else f"at most {number + 1} parts of 20"
        for number, upper in enumerate(uppers)
    ]
    return (*within, f"more than {format_duration(task.horizon)}")


def class_scores(task: Task) -> tuple[float, ...]:
    """Return the score that certainty of each class would have."""
    if task.kind == "alarm":
        return (0.0, 1.0)
    lives = (np.arange(LIFE_CLASSES) + 0.5) / LIFE_CLASSES
    return (*(1.0 - lives).tolist(), 0.0)


def classes_of(task: Task, remaining: NDArray[np.int64], horizon_ns: int) -> NDArray[np.int32]:
    """Return the class of each row, -1 where the time to its next event is unknown.

    Parameters
    ----------
    task : Task
    remaining : int64 [T]
        ns to the next event; more than the horizon where it is farther, -1 where nobody knows.
    horizon_ns : int
    """
    if task.kind == "alarm":
        classes = np.where(remaining <= horizon_ns, 1, 0)
    else:
        # A life at the upper edge of a class belongs to it; floats would move some edges.
        nearest = (remaining - 1) // max(1, horizon_ns // LIFE_CLASSES)
        classes = np.where(
            remaining <= horizon_ns, np.clip(nearest, 0, LIFE_CLASSES - 1), LIFE_CLASSES
        )
    return np.where(remaining < 0, IGNORED, classes).astype(np.int32)


def next_event(
    code: NDArray[np.int32], label: NDArray[np.int32], starts: NDArray[np.bool_]
) -> NDArray[np.int32]:
    """Return the event that follows each row of its session, -1 where there is nothing to learn.

    That is the last row of a session, and every row of one that is labelled as an anomaly: what is
    usual is to be learned. Of a session that lies in two blocks each part is looked at by itself.

    Parameters
    ----------
    code : int32 [T]
        Events as indices into the vocabulary; one entity in time order.
    label : int32 [T]
    starts : bool [T]
        Where a session, or a part of it in another slice, begins.
    """
    session = np.cumsum(starts)
    session -= session.min(initial=0)
    following = np.append(code[1:], IGNORED)
    last = np.append(np.diff(session) != 0, True)[: code.size]
    unusual = np.bincount(session, label > 0) > 0
    return np.where(last | unusual[session], IGNORED, following).astype(np.int32)
