"""Compress and extract: inverse to each other, in time order, the same in both layouts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sma_core.dispatch import (
    DISPATCHES,
    CapacityDispatch,
    Dispatch,
    PackedDispatch,
    PaddedDispatch,
)

LAYOUTS = pytest.mark.parametrize("layout", DISPATCHES.values(), ids=DISPATCHES.keys())
MASKS = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 3)).flatmap(
    lambda shape: st.lists(
        st.booleans(),
        min_size=shape[0] * shape[1] * shape[2],
        max_size=shape[0] * shape[1] * shape[2],
    ).map(lambda flat: torch.tensor(flat).view(shape))
)


def numbered(batch: int, steps: int) -> Tensor:
    """Rows [B, T, 2] that tell where they come from."""
    b, t = torch.meshgrid(torch.arange(batch), torch.arange(steps), indexing="ij")
    return torch.stack((b, t), dim=-1).double() + 1


def clock(batch: int, steps: int) -> Tensor:
    """Time indices that begin at another number in each sequence, as in a stream."""
    return torch.arange(steps) + 100 * torch.arange(batch)[:, None]


def plan(layout: type[Dispatch], active: Tensor) -> list[Dispatch]:
    return layout.plan(active, clock(*active.shape[:2]))


@LAYOUTS
@settings(max_examples=80, deadline=None)
@given(active=MASKS)
def test_extract_inverts_compress(layout: type[Dispatch], active: Tensor) -> None:
    x = numbered(*active.shape[:2])
    for m, dispatch in enumerate(plan(layout, active)):
        assert dispatch.extract(dispatch.compress(x)).equal(x * active[..., m, None])


@LAYOUTS
@settings(max_examples=80, deadline=None)
@given(active=MASKS)
def test_rows_are_the_active_steps_in_time_order(layout: type[Dispatch], active: Tensor) -> None:
    batch, steps, pool = active.shape
    x = numbered(batch, steps)
    for m, dispatch in zip(range(pool), plan(layout, active), strict=True):
        rows, values = dispatch.rows, dispatch.compress(x)
        for b in range(batch):
            times = [t for t in range(steps) if active[b, t, m]]
            at = slice(int(rows.start[b]), int(rows.start[b] + rows.count[b]))
            assert rows.count[b] == len(times)
            assert values[at].tolist() == [[b + 1, t + 1] for t in times]
            assert rows.position[at].tolist() == [t + 100 * b for t in times]
            assert rows.sequence[at].tolist() == [b] * len(times)
            assert rows.group[at].unique().numel() <= 1
            if rows.padding is not None:
                assert not rows.padding[at].any()
        real = active[..., m].sum()
        padding = 0 if rows.padding is None else int(rows.padding.sum())
        assert len(values) == len(rows.sequence) == len(rows.position) == real + padding


@settings(max_examples=50, deadline=None)
@given(active=MASKS)
def test_padding_is_zero_and_a_group_of_its_own(active: Tensor) -> None:
    batch, _, pool = active.shape
    x = numbered(*active.shape[:2])
    for m, dispatch in zip(range(pool), plan(PaddedDispatch, active), strict=True):
        rows = dispatch.rows
        assert rows.padding is not None
        assert len(rows.sequence) == batch * int(active[..., m].sum(1).max())
        assert not dispatch.compress(x)[rows.padding].any()
        real = set(rows.group[~rows.padding].tolist())
        assert not real & set(rows.group[rows.padding].tolist())
        # Rows of one group lie side by side.
        assert len(rows.group.unique_consecutive()) == len(rows.group.unique())


@LAYOUTS
def test_what_is_extracted_from_padding_is_dropped(layout: type[Dispatch]) -> None:
    """A sub-module's bias makes rows of padding non-zero; they must not come back."""
    active = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0]]).bool()
    (dispatch,) = plan(layout, active.unsqueeze(-1))
    rows = torch.full((len(dispatch.rows.sequence), 2), 7.0)
    assert dispatch.extract(rows).equal(7.0 * active.unsqueeze(-1).expand(-1, -1, 2))


@LAYOUTS
def test_gradients_go_where_the_rows_came_from(layout: type[Dispatch]) -> None:
    active = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0]]).bool()
    (dispatch,) = plan(layout, active.unsqueeze(-1))
    x = numbered(3, 3).requires_grad_()
    weight = numbered(3, 3)
    (dispatch.extract(dispatch.compress(x) * 2) * weight).sum().backward()
    assert x.grad is not None
    assert x.grad.equal(2 * weight * active.unsqueeze(-1))


@LAYOUTS
def test_nothing_active(layout: type[Dispatch]) -> None:
    (dispatch,) = plan(layout, torch.zeros(2, 5, 1, dtype=torch.bool))
    x = torch.randn(2, 5, 3, requires_grad=True)
    rows = dispatch.compress(x)
    # A layout of fixed capacity has its slots all the same: padding, all of it.
    assert rows.shape == (10 if layout is CapacityDispatch else 0, 3)
    out = dispatch.extract(rows)
    assert out.equal(torch.zeros(2, 5, 3))
    out.sum().backward()
    assert x.grad is not None
    assert not x.grad.any()


def test_packed_rows_have_no_padding() -> None:
    active = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0]]).bool()
    (dispatch,) = plan(PackedDispatch, active.unsqueeze(-1))
    assert dispatch.rows.padding is None
    assert dispatch.rows.start.tolist() == [0, 2, 2]
    assert dispatch.rows.group.tolist() == [0, 0, 2]
