"""What the guard keeps of one entity from row to row."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sma_core.model import Inputs
from sma_pilot.guard.drift import DriftWindow
from sma_pilot.guard.fallback import Reason
from sma_pilot.guard.recent import RecentRows
from sma_pilot.guard.routing import ActivationWindow

FIRST = torch.zeros(1, dtype=torch.int64)
"""Index of the only sequence of a lane's states."""


@dataclass
class Lane:
    """One entity under guard.

    Parameters
    ----------
    recent : RecentRows
    activation : ActivationWindow
    drift : DriftWindow or None
        None when drift is not watched.
    candidate, incumbent : scorer's state or None
        None while the model rests.
    rows : int
        Rows so far.
    hold : int
        Rows that the fallback serves yet.
    reason : Reason or None
        Why the entity is on the fallback, until the candidate has served again.
    is_escalated : bool
        Whether a person was asked since the incumbent failed in this fallback.
    """

    recent: RecentRows
    activation: ActivationWindow
    drift: DriftWindow | None
    candidate: Any = None
    incumbent: Any = None
    rows: int = 0
    hold: int = 0
    reason: Reason | None = None
    is_escalated: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept of the entity."""
        parts = (self.recent, self.activation, self.drift, self.candidate, self.incumbent)
        return sum(part.nbytes for part in parts if part is not None)

    @property
    def is_candidate_resting(self) -> bool:
        """Whether the candidate must be brought up to date before it can serve."""
        return self.candidate is None

    def take(self, rows: Inputs) -> None:
        """Take note of rows that were served."""
        self.recent.push(rows)
        self.rows += rows.steps

    def copy(self) -> "Lane":
        """Return a copy that shares nothing that changes."""
        return Lane(
            recent=self.recent.copy(),
            activation=self.activation.copy(),
            drift=None if self.drift is None else self.drift.copy(),
            candidate=None if self.candidate is None else self.candidate.select(FIRST),
            incumbent=None if self.incumbent is None else self.incumbent.select(FIRST),
            rows=self.rows,
            hold=self.hold,
            reason=self.reason,
            is_escalated=self.is_escalated,
        )


@dataclass
class GuardState:
    """State of a batch under guard: a lane for each sequence, none of which knows the others."""

    lanes: list[Lane]

    @property
    def nbytes(self) -> int:
        """Bytes of all lanes together."""
        return sum(lane.nbytes for lane in self.lanes)

    def select(self, index: Tensor) -> "GuardState":
        """Return a copy of the given lanes, in that order."""
        return GuardState([self.lanes[i].copy() for i in index.tolist()])

    def put(self, index: Tensor, rows: "GuardState") -> None:
        """Overwrite the given lanes with copies of those of another state."""
        for place, lane in zip(index.tolist(), rows.lanes, strict=True):
            self.lanes[place] = lane.copy()
