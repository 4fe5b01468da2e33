"""Shapes in signatures are checked while tests run, except where they are said not to be."""

import jaxtyping
import pytest
import torch
from tests.core.shapes import unchecked_shapes

from sma_core.sums import silu_of_sum

pytest.importorskip("beartype", reason="shapes are checked by beartype")


def wrong() -> None:
    """Broadcast, as its signature forbids and PyTorch does not."""
    assert silu_of_sum(torch.zeros(2), torch.zeros(1)).shape == (2,)


def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        wrong()


@pytest.mark.parametrize("end", [None, KeyError("a test that fails")])
def test_checks_come_back_however_the_block_ends(end: Exception | None) -> None:
    try:
        with unchecked_shapes(), unchecked_shapes():
            wrong()
            if end is not None:
                raise end
    except KeyError:
        pass
    with pytest.raises(jaxtyping.TypeCheckError):
        wrong()
    with unchecked_shapes():
        with unchecked_shapes():
            pass
        wrong()  # the inner block gives back what it found
