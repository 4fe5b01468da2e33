"""What is said to a compiler about products and sums changes no number."""

import pytest
import torch
from tests.tolerances import assert_close
from torch.nn import functional

from sma_core.products import by_channel, by_time, sum_of_products
from sma_core.sums import _KeptInBfloat16, silu_of_sum


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def test_a_sum_of_products_and_its_gradients() -> None:
    torch.manual_seed(0)
    factors = draw(3, 5, 4), draw(3, 4, 4), draw(3, 5, 2), draw(3, 2, 4)
    a, b, c, d = factors
    assert_close(sum_of_products(*factors), a @ b + c @ d, "float64")
    assert torch.autograd.gradcheck(sum_of_products, factors)


def test_moves_between_orders_undo_each_other() -> None:
    x = draw(2, 3, 4)
    assert by_channel(x).is_contiguous()
    assert by_time(by_channel(x)).equal(x)
    assert torch.autograd.gradcheck(by_channel, (x,))
    assert torch.autograd.gradcheck(by_time, (x,))


def test_the_sum_kept_in_bfloat16_has_the_sums_value_and_nearly_its_gradient() -> None:
    torch.manual_seed(0)
    a, b = (torch.randn(64, 32, requires_grad=True) for _ in range(2))
    weight = torch.randn(64, 32)
    plain = functional.silu(a + b)
    kept = _KeptInBfloat16.apply(a, b)
    assert kept.equal(plain)
    expected = torch.autograd.grad(plain, (a, b), weight)
    found = torch.autograd.grad(kept, (a, b), weight)
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs, "bfloat16")
        assert not ours.equal(theirs)


@pytest.mark.parametrize("narrow", [False, True])
def test_uncompiled_nothing_is_rounded(narrow: bool) -> None:
    a, b = (torch.randn(8, 4, requires_grad=True) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        out = silu_of_sum(a, b)
    expected = torch.autograd.grad(functional.silu(a + b).sum(), a)[0]
    assert torch.autograd.grad(out.sum(), a)[0].equal(expected)
