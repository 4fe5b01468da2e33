"""Models that misbehave on command: what a row holds in its first two channels is what happens.

A row is [candidate's order, incumbent's order, value]. Orders lie in the rows, so that they are
obeyed at the same row however the rows are cut into calls.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sma_core.model import Inputs
from sma_core.routing.decision import RoutingDecision
from sma_core.state import TensorState
from sma_pilot.arms.base import Decisions, Scores
from sma_pilot.guard import DriftReference, GuardedScorer
from sma_pilot.plan import GuardPlan
from sma_pilot.replay.clock import Clock

FINE, RAISE, NAN, INF, DOUBT, SLOW, IDLE, BUSY, HUGE = range(9)
MILLISECOND = 10**6


@dataclass
class Total(TensorState):
    """Sum of the values so far."""

    total: Tensor


class Obedient:
    """Scores a row by the sum of values so far, unless ordered otherwise.

    Parameters
    ----------
    channel : int
        Where its orders lie.
    sign : float
        Of its scores, to tell two of them apart.
    """

    submodules = ("left", "right")
    weight_bytes = 8

    def __init__(self, channel: int, sign: float, clock: "Ticks", *, routes: bool = True) -> None:
        self.calls = 0
        self._channel, self._sign, self._clock, self._routes = channel, sign, clock, routes

    def start(self, batch: int) -> Total:
        return Total(torch.zeros(batch, dtype=torch.float64))

    def score(self, inputs: Inputs, state: Total) -> Scores:
        self.calls += 1
        assert inputs.numeric is not None
        orders = inputs.numeric[..., self._channel].nan_to_num(FINE)
        self._clock.now += 100 * inputs.steps
        self._clock.now += 10 * MILLISECOND * int((orders == SLOW).sum())
        sums = state.total[:, None] + inputs.numeric[..., 2].double().nan_to_num(0).cumsum(1)
        state.total.copy_(sums[:, -1] + 1e9 * (orders == RAISE).any())  # spoilt if it raises
        if (orders == RAISE).any():
            raise RuntimeError("out of\norder <b>")
        score = self._sign * sums
        for order, value in ((NAN, torch.nan), (INF, torch.inf), (HUGE, 1e300)):
            score = torch.where(orders == order, value, score)
        missing = ~inputs.numeric.isfinite().any(-1)
        score = torch.where(missing, torch.nan, score)
        return Scores(score.float(), self._decisions(orders) if self._routes else ())

    def step(self, inputs: Inputs, state: Total) -> tuple[float, Decisions]:
        scores = self.score(inputs, state)
        return scores.score.item(), scores.decisions

    def _decisions(self, orders: Tensor) -> Decisions:
        """Left runs unless idle, right only when busy; sure by 0.9 unless in doubt."""
        active = torch.stack([orders != IDLE, orders == BUSY], -1)
        sure = torch.where(orders == DOUBT, 0.55, 0.9)[..., None].float()
        probability = torch.where(active, sure, 1 - sure)
        confidence = sure.expand(active.shape)
        return (RoutingDecision(active=active, confidence=confidence, probability=probability),)


class Ticks:
    """A clock that models move."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


class Bench:
    """A guarded candidate with both models at hand."""

    def __init__(
        self, plan: GuardPlan, reference: DriftReference | None = None, *, routes: bool = True
    ) -> None:
        self.clock = Ticks()
        timer: Clock = self.clock
        self.candidate = Obedient(0, 1.0, self.clock, routes=routes)
        self.incumbent = Obedient(1, -1.0, self.clock, routes=False)
        self.guarded = GuardedScorer(self.candidate, self.incumbent, plan, reference, timer)

    def run(self, rows: Inputs, cuts: Sequence[int] = ()) -> list[float]:
        """Score rows of one sequence in bulk, cut into calls where told."""
        state, scores, begin = self.guarded.start(1), [], 0
        for end in [*cuts, rows.steps]:
            if begin < end <= rows.steps:
                part = rows.map(lambda tensor, a=begin, b=end: tensor[:, a:b])
                scores += self.guarded.score(part, state).score[0].tolist()
                begin = end
        return scores

    def step(self, rows: Inputs) -> list[float]:
        """Score rows of one sequence one by one."""
        state = self.guarded.start(1)
        return [
            self.guarded.step(rows.map(lambda tensor, t=t: tensor[:, t : t + 1]), state)[0]
            for t in range(rows.steps)
        ]


def rows_of(candidate: Sequence[int], incumbent: Sequence[int] | None = None) -> Inputs:
    """Rows of one sequence with these orders; the t-th value is t + 1."""
    steps = len(candidate)
    columns = [candidate, incumbent or [FINE] * steps, range(1, steps + 1)]
    return Inputs(numeric=torch.tensor([list(column) for column in columns]).T[None].float())
