"""Matrix products per channel, and the moves between the orders of axes that they ask for.

What is said here to a compiler changes no number: it says what to write to memory, and how.
Axes: G chunks, C steps of a chunk, D channels, N states per channel.
"""

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from sma_core.tracing import is_compiling


def by_channel(x: Float[Tensor, "G C D"]) -> Float[Tensor, "D G C"]:
    """Move channels to the front, in memory too; the gradient moves them back.

    Matrix products would otherwise copy each channel's matrix by itself.
    """
    return cast("Tensor", _ByChannel.apply(x))


def by_time(x: Float[Tensor, "D G C"]) -> Float[Tensor, "G C D"]:
    """Move channels back, the inverse of `by_channel`; compiled, a view for others to copy."""
    return cast("Tensor", _ByTime.apply(x))


def sum_of_products(
    a: Float[Tensor, "D G C"],
    b: Float[Tensor, "D C C"],
    c: Float[Tensor, "D G N"],
    d: Float[Tensor, "D N C"],
) -> Float[Tensor, "D G C"]:
    """Give ``a @ b + c @ d``, where a compiler too adds the second to the first where it lies."""
    return cast("Tensor", _SumOfProducts.apply(a, b, c, d))


def held(x: Tensor) -> Tensor:
    """Contiguous, and written to memory as it is, also where a compiler would choose otherwise."""
    x = x.contiguous()
    return x.as_strided(x.shape, x.stride()) if is_compiling() else x


class _ByChannel(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return held(x.permute(2, 0, 1))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None: ...

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return held(gradients[0].permute(1, 2, 0))


class _ByTime(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        x = x.permute(1, 2, 0)
        return x if is_compiling() else x.contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None: ...

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return held(gradients[0].permute(2, 0, 1))


@torch.library.custom_op("sma_core::add_product_", mutates_args={"total"})
def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Of stock products; as an operator of its own, a compiler leaves it in place."""
    total.baddbmm_(a, b)


class _SumOfProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        ctx.save_for_backward(a, b, c, d)
        total = torch.bmm(a, b)
        _add_product(total, c, d)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        a, b, c, d = ctx.saved_tensors
        (gradient,) = gradients
        return (
            torch.bmm(gradient, b.mT),
            torch.bmm(a.mT, gradient),
            torch.bmm(gradient, d.mT),
            torch.bmm(c.mT, gradient),
        )
