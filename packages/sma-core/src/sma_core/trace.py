"""Which sub-module ran at which step, and how sure the router was: as numbers and as a picture."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sma_core.config import ModelConfig
from sma_core.errors import ConfigError
from sma_core.inputs import Inputs
from sma_core.layer import SMALayer
from sma_core.model import SequenceModel, SMAModel, State
from sma_core.routing.statistics import RoutingStatistics, routing_statistics
from sma_core.sight import rows_in_sight, submodule_reach

_SHADES = " ░▒▓█"


@dataclass(frozen=True, kw_only=True)
class DecisionIndex:
    """One decision of a batch.

    Parameters
    ----------
    layer, submodule
        Which router, from 0.
    step
        Index in the inputs, from 0.
    sequence
        Row of the batch.
    """

    layer: int
    submodule: int
    step: int
    sequence: int = 0


@dataclass(frozen=True, kw_only=True)
class RoutingTrace:
    """Routing of a batch: L layers, B sequences, T steps, M sub-modules.

    Parameters
    ----------
    active : Tensor
        Whether the sub-module ran; False in padding.
    confidence : Tensor
        Where it ran, the weight of its output, in (0, 1]: the probability of running, or 1 for
        straight-through and fixed policies. `surety` means the same for every policy.
    margin : Tensor or None
        Run logit minus skip logit; None for fixed policies. Where its sign decides, the distance
        from flipping; a budget or a top-k compares it with something else than 0.
    valid : Tensor
        Which steps are no padding.
    names : tuple of str
        Of the sub-modules.
    first_step : int
        Time index of the first step of the first sequence.
    probability : Tensor or None
        Probability of running, by the policy's own reckoning; None for fixed policies.
    dropped : Tensor or None
        Where it was to run and found no slot, so that it is not in `active`; None in layouts that
        drop nothing.
    sight : Tensor or None
        Time index of the first and of the last active row that the row at a step can see, itself
        included: the span attended in original time. -1 where it did not run. Rows from before
        the trace, of a stream that it continues, are not known and not in it.
    """

    active: Bool[Tensor, "L B T M"]
    confidence: Float[Tensor, "L B T M"]
    margin: Float[Tensor, "L B T M"] | None
    valid: Bool[Tensor, "B T"]
    names: tuple[str, ...]
    first_step: int = 0
    probability: Float[Tensor, "L B T M"] | None = None
    dropped: Bool[Tensor, "L B T M"] | None = None
    sight: Int[Tensor, "L B T M 2"] | None = None

    @property
    def surety(self) -> Float[Tensor, "L B T M"]:
        """Probability of the decision taken; 1 for fixed policies.

        Below 1/2 where a budget, a top-k or a full layout overruled the router's logits.
        """
        if self.probability is None:
            return torch.ones_like(self.confidence)
        return torch.where(self.active, self.probability, 1 - self.probability)

    @property
    def span(self) -> Int[Tensor, "L B T M"] | None:
        """Steps of original time from the first to the last row in sight; -1 where it did not run.

        0 is a row that sees itself alone.
        """
        if self.sight is None:
            return None
        return (self.sight[..., 1] - self.sight[..., 0]).masked_fill(~self.active, -1)

    def decisions(
        self, sequence: int = 0, *, layer: int | None = None, ran: bool | None = None
    ) -> list[DecisionIndex]:
        """List decisions of one sequence, padding left out, for `occlusion` and `attribution`.

        Parameters
        ----------
        sequence : int
            Which of the batch.
        layer : int, optional
            Only those of this layer.
        ran : bool, optional
            Only those to run, or only those to skip.
        """
        wanted = self.valid[sequence, :, None].expand_as(self.active[:, sequence])
        if ran is not None:
            wanted = wanted & (self.active[:, sequence] == ran)
        return [
            DecisionIndex(layer=place, submodule=m, step=step, sequence=sequence)
            for place, step, m in wanted.nonzero().tolist()
            if layer in (None, place)
        ]

    def statistics(self) -> RoutingStatistics:
        """Count it: rates, evenness, margins; batches add up by `RoutingStatistics.merge`."""
        return routing_statistics(
            active=self.active,
            valid=self.valid,
            names=self.names,
            margin=self.margin,
            dropped=self.dropped,
        )

    def rates(self) -> list[list[float]]:
        """Share of valid steps at which each sub-module ran, by layer."""
        steps = self.valid.sum().clamp_min(1)
        return (self.active.sum(dim=(1, 2)) / steps).tolist()

    def warnings(self) -> list[str]:
        """Say in plain words where routing went wrong; see `RoutingStatistics.warnings`."""
        return self.statistics().warnings()

    def picture(self, width: int = 80, sequence: int = 0) -> str:
        """Draw one sequence: time from left to right, one line a sub-module, dark = it ran.

        Parameters
        ----------
        width : int
            Longest line, in characters; where there are more steps than that, a column stands for
            several and its shade says at how many of them the sub-module ran.
        sequence : int
            Which of the batch.
        """
        rates = self.rates()
        labels = [[f"layer {layer} {name}" for name in self.names] for layer in range(len(rates))]
        margin = max(len(label) for row in labels for label in row)
        steps = int(self.valid[sequence].sum())
        columns = max(1, min(steps, width - margin - len(" || 100%")))
        per_column = -(-steps // columns) if steps else 1
        last = self.first_step + steps - 1
        lines = [
            f"steps {self.first_step:,} to {last:,}, {per_column} a column; "
            f"'{_SHADES[-1]}' it ran, ' ' it was skipped, '{_SHADES[1:-1]}' in part"
        ]
        for layer, row in enumerate(labels):
            for m, label in enumerate(row):
                ran = self.active[layer, sequence, :steps, m].float()
                shares = [float(part.mean()) for part in ran.split(per_column)] if steps else []
                share = float(ran.mean()) if steps else 0.0
                drawn = "".join(_shade(part) for part in shares)
                lines.append(f"{label:<{margin}} |{drawn}| {share:4.0%}")
        if self.dropped is not None:
            missed = self.dropped[:, sequence].sum(1).tolist()
            lines += [
                f"{label}: no slot at {count:,} steps"
                for row, counts in zip(labels, missed, strict=True)
                for label, count in zip(row, counts, strict=True)
                if count
            ]
        return "\n".join(lines)


def _shade(share: float) -> str:
    """Blank and full mean exactly never and always."""
    if share in (0.0, 1.0):
        return _SHADES[-1] if share else _SHADES[0]
    return _SHADES[1 + min(2, int(share * 3))]


@torch.no_grad()
def routing_trace(model: SequenceModel, inputs: Inputs, state: State | None = None) -> RoutingTrace:
    """Run a model and keep its decisions.

    Parameters
    ----------
    model : SequenceModel
        One that routes. It runs in evaluation mode and is left in the mode it was in.
    inputs : Inputs
        A batch.
    state : State, optional
        To continue from; updated in place.

    Raises
    ------
    ConfigError
        When the model does not route.
    """
    model = routed(model)
    position = torch.arange(inputs.steps, device=inputs.device).expand(inputs.batch, -1)
    if state is not None:
        position = position + state.position[:, None]
    with evaluating(model):
        decisions = model(inputs, state).decisions
    valid = inputs.valid
    if valid is None:
        valid = torch.ones(inputs.batch, inputs.steps, dtype=torch.bool, device=inputs.device)
    active = torch.stack([decision.active for decision in decisions])
    return RoutingTrace(
        active=active,
        confidence=torch.stack([decision.confidence for decision in decisions]),
        margin=_stack([decision.margin for decision in decisions]),
        valid=valid,
        names=_names(model.config),
        first_step=int(position[0, 0]) if inputs.batch else 0,
        probability=_stack([decision.probability for decision in decisions]),
        dropped=_stack([decision.dropped for decision in decisions]),
        sight=rows_in_sight(
            active,
            position,
            [submodule_reach(member) for member in cast(SMALayer, model.layers[0]).submodules],
            causal=model.config.causal,
        ),
    )


def routed(model: SequenceModel) -> SMAModel:
    """Hand back a model that routes.

    Raises
    ------
    ConfigError
        It does not.
    """
    if not isinstance(model, SMAModel):
        raise ConfigError(
            f"architecture: {model.config.architecture!r} does not route: nothing to trace"
        )
    return model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode for a while, and every part of it back in the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _names(config: ModelConfig) -> tuple[str, ...]:
    """Kinds of the pool's members; those that are there twice get their place in the pool."""
    kinds = [member.kind for member in config.pool]
    return tuple(
        kind if kinds.count(kind) == 1 else f"{kind}[{place}]" for place, kind in enumerate(kinds)
    )


def _stack(parts: list[Tensor | None]) -> Tensor | None:
    """Stack layer by layer; None where the policy or the layout has no such thing."""
    known = [part for part in parts if part is not None]
    return torch.stack(known) if known else None
