"""The latest rows of one entity: what a model that takes over is brought up to date with."""

from collections import deque
from typing import Any

import torch

from sma_core.model import Inputs
from sma_pilot.arms.base import Scorer, Scores


class RecentRows:
    """Keeps at least the latest `size` rows of one sequence, in the blocks they came in.

    Parameters
    ----------
    size : int
        Rows that are handed out; before so many have come, all of them.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._blocks: deque[Inputs] = deque()
        self._rows = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the rows that are kept."""
        return sum(
            tensor.nbytes
            for block in self._blocks
            for tensor in (block.numeric, block.categorical)
            if tensor is not None
        )

    def push(self, rows: Inputs) -> None:
        """Take the next rows, [1, T, channels]; they are copied."""
        latest = rows.map(lambda tensor: tensor[:, -self._size :].clone())
        self._blocks.append(latest)
        self._rows += latest.steps
        while self._rows - self._blocks[0].steps >= self._size:
            self._rows -= self._blocks.popleft().steps

    def prime(self, scorer: Scorer) -> tuple[Any, Scores | None]:
        """Return a state of `scorer` after the latest rows, and their scores.

        A state forgets: one that began with these rows is that of the whole past as far as the
        model looks back no further than they reach. The scores are None before the first row.
        """
        state = scorer.start(1)
        if not self._blocks:
            return state, None
        rows = Inputs(
            numeric=self._joined("numeric"),
            categorical=self._joined("categorical"),
        )
        return state, scorer.score(rows, state)

    def _joined(self, column: str) -> torch.Tensor | None:
        parts = [getattr(block, column) for block in self._blocks]
        return None if parts[0] is None else torch.cat(parts, 1)[:, -self._size :]

    def copy(self) -> "RecentRows":
        """Return a copy; blocks are never written to, so they are shared."""
        twin = RecentRows(self._size)
        twin._blocks, twin._rows = deque(self._blocks), self._rows
        return twin
