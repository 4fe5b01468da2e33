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
        Weight of an active sub-module's output, in (0, 1], and the router's only way to a gradient
        of the task. The probability of running, or of the decision taken; its value is 1 for
        straight-through and fixed policies.
    logits
        Router logits, index 0 = skip, 1 = run; None for fixed policies.
    probability
        Probability of running, for regularisers and traces; None for fixed policies.
    dropped
        Where the sub-module was to run and found no slot, in the ``capacity`` layout; these steps
        are not in `active`. None in the other layouts, which drop nothing.
    noiseless
        Decisions without the noise of training, which evaluation will go by; None when `active` has
        no noise.
    auxiliary
        Loss of a part that the policy trains beside the router, to be added to the task's.
    """

    active: Bool[Tensor, "B T M"]
    confidence: Float[Tensor, "B T M"]
    logits: Float[Tensor, "B T M 2"] | None = None
    probability: Float[Tensor, "B T M"] | None = None
    dropped: Bool[Tensor, "B T M"] | None = None
    noiseless: Bool[Tensor, "B T M"] | None = None
    auxiliary: Float[Tensor, ""] | None = None

    @property
    def margin(self) -> Float[Tensor, "B T M"] | None:
        """Run logit minus skip logit; where they alone decide, the distance from flipping."""
        return None if self.logits is None else self.logits[..., 1] - self.logits[..., 0]

    @property
    def surety(self) -> Float[Tensor, "B T M"]:
        """What active steps are ranked by where not all can run: the probability of running."""
        return self.confidence if self.probability is None else self.probability

    def within(self, valid: Bool[Tensor, "B T"]) -> "RoutingDecision":
        """Run nothing outside the valid steps."""
        inside = valid.unsqueeze(-1)
        noiseless = None if self.noiseless is None else self.noiseless & inside
        return replace(self, active=self.active & inside, noiseless=noiseless)
