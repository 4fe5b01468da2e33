"""Times of one arm under load, and what they prove."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sma_pilot.errors import RunError

# An event is handed over late when the harness, and not the arm, keeps it waiting for longer than
# this share of a usual service time; with more late ones than the second share a run is invalid.
SLIP_OF_SERVICE = 0.1
MOST_SLIPPED = 0.05


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadSample:
    """Times of one arm in one scenario under load, a query after another.

    Attributes
    ----------
    events_per_query : int
        Events that go to the arm at once.
    service_ns : int64 [Q]
        From handing the query over to having its scores.
    response_ns : int64 [Q] or None
        From when the query was due by the schedule to having its scores. None where there is no
        schedule, and a query is sent when the one before it is answered.
    slip_ns : int64 [Q] or None
        How long the harness kept a query that was due from an arm that was free.
    offered_rate : float or None
        Events a second by the schedule.
    sustainable_rate : float or None
        Highest rate at which responses keep to the plan's bound; None when it was not searched
        for, or the search found none.
    search_note : str
        How the search went; empty without one.
    """

    events_per_query: int
    service_ns: NDArray[np.int64]
    response_ns: NDArray[np.int64] | None = None
    slip_ns: NDArray[np.int64] | None = None
    offered_rate: float | None = None
    sustainable_rate: float | None = None
    search_note: str = ""

    def __post_init__(self) -> None:
        for name in ("response_ns", "slip_ns"):
            column = getattr(self, name)
            if column is not None and column.shape != self.service_ns.shape:
                raise RunError(f"LoadSample.{name}: not as long as service_ns")

    @property
    def is_valid(self) -> bool:
        """Whether the harness kept to its schedule."""
        return self.slip_ns is None or kept_schedule(self.service_ns, self.slip_ns)


def kept_schedule(service_ns: NDArray[np.int64], slip_ns: NDArray[np.int64]) -> bool:
    """Tell whether the harness handed events over on time.

    A run in which it fell behind offered less load than it says, so its times prove nothing.
    """
    if not service_ns.size:
        return True
    slipped = slip_ns > SLIP_OF_SERVICE * np.median(service_ns)
    return bool(slipped.mean() <= MOST_SLIPPED)
