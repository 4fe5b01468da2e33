"""A threshold on the margin that each sequence steers towards a rate, causally.

Let m_t be the margin at step t (run logit minus skip logit) and rho the rate. Time is cut into
blocks of K steps, counted from the start of the sequence; within one the threshold b is constant,
so that all of a block is decided at once. At the start of a block, with

    debt = runs so far - rho * steps so far
    share = rho - debt / W                      what to run at, to pay it back in W steps
    s_0 <= ... <= s_{n-1}                       the last n = min(W, steps so far) margins

    b = +inf where share <= 0,   -inf where share >= 1,
    b = s at the place  n - share * (n + 1),    cut to 0 .. n - 1, linear in between,

and b = 0 in the first block, the rule of a plain argmax. A step runs where m_t - b > 1e-4.

*Why it holds its rate.* Of n + 1 exchangeable margins the newest exceeds that quantile with
probability `share`. What the data do to this does not matter in the end: a debt of rho W or more
runs nothing, one of -(1 - rho) W or less runs everything, so that at any step T

    |runs / T - rho| < (max(rho, 1 - rho) * W + K) / T

for every sequence of margins. This is the argument of adaptive conformal inference (Gibbs and
Candes, arXiv 2106.00170) and of quantile tracking with an integrator that saturates (Angelopoulos,
Candes and Tibshirani, arXiv 2307.16895). They move the threshold by a step size; a quantile of
recent margins in its place leaves nothing to tune to the scale of the margins, and follows a shift
of the data within W steps.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sma_core.operations import Extent, Operation
from sma_core.policy_configs import BudgetConfig
from sma_core.routing.decision import RoutingDecision
from sma_core.routing.policy import RouterInputs, wide_margin
from sma_core.routing.softmax import TemperedPolicy
from sma_core.state import TensorState

# Constant inputs give margins that differ by rounding alone. So close above the threshold is a tie,
# and skips, lest a stream and one pass part ways over a last bit.
TIE = 1e-4


@dataclass
class BudgetState(TensorState):
    """Where the control of B sequences and M sub-modules stands.

    Parameters
    ----------
    seen
        Steps so far.
    recent
        The last W margins, oldest first; zeros before the first step.
    threshold
        Of the block under way.
    debt
        Runs in excess of the rate, in steps, before that block.
    count
        Runs in that block so far.
    """

    seen: Int[Tensor, "B"]
    recent: Float[Tensor, "B W M"]
    threshold: Float[Tensor, "B M"]
    debt: Float[Tensor, "B M"]
    count: Int[Tensor, "B M"]


class Budget(TemperedPolicy):
    """Run where the margin is over the steered threshold; the same in training and evaluation.

    The weight of a step that runs is the probability of running, a tempered softmax of its own
    logits. The threshold ranks steps against their past and has no gradient.

    Cost: a sort of W margins and a few small operations for every K steps, in sequence.
    """

    config: BudgetConfig

    def route(self, inputs: RouterInputs, state: BudgetState | None = None) -> RoutingDecision:
        """See `Policy.route`."""
        margin = wide_margin(inputs.logits)
        if state is None:
            state = self.init_state(margin.shape[0], margin.device, margin.dtype)
        active = self.steer(margin, inputs.valid, state)
        probability = torch.sigmoid(self.tempered(margin))
        return RoutingDecision(
            active=active,
            confidence=torch.where(active, probability, 1 - probability),
            logits=inputs.logits,
            probability=probability,
        )

    def init_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> BudgetState:
        """See `Policy.init_state`."""
        wide = torch.promote_types(dtype, torch.float32)
        zeros = torch.zeros(batch, self.pool, device=device, dtype=wide)
        return BudgetState(
            seen=torch.zeros(batch, device=device, dtype=torch.int64),
            recent=zeros.new_zeros(batch, self.config.window, self.pool),
            threshold=zeros,
            debt=zeros.clone(),
            count=zeros.to(torch.int64),
        )

    @classmethod
    def held_rate(cls, config: BudgetConfig) -> float | None:
        """See `Policy.held_rate`."""
        return config.rate

    @classmethod
    def operations(
        cls, config: BudgetConfig, *, width: int, pool: int, extent: Extent
    ) -> list[Operation]:
        """See `Policy.operations`: the last W margins, before each block, are sorted beside it."""
        margins = extent.rows * pool * extent.wide
        window = margins * config.window / config.block
        steer = Operation(
            name="steer",
            read=margins,
            written=0,
            working=5 * window,  # as they are, masked, sorted, and their order
            back=0,
        )
        return [*super().operations(config, width=width, pool=pool, extent=extent), steer]

    @torch.no_grad()
    def steer(
        self,
        margin: Float[Tensor, "B T M"],
        valid: Bool[Tensor, "B T"] | None,
        state: BudgetState,
    ) -> Bool[Tensor, "B T M"]:
        """Decide at T steps and bring `state` up to date.

        Each sequence may stand at another place in its block, so time is laid out on a grid of
        blocks in which step t of a sequence has cell ``t + offset``.
        """
        batch, steps, pool = margin.shape
        block, window = self.config.block, self.config.window
        lengths = torch.full_like(state.seen, steps) if valid is None else valid.sum(1)
        offset = state.seen[:, None] % block
        blocks = (block - 1 + steps) // block + 1  # the last one is decided about, not reached
        past = torch.cat((state.recent, margin.to(state.recent.dtype)), dim=1)

        def taken(index: Int[Tensor, "B I"]) -> Float[Tensor, "B I M"]:
            """Margins by their place in `past`; step t has place W + t."""
            index = index.clamp(0, window + steps - 1)
            return past.gather(1, index.unsqueeze(-1).expand(-1, -1, pool))

        step = torch.arange(blocks * block, device=margin.device) - offset
        live = ((step >= 0) & (step < lengths[:, None])).view(batch, blocks, block, 1)
        cells = taken(step + window).view(batch, blocks, block, pool)
        starts = torch.arange(1, blocks, device=margin.device) * block - offset
        before = starts[..., None] + torch.arange(window, device=margin.device)
        before = taken(before.flatten(1)).view(batch, blocks - 1, window, pool)
        known = (state.seen[:, None] + starts).clamp_max(window)
        # Places without a margin go last.
        empty = torch.arange(window, device=margin.device) < window - known[..., None]
        ordered = before.masked_fill(empty.unsqueeze(-1), torch.inf).sort(dim=2).values

        threshold, debt, count = state.threshold, state.debt, state.count
        active = []
        for i in range(blocks):
            if i:
                done = lengths[:, None] >= starts[:, i - 1, None]
                due = debt + (count - self.config.rate * block)
                fresh = self._quantile(ordered[:, i - 1], known[:, i - 1, None], due)
                threshold = torch.where(done, fresh, threshold)
                debt, count = torch.where(done, due, debt), count.masked_fill(done, 0)
            above = (cells[:, i] - threshold[:, None] > TIE) & live[:, i]
            count = count + above.sum(1)
            active.append(above)

        last = lengths[:, None] + torch.arange(window, device=margin.device)
        updated = (state.seen + lengths, taken(last), threshold, debt, count)
        for old, new in zip(state.tensors(), updated, strict=True):
            old.copy_(new)
        cell = torch.arange(steps, device=margin.device) + offset
        return torch.cat(active, dim=1).gather(1, cell.unsqueeze(-1).expand(-1, -1, pool))

    def _quantile(
        self,
        ordered: Float[Tensor, "B W M"],
        known: Int[Tensor, "B 1"],
        debt: Float[Tensor, "B M"],
    ) -> Float[Tensor, "B M"]:
        """Threshold of a block, by the equations above; unknown margins stand last."""
        share = self.config.rate - debt / self.config.window
        top = (known - 1).clamp_min(0)
        place = torch.minimum((known - share * (known + 1)).clamp_min(0), top.to(share.dtype))
        low = place.floor()
        index = torch.stack((low.long(), torch.minimum(low.long() + 1, top)), dim=1)
        below, above = ordered.gather(1, index).unbind(1)
        threshold = below + (place - low) * (above - below)
        threshold = threshold.masked_fill(share <= 0, torch.inf)
        return threshold.masked_fill(share >= 1, -torch.inf)
