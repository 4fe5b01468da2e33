"""Policies that look at the position alone: bounds and controls for the learned ones."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sma_core.config import PeriodicConfig, RandomConfig
from sma_core.operations import Extent, Operation
from sma_core.routing.decision import RoutingDecision
from sma_core.routing.policy import Policy


class FixedPolicy(Policy):
    """Decide from the position; the confidence is 1, the logits are left unread."""

    learns = False

    def decide(self, position: Int[Tensor, "B T"]) -> Bool[Tensor, "B T #M"]:
        """Whether to run at each position, for each sub-module or for all alike."""
        raise NotImplementedError

    def forward(
        self, logits: Float[Tensor, "B T M 2"], position: Int[Tensor, "B T"]
    ) -> RoutingDecision:
        """See `Policy.forward`."""
        active = self.decide(position).expand(-1, -1, self.pool)
        return RoutingDecision(active=active, confidence=logits.new_ones(active.shape))

    @classmethod
    def operations(cls, config: Any, *, width: int, pool: int, extent: Extent) -> list[Operation]:
        """See `Policy.operations`: what it writes has no gradient."""
        written = extent.rows * pool * (1 + extent.narrow)
        return [Operation(name="decide", read=0.0, written=written, back=0.0)]


class Always(FixedPolicy):
    """Run every sub-module at every step."""

    def decide(self, position: Int[Tensor, "B T"]) -> Bool[Tensor, "B T #M"]:
        """See `FixedPolicy.decide`."""
        return torch.ones_like(position, dtype=torch.bool).unsqueeze(-1)


class Never(FixedPolicy):
    """Run no sub-module at any step."""

    def decide(self, position: Int[Tensor, "B T"]) -> Bool[Tensor, "B T #M"]:
        """See `FixedPolicy.decide`."""
        return torch.zeros_like(position, dtype=torch.bool).unsqueeze(-1)


class Periodic(FixedPolicy):
    """Run every sub-module at positions 0, stride, 2 stride, ..."""

    config: PeriodicConfig

    def decide(self, position: Int[Tensor, "B T"]) -> Bool[Tensor, "B T #M"]:
        """See `FixedPolicy.decide`."""
        return (position % self.config.stride == 0).unsqueeze(-1)


class Random(FixedPolicy):
    """Run with a given probability, drawn by hashing (seed, layer, sub-module, position).

    A hash has no hidden state: streaming, chunks and one pass draw the same, on every device.
    """

    config: RandomConfig

    def decide(self, position: Int[Tensor, "B T"]) -> Bool[Tensor, "B T #M"]:
        """See `FixedPolicy.decide`."""
        streams = torch.arange(self.pool, device=position.device) + self.layer * self.pool
        mixed = _mix(_mix(streams + _wrap(self.config.seed * _GOLDEN)) + position.unsqueeze(-1))
        # 53 bits: integers that float64 holds exactly, so that rate 1 means every step.
        return (mixed & (2**53 - 1)) < round(self.config.rate * 2**53)


def _wrap(x: int) -> int:
    """Signed value of the last 64 bits: Python's integers do not overflow, int64 ones wrap."""
    return (x + 2**63) % 2**64 - 2**63


_GOLDEN = _wrap(0x9E3779B97F4A7C15)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64 finaliser (Steele, Lea and Flood, 2014) in wrapping int64 arithmetic."""
    x = x + _GOLDEN
    x = (x ^ _shift(x, 30)) * _wrap(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _wrap(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros; the operator would copy the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
