"""Data and a router such that exactly the asked share of steps runs, in any arithmetic.

Logits in bfloat16 take few values, and a compiler rounds at other places than eager code does: a
threshold among dense margins would let other steps run in each peer. So channel 0 of the data is
a mark, +4 where a step is to run and -4 where not, chosen at random. It passes the EMA unmixed
and moves the run logit far past all noise. Router, temperature and their gradients work as ever.
"""

from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sma_core.block import SMABlock
from sma_core.inputs import Inputs
from sma_core.layer import SMALayer
from sma_core.model import SMAModel
from sma_core.routing.decision import RoutingDecision

_MARK = 4.0
_PULL = 8.0  # weight of the mark in the run logit


def draw_routing(
    batch: int, steps: int, density: float, *, generator: torch.Generator
) -> Bool[Tensor, "B T"]:
    """Choose ``round(density * B * T)`` steps of a batch at random, so sequences differ."""
    total = batch * steps
    order = torch.randperm(total, generator=generator, device=generator.device)
    active = torch.zeros(total, dtype=torch.bool, device=generator.device)
    active[order[: round(density * total)]] = True
    return active.view(batch, steps)


def draw_input(
    active: Bool[Tensor, "B T"], width: int, *, generator: torch.Generator
) -> Float[Tensor, "B T D"]:
    """Draw normal noise of variance 1, with the mark in channel 0."""
    x = torch.randn(*active.shape, width, generator=generator, device=generator.device)
    x[..., 0] = torch.where(active, _MARK, -_MARK)
    return x


@torch.no_grad()
def fix_routing(block: SMABlock, x: Float[Tensor, "B T D"], active: Bool[Tensor, "B T"]) -> None:
    """Change a block of one sub-module so that of `x` exactly the steps `active` run.

    Raises
    ------
    RuntimeError
        The mark does not stand out: weights are too large, or the width is too small.
    """
    _read_mark(block.layer)
    block(x)
    assert block.decision is not None  # noqa: S101  (made by the call before)
    _set_threshold(block.layer, block.decision, active)
    block.decision = None


@torch.no_grad()
def fix_model_routing(model: SMAModel, inputs: Inputs, active: Bool[Tensor, "B T"]) -> None:
    """Change a model so that each layer runs exactly the steps `active` of `inputs`.

    The first numeric channel is the mark. It goes through the residual stream by itself.

    Raises
    ------
    RuntimeError
        The mark does not stand out in some layer.
    """
    numeric = model.embed.numeric
    assert numeric is not None  # noqa: S101  (the mark is a numeric channel)
    numeric.weight[0] = 0.0
    numeric.weight[0, 0] = 1.0
    numeric.bias[0] = 0.0
    for index, layer in enumerate(cast("list[SMALayer]", list(model.layers))):
        _read_mark(layer)
        first = 2 * len(layer.config.pool)
        layer.project.weight[first] = 0.0
        layer.project.bias[first] = 0.0
        for member in layer.submodules:
            output = cast("nn.Linear", member.output)
            output.weight[0] = 0.0
            output.bias[0] = 0.0
        _set_threshold(layer, model(inputs).decisions[index], active)


def _read_mark(layer: SMALayer) -> None:
    """Let channel 0 pass norm and EMA by itself, and pull the run logit."""
    cast("Tensor", layer.norm.weight)[0] = 1.0
    cast("Tensor", layer.norm.bias)[0] = 0.0
    layer.ema.gamma[0] = 0.0
    layer.ema.omega[0] = 1.0
    layer.project.weight[0, 0] = 0.0
    layer.project.weight[1, 0] = _PULL


def _set_threshold(layer: SMALayer, decision: RoutingDecision, active: Bool[Tensor, "B T"]) -> None:
    if decision.margin is None:  # a fixed policy reads no mark
        return
    margin = decision.margin[..., 0]
    lowest = margin.where(active, torch.inf).amin().item()
    highest = margin.where(~active, -torch.inf).amax().item()
    if lowest <= highest:
        raise RuntimeError("the mark of the steps that are to run drowns in the router's noise")
    # Between both, or far from the one that there is.
    above = lowest if active.any() else highest + 2 * _PULL
    below = highest if not active.all() else lowest - 2 * _PULL
    layer.project.bias[1] -= (above + below) / 2


def ran(block: SMABlock) -> tuple[float, int]:
    """Share of steps that ran in a block's last forward, and how many found no slot."""
    assert block.decision is not None  # noqa: S101  (the caller ran it)
    dropped = block.decision.dropped
    share = block.decision.active.double().mean().item()
    return share, 0 if dropped is None else int(dropped.sum())
