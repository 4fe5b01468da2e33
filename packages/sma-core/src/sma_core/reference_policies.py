"""The specification of routing: each policy's equations on one sequence, in evaluation.

A part of `sma_core.reference`, and like it without a line of the fast code.
"""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sma_core.config import (
    AlwaysConfig,
    NeverConfig,
    PeriodicConfig,
    RandomConfig,
    TemperedSoftmaxConfig,
)
from sma_core.policy_configs import BudgetConfig, GumbelConfig, SigmoidConfig, TopKConfig


class Decided(NamedTuple):
    """Whether a sub-module runs at a step, the weight of its output, and how surely it runs."""

    active: bool
    confidence: Float[Tensor, ""]
    surety: float


def decide(policy: Any, layer: int, m: int, y: list[Tensor], logits: list[Tensor]) -> list[Decided]:
    """Decide about sub-module m at each step of a sequence."""
    config, steps = policy.config, range(len(y))
    match config:
        case TemperedSoftmaxConfig():
            p = [torch.softmax(u / torch.exp(policy.theta[m]), dim=0) for u in logits]
            return [
                Decided(bool(u[1] > u[0]), p_t.max(), p_t[1].item())
                for u, p_t in zip(logits, p, strict=True)
            ]
        case GumbelConfig() | SigmoidConfig():
            tau = config.temperature.start
            if config.temperature.end is not None:
                tau = config.temperature.end
            return [_straight_through(u[1] - u[0], tau) for u in logits]
        case TopKConfig() | BudgetConfig():
            margins = [u[1] - u[0] for u in logits]
            p = [1 / (1 + torch.exp(-margin / torch.exp(policy.theta[m]))) for margin in margins]
            values = [margin.item() for margin in margins]
            if isinstance(config, BudgetConfig):
                runs = _budget(config, values)
            elif config.evaluation == "top_k":
                runs = _top_k(config, values)
            else:
                w, b = policy.predictor.weight[m], policy.predictor.bias[m]
                runs = [bool((w * y_t).sum() + b > 0) for y_t in y]
            return [Decided(runs[t], p[t], p[t].item()) for t in steps]
    one = torch.ones((), dtype=torch.float64)
    return [Decided(_fixed(config, policy.pool, layer, m, t), one, 1.0) for t in steps]


def _straight_through(margin: Float[Tensor, ""], tau: float) -> Decided:
    p = 1 / (1 + torch.exp(-margin / tau))
    return Decided(bool(margin > 0), 1 + p - p.item(), (1 / (1 + torch.exp(-margin))).item())


def _top_k(config: TopKConfig, margins: list[float]) -> list[bool]:
    n = len(margins)
    k = (n * round(config.rate * 2**32) + 2**31) // 2**32
    ranked = sorted(range(n), key=lambda t: (-margins[t], t))
    return [t in ranked[:k] for t in range(n)]


def _budget(config: BudgetConfig, margins: list[float]) -> list[bool]:
    rho, block, window = config.rate, config.block, config.window
    runs: list[bool] = []
    threshold = debt = 0.0
    for t, margin in enumerate(margins):
        if t and t % block == 0:
            debt += sum(runs[-block:]) - rho * block
            share = rho - debt / window
            recent = sorted(margins[max(0, t - window) : t])
            n = len(recent)
            place = min(max(n - share * (n + 1), 0), n - 1)
            low = math.floor(place)
            high = min(low + 1, n - 1)
            threshold = recent[low] + (place - low) * (recent[high] - recent[low])
            if share <= 0:
                threshold = math.inf
            elif share >= 1:
                threshold = -math.inf
        runs.append(margin - threshold > 1e-4)
    return runs


def _fixed(config: Any, pool: int, layer: int, m: int, t: int) -> bool:
    match config:
        case AlwaysConfig():
            return True
        case NeverConfig():
            return False
        case PeriodicConfig():
            return t % config.stride == 0
        case RandomConfig():
            stream = layer * pool + m + config.seed * _GOLDEN
            return _splitmix(_splitmix(stream) + t) % 2**53 < round(config.rate * 2**53)
    raise NotImplementedError(f"no equations here for {type(config).__name__}")


_GOLDEN = 0x9E3779B97F4A7C15


def _splitmix(x: int) -> int:
    x = (x + _GOLDEN) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)
