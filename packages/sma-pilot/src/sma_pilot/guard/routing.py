"""What the candidate's router tells of its own health: how sure it is, and how much it runs."""

from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray

from sma_pilot.arms.base import Decisions


def confidence(decisions: Decisions) -> NDArray[np.float32] | None:
    """Return the mean probability of the decisions that were taken, float32 [T].

    A sub-module that ran counts with its probability of running, one that was skipped with that of
    being skipped; the mean is over layers and sub-modules. A policy that draws no probability, such
    as a fixed one, has no doubt to tell of: None.

    Parameters
    ----------
    decisions : tuple of RoutingDecision
        Of one sequence, each [1, T, M].
    """
    probabilities = [d.probability[0] for d in decisions if d.probability is not None]
    if not decisions or len(probabilities) < len(decisions):
        return None
    running = torch.cat(probabilities, -1).float()
    active = torch.cat([decision.active[0] for decision in decisions], -1)
    return torch.where(active, running, 1 - running).mean(-1).cpu().numpy()


def runs(decisions: Decisions) -> tuple[NDArray[np.int64], int] | None:
    """Return how many sub-modules ran at each row, int64 [T], and how many there are in all.

    None for a model that does not route.
    """
    if not decisions:
        return None
    active = torch.cat([decision.active[0] for decision in decisions], -1)
    return active.sum(-1).cpu().numpy(), active.shape[-1]


class ActivationWindow:
    """Share of sub-module runs over the latest `size` rows of one entity.

    Parameters
    ----------
    size : int
        Rows; before so many have come there is no share, since a few quiet rows are no collapse.
    """

    def __init__(self, size: int) -> None:
        self._ran: deque[int] = deque(maxlen=size)
        self._size = size
        self._sum = 0

    def push(self, ran: int, modules: int) -> float | None:
        """Take the runs of the next row, out of `modules`, and return the share, this row in."""
        if len(self._ran) == self._size:
            self._sum -= self._ran[0]
        self._ran.append(ran)
        self._sum += ran
        return self._sum / (self._size * modules) if len(self._ran) == self._size else None

    def clear(self) -> None:
        """Forget every row: the model that takes over was not there."""
        self._ran.clear()
        self._sum = 0

    def copy(self) -> "ActivationWindow":
        """Return a copy."""
        twin = ActivationWindow(self._size)
        twin._ran, twin._sum = self._ran.copy(), self._sum
        return twin

    @property
    def nbytes(self) -> int:
        """Bytes of the counts, as a list of machine words."""
        return 8 * len(self._ran)
