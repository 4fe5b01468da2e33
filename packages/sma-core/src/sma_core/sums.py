"""The sum that ends a layer, and what its backward pass keeps of it."""

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sma_core.products import held
from sma_core.tracing import autocasts_to_bfloat16, is_compiling


def silu_of_sum(a: Float[Tensor, "*B D"], b: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
    """Add, then SiLU.

    Under autocast to bfloat16 a compiled layer keeps the sum for its backward pass in bfloat16, as
    autocast keeps the results of products; the sum itself is that of its terms' type.
    """
    wide = a.dtype is b.dtype is torch.float32
    if wide and is_compiling() and autocasts_to_bfloat16(a.device.type):
        return cast("Tensor", _KeptInBfloat16.apply(a, b))
    return functional.silu(a + b)


class _KeptInBfloat16(torch.autograd.Function):
    """A compiler would keep the float32 sum, and read it twice: bytes are what bounds a layer."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        total = a + b
        # Held, as a compiler drops a conversion there and back.
        ctx.save_for_backward(held(total.to(torch.bfloat16)))
        return functional.silu(total)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor]:
        total = ctx.saved_tensors[0].to(torch.float32)
        gate = torch.sigmoid(total)
        gradient = gradients[0] * gate * (1 + total * (1 - gate))
        return gradient, gradient
