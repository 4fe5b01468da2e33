"""Checks of what is appended to a data set, with errors that name the row and the channel."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sma_core.errors import DatasetError


def checked_column(
    where: str,
    key: str,
    value: Any,
    dtype: torch.dtype,
    tail: tuple[int, ...],
    rows: int | None = None,
) -> Tensor:
    """Check one column's dtype and shape; no value is looked at yet."""
    with warnings.catch_warnings():
        # A read-only array is fine: it is written to disk and dropped.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        try:
            column = torch.as_tensor(value, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise DatasetError(f"{where}: {key}: is no tensor: {error}") from error
    wanted = f"{str(dtype).removeprefix('torch.')} {[rows or 'T', *tail]}"
    if column.dtype != dtype or column.shape[1:] != tail or column.dim() != 1 + len(tail):
        raise DatasetError(
            f"{where}: {key}: must be {wanted}, got "
            f"{str(column.dtype).removeprefix('torch.')} {list(column.shape)}"
        )
    if rows is not None and column.shape[0] != rows:
        raise DatasetError(f"{where}: {key}: has {column.shape[0]} rows, time has {rows}")
    return column.detach()


def refuse(
    where: str,
    key: str,
    bad: Tensor,
    what: str,
    names: Sequence[str] = (),
    first_row: int = 0,
) -> None:
    """Raise, naming the first bad row (counted within this append) and its channel."""
    if not bad.any():
        return
    row, *column = torch.nonzero(bad)[0].tolist()
    channel = f" of channel {names[column[0]]!r}" if column else ""
    raise DatasetError(f"{where}: {key}: row {row + first_row}{channel} {what}")
