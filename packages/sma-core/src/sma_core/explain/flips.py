"""What a decision was worth: flip it, and see what becomes of the output.

Occlusion (Zeiler and Fergus, arXiv 1311.2901) of decisions in place of inputs. One decision is
turned round, with all others of its layer held; the layers above decide anew about what they now
see. Many flips run side by side as rows of one batch, from the layer of the flip upwards: what lies
below is computed once for all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sma_core.explain.views import by_layer, check_decisions, exchanged
from sma_core.inputs import Inputs
from sma_core.layer import SMALayer
from sma_core.model import Outputs, SequenceModel, SMAModel
from sma_core.routing import Policy, RouterInputs, RoutingDecision
from sma_core.trace import DecisionIndex, evaluating, routed


@dataclass(frozen=True, kw_only=True, eq=False)
class Occlusion:
    """Effect of F flips, one at a time, on the output.

    Parameters
    ----------
    decisions : tuple of DecisionIndex
        What was flipped.
    ran : Tensor
        Whether the sub-module ran before the flip.
    confidence : Tensor
        Its weight: the one it had where it ran, the one it was given where it was turned on.
    change : Tensor
        Prediction after the flip minus the one before, in the unit of the model's output: logits
        of a classifier. One per step, 0 in padding, or one per sequence.
    followed : Tensor
        Decisions at valid steps that changed in the wake of the flip, by layer; the flip itself
        is not counted.
    """

    decisions: tuple[DecisionIndex, ...]
    ran: Bool[Tensor, "F"]
    confidence: Float[Tensor, "F"]
    change: Float[Tensor, "F T O"] | Float[Tensor, "F O"]
    followed: Int[Tensor, "F L"]

    @property
    def by_step(self) -> Float[Tensor, "F T"] | Float[Tensor, "F"]:
        """Euclidean norm of the change over the outputs, by step where there is one per step."""
        return self.change.norm(dim=-1)

    @property
    def effect(self) -> Float[Tensor, "F"]:
        """Euclidean norm of the whole change: one number for each flip."""
        return self.change.flatten(1).norm(dim=1)

    def table(self, names: Sequence[str] | None = None, *, count: int = 10) -> str:
        """List the flips of largest effect, one a line, with what each of them changed.

        Parameters
        ----------
        names : sequence of str, optional
            Of the sub-modules, as in `RoutingTrace.names`; their numbers by default.
        count : int
            Of lines.
        """
        lines = []
        for i in self.effect.argsort(descending=True, stable=True)[:count].tolist():
            at = self.decisions[i]
            name = f"sub-module {at.submodule}" if names is None else names[at.submodule]
            line = (
                f"sequence {at.sequence}, step {at.step:,}, layer {at.layer}: {name} turned "
                f"{'off' if self.ran[i] else 'on'} moves the output by {float(self.effect[i]):.3g}"
            )
            if followed := int(self.followed[i].sum()):
                line += f" and {followed:,} decisions above"
            lines.append(line)
        return "\n".join(lines)


@torch.no_grad()
def occlusion(
    model: SequenceModel, inputs: Inputs, decisions: Sequence[DecisionIndex], *, rows: int = 64
) -> Occlusion:
    """Flip decisions one at a time and measure how the output changes.

    What ran is taken out: the sub-module does not run at that step, and its later rows do not see
    it. What was skipped is put in, with the weight that its policy gives to a step that runs: the
    probability of running, by the policy's own reckoning (`RoutingDecision.probability`), or 1
    where a policy weighs by 1 (`Policy.weighs`) or has no probability. In the ``capacity`` layout
    a step that is put in takes no other's slot, and none is freed: one decision changes, no other.

    The model runs in evaluation mode, without gradient, and is left in the mode it was in. Cost:
    one forward, and for each flip the layers from its own upwards over the whole sequence. Memory
    grows with `rows` and, for the result, with the number of flips.

    Parameters
    ----------
    model : SequenceModel
        One that routes.
    inputs : Inputs
        A batch.
    decisions : sequence of DecisionIndex
        Which; `RoutingTrace.decisions` lists them.
    rows : int
        Flips that are computed at once.

    Raises
    ------
    ConfigError
        The model does not route.
    ShapeError
        A decision lies outside the model or the inputs, or `rows` is not positive.
    """
    routing = routed(model)
    check_decisions(routing, inputs, decisions, rows)
    with evaluating(routing):
        before, streams = _run(routing, inputs)
        size = (len(decisions),)
        weight = before.prediction
        change = weight.new_zeros(size + weight.shape[1:])
        followed = torch.zeros(*size, len(routing.layers), dtype=torch.int64, device=inputs.device)
        ran = torch.zeros(size, dtype=torch.bool, device=inputs.device)
        confidence = weight.new_zeros(size)
        for layer, places, some in by_layer(decisions, rows):
            sequence = torch.tensor([at.sequence for at in some], device=inputs.device)
            flipped = _flip(routing, layer, before.decisions[layer], sequence, some)
            after = _from(routing, inputs, layer, streams[layer], sequence, flipped.decision)
            change[places] = after.prediction - before.prediction[sequence]
            ran[places], confidence[places] = flipped.ran, flipped.confidence.to(weight.dtype)
            for above, new in enumerate(after.decisions[1:], start=layer + 1):
                old = before.decisions[above].active[sequence]
                followed[places, above] = (new.active != old).sum((1, 2))
        if change.dim() == 3 and inputs.valid is not None:
            sequence = torch.tensor([at.sequence for at in decisions], device=inputs.device)
            change = change.where(inputs.valid[sequence.long(), :, None], 0.0)
    return Occlusion(
        decisions=tuple(decisions),
        ran=ran,
        confidence=confidence,
        change=change,
        followed=followed,
    )


@dataclass(frozen=True)
class _Flipped:
    """Decisions of one layer for F rows, each with one of them flipped; and what was flipped."""

    decision: RoutingDecision
    ran: Bool[Tensor, "F"]
    confidence: Float[Tensor, "F"]


class _Held(Policy):
    """A policy that decides what it was told, whatever the logits."""

    decision: RoutingDecision

    def route(self, inputs: RouterInputs, state: Any | None = None) -> RoutingDecision:
        """See `Policy.route`."""
        return replace(self.decision, logits=inputs.logits)


class _Given(nn.Module):
    """An embedding that answers with the stream it was given, whatever the inputs."""

    stream: Tensor

    def forward(self, inputs: Inputs, valid: Tensor | None = None) -> Float[Tensor, "B T D"]:
        return self.stream


def _run(model: SMAModel, inputs: Inputs) -> tuple[Outputs, list[Float[Tensor, "B T D"]]]:
    """Run a model and keep what enters each layer."""
    streams: list[Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, entering: streams.append(entering[0]))
        for layer in model.layers
    ]
    try:
        return model(inputs), streams
    finally:
        for hook in hooks:
            hook.remove()


def _flip(
    model: SMAModel,
    layer: int,
    decision: RoutingDecision,
    sequence: Int[Tensor, "F"],
    some: Sequence[DecisionIndex],
) -> _Flipped:
    """Turn one decision of each row round, and give what is turned on its weight."""
    active, confidence = decision.active[sequence], decision.confidence[sequence]
    device = active.device
    at = (
        torch.arange(len(some), device=device),
        torch.tensor([index.step for index in some], device=device),
        torch.tensor([index.submodule for index in some], device=device),
    )
    ran = active[at]
    if decision.probability is not None and cast(SMALayer, model.layers[layer]).policy.weighs:
        chance = decision.probability[sequence][at].to(confidence.dtype)
        confidence[at] = torch.where(ran, confidence[at], chance)
    active[at] = ~ran
    return _Flipped(
        RoutingDecision(active=active, confidence=confidence, probability=None),
        ran=ran,
        confidence=confidence[at],
    )


def _from(
    model: SMAModel,
    inputs: Inputs,
    index: int,
    stream: Float[Tensor, "B T D"],
    sequence: Int[Tensor, "F"],
    decision: RoutingDecision,
) -> Outputs:
    """Run a model from one layer upwards, with the decisions of that layer held."""
    layer = cast(SMALayer, model.layers[index])
    held = _Held(layer.policy.config, width=layer.policy.width, pool=layer.policy.pool, layer=index)
    held.decision = decision
    lowest = exchanged(layer, policy=held)
    # All layouts give the same numbers, and this one has no limit that a flip could run into.
    lowest.config = replace(layer.config, dispatch="packed", capacity=1.0)
    given = _Given()
    given.stream = stream[sequence]
    upper = exchanged(
        model, embed=given, layers=nn.ModuleList([lowest, *list(model.layers)[index + 1 :]])
    )
    return upper(inputs.map(lambda tensor: tensor[sequence]))
