"""Which sub-module ran at which step, and how sure the router was: as numbers and as a picture."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sma_core.config import ModelConfig
from sma_core.errors import ConfigError
from sma_core.inputs import Inputs
from sma_core.model import SequenceModel, State

_SHADES = " ░▒▓█"
# A router is called collapsed below this share of steps, or above its complement.
COLLAPSE_RATE = 0.01


@dataclass(frozen=True, kw_only=True)
class RoutingTrace:
    """Routing of a batch: L layers, B sequences, T steps, M sub-modules.

    Parameters
    ----------
    active : Tensor
        Whether the sub-module ran; False in padding.
    confidence : Tensor
        Probability of the decision taken, in (0, 1]; 1 for fixed policies.
    margin : Tensor or None
        Run logit minus skip logit, the distance from flipping; None for fixed policies.
    valid : Tensor
        Which steps are no padding.
    names : tuple of str
        Of the sub-modules.
    first_step : int
        Time index of the first step of the first sequence.
    """

    active: Bool[Tensor, "L B T M"]
    confidence: Float[Tensor, "L B T M"]
    margin: Float[Tensor, "L B T M"] | None
    valid: Bool[Tensor, "B T"]
    names: tuple[str, ...]
    first_step: int = 0

    def rates(self) -> list[list[float]]:
        """Share of valid steps at which each sub-module ran, by layer."""
        steps = self.valid.sum().clamp_min(1)
        return (self.active.sum(dim=(1, 2)) / steps).tolist()

    def warnings(self) -> list[str]:
        """Say in words which sub-modules a learned router no longer routes.

        Fixed policies give none: they do what they were told.
        """
        if self.margin is None:
            return []
        steps = int(self.valid.sum())
        found = []
        for layer, rates in enumerate(self.rates()):
            for name, rate in zip(self.names, rates, strict=True):
                where = f"layer {layer}: {name} ran at {rate:.1%} of {steps:,} steps"
                if rate < COLLAPSE_RATE:
                    found.append(
                        f"{where}: the model does without it; take it out of the pool, or train "
                        "with a target_rate"
                    )
                elif rate > 1 - COLLAPSE_RATE:
                    found.append(
                        f"{where}: the router saves nothing here; train with a target_rate"
                    )
        return found

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
    config = model.config
    if not isinstance(config, ModelConfig):
        raise ConfigError(f"architecture: {config.architecture!r} does not route: nothing to trace")
    first_step = 0 if state is None else int(state.position[0])
    training = model.training
    model.eval()
    try:
        decisions = model(inputs, state).decisions
    finally:
        model.train(training)
    margins = [decision.margin for decision in decisions if decision.margin is not None]
    valid = inputs.valid
    if valid is None:
        valid = torch.ones(inputs.batch, inputs.steps, dtype=torch.bool, device=inputs.device)
    return RoutingTrace(
        active=torch.stack([decision.active for decision in decisions]),
        confidence=torch.stack([decision.confidence for decision in decisions]),
        margin=torch.stack(margins) if margins else None,
        valid=valid,
        names=_names(config),
        first_step=first_step,
    )


def _names(config: ModelConfig) -> tuple[str, ...]:
    """Kinds of the pool's members; those that are there twice get their place in the pool."""
    kinds = [member.kind for member in config.pool]
    return tuple(
        kind if kinds.count(kind) == 1 else f"{kind}[{place}]" for place, kind in enumerate(kinds)
    )
