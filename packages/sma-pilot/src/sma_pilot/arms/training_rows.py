"""Training rows for arms that fit on rows: a sample of bounded size, however long the log."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sma_core.dataset import Rows, Split
from sma_pilot.arms.row_scorer import RowState, tells_something, windows_of
from sma_pilot.progress import OnProgress

_CHUNK_ROWS = 16_384


@dataclass(frozen=True)
class TrainingRows:
    """N rows of the train slice.

    Parameters
    ----------
    windows : Tensor, float32 [N, W, C]
        Of each row it and those before it, the present one last; NaN = missing.
    categorical : Tensor or None, int64 [N, K]
    target : Tensor or None, int64 [N]
        Class; known for each of them.
    """

    windows: Tensor
    categorical: Tensor | None
    target: Tensor | None


def sample_rows(
    train: Split, *, window: int, most: int, learns: bool, seed: int, stage: str, on: OnProgress
) -> TrainingRows:
    """Draw about `most` rows, or take all if there are fewer: each with the same chance.

    Rows without any value are left out, and where classes are learned those without one.

    Parameters
    ----------
    train : Split
    window : int
        W.
    most : int
    learns : bool
        Whether classes are learned.
    seed : int
    stage : str
        Name of the step for `on`.
    on : OnProgress
    """
    usable = total = 0
    for windows, rows in _chunks(train, 1):
        usable += int(_usable(windows, rows, learns).sum())
    rate = min(1.0, most / max(usable, 1))
    generator = torch.Generator().manual_seed(seed)
    parts: list[tuple[Tensor, Tensor | None, Tensor | None]] = []
    for windows, rows in _chunks(train, window):
        on(stage, total, train.rows)
        total += len(windows)
        chosen = torch.rand(len(windows), generator=generator, dtype=torch.float64) < rate
        chosen &= _usable(windows, rows, learns)
        parts.append(
            (
                windows[chosen],
                None if rows.categorical is None else rows.categorical[chosen].long(),
                rows.target[chosen].long() if learns and rows.target is not None else None,
            )
        )
    windows, categorical, target = zip(*parts, strict=True)
    return TrainingRows(torch.cat(windows), _joined(categorical), _joined(target))


def _chunks(train: Split, window: int) -> Iterator[tuple[Tensor, Rows]]:
    """Windows [T, W, C] and rows of the train slice, a bounded chunk at a time."""
    for _, first, last in train.sequences:
        state: RowState | None = None
        for start in range(first, last, _CHUNK_ROWS):
            rows = train.read(start, min(start + _CHUNK_ROWS, last))
            numeric = rows.numeric
            if numeric is None:
                numeric = torch.zeros(len(rows.time), 0)
            if state is None:
                past = torch.full((1, window - 1, numeric.shape[1]), torch.nan)
                state = RowState(past, torch.zeros(1))
            yield windows_of(numeric[None], state)[0], rows


def _usable(windows: Tensor, rows: Rows, learns: bool) -> Tensor:
    usable = tells_something(windows, rows.categorical)
    if learns and rows.target is not None:
        usable &= rows.target >= 0
    return usable


def _joined(parts: tuple[Tensor | None, ...]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known) if known else None
