"""Where to cut the log's time: 60, 20 and 20 %, or earlier where the events are."""

import numpy as np
from numpy.typing import NDArray

USUAL = (0.6, 0.8)
ENOUGH_EVENTS = 30
_EARLIER = (0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3)


def choose_borders(events: NDArray[np.int64], first: int, last: int) -> tuple[float, float]:
    """Return shares of the time span for ``validation_from`` and ``judged_from``.

    The judged slice begins as late as it can while it holds 30 events, or half of all if there
    are fewer; where no beginning gives it so many, at the one that gives it most.

    Parameters
    ----------
    events : int64 [N]
        Starts of the labelled events, ns.
    first, last : int
        Of the log, ns.
    """
    shares = (events - first) / max(last - first, 1)
    wanted = min(ENOUGH_EVENTS, -(-len(shares) // 2))
    held = {start: int((shares >= start).sum()) for start in (USUAL[1], *_EARLIER)}
    judged_from = next(
        (start for start, count in held.items() if count >= wanted), max(held, key=held.__getitem__)
    )
    if judged_from == USUAL[1]:
        return USUAL
    return round(0.75 * judged_from, 3), judged_from
