"""Normalisation of the residual stream: over the channels of a step, or over a batch of steps."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from sma_core.config import Norm

EPS = 1e-5  # added to a variance, in every norm


class LayerNorm(nn.LayerNorm):
    """Mean and variance over the channels of each step (Ba et al., arXiv 1607.06450)."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=EPS)

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "*B D"], valid: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "*B D"]:
        """Normalise each step by itself; `valid` plays no part."""
        return super().forward(x)


class ScaleNorm(nn.Module):
    """Mean square over the channels of each step, and one gain for all channels.

    Nguyen and Salazar, arXiv 1910.05895; as in the Mega and SeqBoat code the gain starts at 1 and
    the step is divided by its root mean square.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.eps = EPS
        self.weight = nn.Parameter(torch.ones(1))

    def forward(
        self, x: Float[Tensor, "*B D"], valid: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "*B D"]:
        """Normalise each step by itself; `valid` plays no part."""
        return functional.rms_norm(x, (self.width,), eps=self.eps) * self.weight


class BatchNorm(nn.Module):
    """Mean and variance of each channel over all steps of a batch (arXiv 1502.03167).

    In training the output at a step depends on every valid step of the batch, later ones
    included. In evaluation running averages take their place, and a causal model is causal.
    Padded steps never count. Each process of a parallel run keeps averages of its own.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, width: int, *, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps = EPS
        self.momentum = momentum  # share of the newest batch in the running averages
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        # The names of torch's own batch norm, so that its weights fit.
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(
        self, x: Float[Tensor, "*B D"], valid: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "*B D"]:
        """Normalise a batch [B, T, D], or one step [B, D] by the running averages alone.

        Parameters
        ----------
        x
            Steps.
        valid
            Which steps count in training; None when all do.
        """
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.training and x.dim() == 3:
            mean, variance = self._batch_statistics(wide, valid)
        else:
            mean, variance = self.running_mean, self.running_var
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return torch.addcmul(self.bias, wide - mean, scale).to(x.dtype)

    def _batch_statistics(
        self, x: Float[Tensor, "B T D"], valid: Bool[Tensor, "B T"] | None
    ) -> tuple[Float[Tensor, "D"], Float[Tensor, "D"]]:
        """Mean and variance over the valid steps; the running averages move towards them."""
        if valid is None:
            valid = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        counted, count = valid.unsqueeze(-1), valid.sum()
        mean = x.where(counted, 0.0).sum((0, 1)) / count.clamp_min(1)
        squares = (x - mean).where(counted, 0.0).square().sum((0, 1))
        with torch.no_grad():
            # One step has no unbiased variance, and a batch without any step moves nothing.
            unbiased = squares / (count - 1).clamp_min(1)
            share = self.momentum * (count > 0).to(self.running_mean.dtype)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
            share = share * (count > 1)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)
            self.num_batches_tracked += count > 0
        return mean, squares / count.clamp_min(1)


_NORMS: dict[str, type[LayerNorm] | type[BatchNorm] | type[ScaleNorm]] = {
    "layer": LayerNorm,
    "batch": BatchNorm,
    "scale": ScaleNorm,
}


def build_norm(kind: Norm, width: int) -> LayerNorm | BatchNorm | ScaleNorm:
    """Make the norm of that name for D channels."""
    return _NORMS[kind](width)
