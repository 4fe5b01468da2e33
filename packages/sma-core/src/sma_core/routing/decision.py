"""The seam between routers and everything else: who runs at which step, and how surely."""

from dataclasses import dataclass, replace

from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RoutingDecision:
    """Decisions of one layer about M sub-modules at every step of a batch.

    Parameters
    ----------
    active
        Whether the sub-module runs. False at padded steps. Carries no gradient.
    confidence
        Probability of the decision taken, in (0, 1]: the weight of an active sub-module's
        output, and the router's only way to a gradient. 1 for fixed policies.
    logits
        Router logits, index 0 = skip, 1 = run; None for fixed policies.
    probability
        Probability of running, for regularisers and traces; None for fixed policies.
    """

    active: Bool[Tensor, "B T M"]
    confidence: Float[Tensor, "B T M"]
    logits: Float[Tensor, "B T M 2"] | None = None
    probability: Float[Tensor, "B T M"] | None = None

    @property
    def margin(self) -> Float[Tensor, "B T M"] | None:
        """Run logit minus skip logit: how far the decision is from flipping."""
        return None if self.logits is None else self.logits[..., 1] - self.logits[..., 0]

    def within(self, valid: Bool[Tensor, "B T"]) -> "RoutingDecision":
        """Run nothing outside the valid steps."""
        return replace(self, active=self.active & valid.unsqueeze(-1))
