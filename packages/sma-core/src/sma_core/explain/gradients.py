"""What a decision came from: gradient x input of a router's margin.

Shrikumar et al., "Not Just a Black Box", arXiv 1605.01713. To first order, the attribution of an
input is what the margin would lose if the input were 0.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sma_core.embedding import Embedding
from sma_core.errors import ConfigError
from sma_core.explain.views import by_layer, check_decisions, exchanged
from sma_core.inputs import Inputs
from sma_core.layer import SMALayer
from sma_core.model import SequenceModel, SMAModel
from sma_core.routing import Policy, RouterInputs, RoutingDecision
from sma_core.trace import DecisionIndex, evaluating, routed


@dataclass(frozen=True, kw_only=True, eq=False)
class Attribution:
    """Shares of C numeric and K categorical channels, at each step, in the margins of F decisions.

    All in the unit of a logit; above 0 is towards running.

    Parameters
    ----------
    decisions : tuple of DecisionIndex
        Whose margins.
    margin : Tensor
        Run logit minus skip logit.
    numeric : Tensor or None
        Gradient x value of each reading. That of a missing one is gradient x its indicator.
    categorical : Tensor or None
        Gradient x embedding of each category.
    """

    decisions: tuple[DecisionIndex, ...]
    margin: Float[Tensor, "F"]
    numeric: Float[Tensor, "F T C"] | None
    categorical: Float[Tensor, "F T K"] | None

    @property
    def by_step(self) -> Float[Tensor, "F T"]:
        """Sum over the channels: which moments count."""
        parts = [part.sum(-1) for part in (self.numeric, self.categorical) if part is not None]
        return torch.stack(parts).sum(0)

    @property
    def rest(self) -> Float[Tensor, "F"]:
        """Margin less all attributions: what biases and the bend of the model account for.

        Where it is large beside the margin, a first-order account says little.
        """
        return self.margin - self.by_step.sum(1)


def attribution(
    model: SequenceModel, inputs: Inputs, decisions: Sequence[DecisionIndex], *, rows: int = 64
) -> Attribution:
    """Attribute router margins to the inputs, several at once.

    The gradient is the true one of a forward in evaluation mode: it passes through what ran in the
    layers below and, where that is weighed by a probability, through the weight. What a
    straight-through policy lends to a weight of 1 is for training and left out. That a change
    could flip a decision below is not in a gradient; `occlusion` shows what that would do. In a
    causal model inputs after the step have exactly 0.

    The model is left in the mode it was in, and its gradients are not touched. Cost: a forward and
    a backward through the layers up to that of the decision, over the whole sequence, each.

    Parameters
    ----------
    model : SequenceModel
        One that routes, by a learned policy.
    inputs : Inputs
        A batch.
    decisions : sequence of DecisionIndex
        Which; `RoutingTrace.decisions` lists them.
    rows : int
        Decisions that are computed at once.

    Raises
    ------
    ConfigError
        The model does not route, or its policy decides without logits.
    ShapeError
        A decision lies outside the model or the inputs, or `rows` is not positive.
    """
    routing = routed(model)
    check_decisions(routing, inputs, decisions, rows)
    if not cast(SMALayer, routing.layers[0]).policy.learns:
        raise ConfigError(
            f"policy: {type(routing.config.policy).__name__} decides without logits: there is no "
            "margin to attribute"
        )
    zeros = routing.head.weight.detach().new_zeros
    channels, kinds = routing.config.inputs.numeric, len(routing.config.inputs.categorical)
    numeric = zeros(len(decisions), inputs.steps, channels) if channels else None
    categorical = zeros(len(decisions), inputs.steps, kinds) if kinds else None
    margin = zeros(len(decisions))
    with evaluating(routing), torch.enable_grad():
        for layer, places, some in by_layer(decisions, rows):
            lower = _up_to(routing, layer)
            sequence = torch.tensor([at.sequence for at in some], device=inputs.device)
            with _leaves(routing.embed) as leaves:
                margins = _margins(lower, inputs.map(lambda t, of=sequence: t[of]), some)
            # Rows do not see each other: the gradient of the sum holds, row by row, that of each.
            gradients = torch.autograd.grad(margins.sum(), list(leaves.values()))
            shares = {
                part: (gradient * leaf).detach()
                for (part, leaf), gradient in zip(leaves.items(), gradients, strict=True)
            }
            margin[places] = margins.detach().to(margin.dtype)
            if numeric is not None:
                value, indicator = shares.pop("numeric").chunk(2, dim=-1)
                numeric[places] = value + indicator
            if categorical is not None:
                by_channel = [shares[str(k)].sum(-1) for k in range(kinds)]
                categorical[places] = torch.stack(by_channel, dim=-1)
    return Attribution(
        decisions=tuple(decisions), margin=margin, numeric=numeric, categorical=categorical
    )


class _TrueWeight(Policy):
    """A policy whose weights of value 1 have no gradient, which is what a constant has."""

    inner: Policy

    def route(self, inputs: RouterInputs, state: Any | None = None) -> RoutingDecision:
        """See `Policy.route`."""
        decision = self.inner.route(inputs, state)
        return replace(decision, confidence=decision.confidence.detach())


def _up_to(model: SMAModel, highest: int) -> SMAModel:
    """Cut a model off above a layer."""
    layers = []
    for layer in cast("list[SMALayer]", list(model.layers)[: highest + 1]):
        inner = layer.policy
        if inner.weighs:
            layers.append(layer)
            continue
        policy = _TrueWeight(inner.config, width=inner.width, pool=inner.pool, layer=inner.layer)
        policy.inner = inner
        layers.append(exchanged(layer, policy=policy))
    return exchanged(model, layers=nn.ModuleList(layers))


def _margins(model: SMAModel, inputs: Inputs, some: Sequence[DecisionIndex]) -> Float[Tensor, "F"]:
    """Margins of the highest layer, one from each row."""
    margin = model(inputs).decisions[-1].margin
    row = torch.arange(len(some), device=margin.device)
    step = torch.tensor([at.step for at in some], device=margin.device)
    return margin[row, step, torch.tensor([at.submodule for at in some], device=margin.device)]


@contextmanager
def _leaves(embed: Embedding) -> Iterator[dict[str, Tensor]]:
    """Make the inputs leaves of the graph where they enter the embedding, and collect them.

    Key ``numeric``: the numeric channels with their missing indicators, [B, T, 2C]; keys ``0``,
    ``1``, ...: the embedding of each categorical channel, [B, T, D].
    """
    leaves: dict[str, Tensor] = {}

    def enter(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Tensor]:
        leaves["numeric"] = arguments[0].detach().requires_grad_()
        return (leaves["numeric"],)

    def leave(name: str) -> Any:
        def hook(_: nn.Module, __: Any, out: Tensor) -> Tensor:
            leaves[name] = out.detach().requires_grad_()
            return leaves[name]

        return hook

    hooks = [
        table.register_forward_hook(leave(str(k))) for k, table in enumerate(embed.categorical)
    ]
    if embed.numeric is not None:
        hooks.append(embed.numeric.register_forward_pre_hook(enter))
    try:
        yield leaves
    finally:
        for hook in hooks:
            hook.remove()
