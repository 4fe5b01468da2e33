"""How often each value has occurred in a session: what the counting baselines see of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sma_core.dataset import SequenceRef, Split
from sma_core.model import Inputs
from sma_core.state import TensorState

_CHUNK_ROWS = 65_536


@dataclass(frozen=True)
class Sessions:
    """Some sessions of a split as points.

    Parameters
    ----------
    points : Tensor, float64 [S, V]
        log(1 + count) of each value of each categorical channel, one channel after the other.
    unusual : Tensor, bool [S]
        Whether a row of the session is labelled above 0.
    target : Tensor, int32 [S]
        What the last row is taught.
    rows : int
        How many rows they have.
    """

    points: Tensor
    unusual: Tensor
    target: Tensor
    rows: int


def read_sessions(split: Split, vocabularies: Sequence[int]) -> Iterator[Sessions]:
    """Read all sequences of a split as points, a bounded number of rows at a time."""
    offsets, width = _offsets(vocabularies), sum(vocabularies)
    for group in _groups(split.sequences):
        start, stop = group[0].start, group[-1].stop
        rows = split.read(start, stop)
        assert rows.categorical is not None  # noqa: S101  (the plan asks for such a column)
        assert rows.target is not None  # noqa: S101  (tasks of sessions have one)
        lengths = torch.tensor([ref.stop - ref.start for ref in group])
        session = torch.repeat_interleave(torch.arange(len(group)), lengths)
        place = session[:, None] * width + rows.categorical.long() + offsets
        counts = torch.bincount(place.ravel(), minlength=len(group) * width)
        yield Sessions(
            points=counts.view(len(group), width).double().log1p(),
            unusual=torch.bincount(session, rows.label > 0, minlength=len(group)) > 0,
            target=rows.target[lengths.cumsum(0) - 1],
            rows=stop - start,
        )


def _groups(sequences: list[SequenceRef]) -> Iterator[list[SequenceRef]]:
    """Put sequences that follow each other together, up to about 65,536 rows."""
    group: list[SequenceRef] = []
    for ref in sequences:
        if group and ref.stop - group[0].start > _CHUNK_ROWS:
            yield group
            group = []
        group.append(ref)
    if group:
        yield group


def _offsets(vocabularies: Sequence[int]) -> Tensor:
    sizes = torch.tensor(list(vocabularies), dtype=torch.int64)
    return sizes.cumsum(0) - sizes


@dataclass
class CountState(TensorState):
    """How often each value has occurred in the session so far, float32 [B, V]."""

    counts: Tensor


class SessionCounter:
    """Counts along sessions.

    Parameters
    ----------
    vocabularies : sequence of int
        Number of values of each categorical channel.
    """

    def __init__(self, vocabularies: Sequence[int]) -> None:
        self._offsets = _offsets(vocabularies)
        self._width = sum(vocabularies)

    def start(self, batch: int) -> CountState:
        """Return the state of sessions of which nothing has been seen."""
        return CountState(torch.zeros(batch, self._width))

    def points(self, inputs: Inputs, state: CountState) -> Tensor:
        """Return log(1 + count) up to each row, float32 [B, T, V], and bring `state` up to date."""
        assert inputs.categorical is not None  # noqa: S101  (the plan asks for such a column)
        seen = torch.zeros(inputs.batch, inputs.steps, self._width)
        place = inputs.categorical + self._offsets
        seen.scatter_(2, place, torch.ones(place.shape))
        counts = state.counts[:, None] + seen.cumsum(1)
        state.counts = counts[:, -1].clone()
        return counts.log1p()
