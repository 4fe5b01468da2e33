"""How an arm scores that has no memory of its own: each row by itself, or with a few before it."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sma_core.model import Inputs
from sma_core.state import TensorState
from sma_pilot.arms.base import Decisions, Scores
from sma_pilot.arms.forecast_error import Smoother


@dataclass
class RowState(TensorState):
    """What lies behind the next row of B sequences.

    Parameters
    ----------
    past : Tensor, float32 [B, W - 1, C]
        Numeric values of the rows before it, the last one last; NaN before the first row.
    average : Tensor, float64 [B]
        Smoothed score.
    """

    past: Tensor
    average: Tensor


class RowScorer:
    """Scores windows of rows and smooths the scores.

    Parameters
    ----------
    channels : int
        C, number of numeric channels.
    window : int
        W, rows that are looked at together: the present one and those before it.
    smoothing : int
        Span of the smoothing, in rows.
    """

    submodules: tuple[str, ...] = ()

    def __init__(self, channels: int, *, window: int = 1, smoothing: int = 1) -> None:
        self._channels = channels
        self._window = window
        self._smoother = Smoother(smoothing)

    @property
    @abstractmethod
    def weight_bytes(self) -> int | None:
        """See `Scorer.weight_bytes`."""

    def start(self, batch: int) -> RowState:
        """See `Scorer.start`."""
        past = torch.full((batch, self._window - 1, self._channels), torch.nan)
        return RowState(past, self._smoother.start(batch))

    def score(self, inputs: Inputs, state: RowState) -> Scores:
        """See `Scorer.score`."""
        return Scores(self._smoother.chunk(self._scores(inputs, state), state.average))

    def step(self, inputs: Inputs, state: RowState) -> tuple[float, Decisions]:
        """See `Scorer.step`."""
        return self._smoother.step(self._scores(inputs, state).item(), state.average), ()

    def _scores(self, inputs: Inputs, state: RowState) -> Tensor:
        numeric = inputs.numeric
        if numeric is None:  # of a log of categories alone
            numeric = torch.zeros(inputs.batch, inputs.steps, 0)
        return self._of_windows(windows_of(numeric, state), inputs.categorical)

    @abstractmethod
    def _of_windows(self, windows: Tensor, categorical: Tensor | None) -> Tensor:
        """Score T rows of B sequences.

        Parameters
        ----------
        windows : Tensor, float32 [B, T, W, C]
            Of each row it and those before it, the present one last; NaN = missing.
        categorical : Tensor or None, int64 [B, T, K]
            Of the present rows.

        Returns
        -------
        Tensor, float32 [B, T]
            NaN for a row that tells nothing.
        """


def windows_of(numeric: Tensor, state: RowState) -> Tensor:
    """Return each row [B, T, C] with those before it, [B, T, W, C], and move `state` past them."""
    before = state.past.shape[1]
    rows = torch.cat([state.past, numeric], 1)
    state.past = rows[:, rows.shape[1] - before :].clone()
    return rows.unfold(1, before + 1, 1).transpose(2, 3)


def tells_something(windows: Tensor, categorical: Tensor | None) -> Tensor:
    """Return which present rows [...] hold any value; windows are [..., W, C]."""
    if categorical is not None:
        return torch.ones(windows.shape[:-2], dtype=torch.bool)
    return windows[..., -1, :].isfinite().any(-1)
