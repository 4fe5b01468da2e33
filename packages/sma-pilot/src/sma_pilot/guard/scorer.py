"""The guarded candidate: a scorer that hands a row on when the candidate cannot be believed.

It is a circuit breaker [1]_ for each entity. Closed: the candidate serves and is watched. Open:
after a trouble the fallback serves the next ``hold_rows`` rows while the candidate rests, since a
model that is slow or broken must not be waited for row by row. Half open: the candidate is brought
up to date and tried again; a new trouble at once renews the fallback.

The incumbent is not run beside the candidate. That would be exact at any moment and cost what the
candidate is there to save, on every row, whether or not anything ever fails. Instead the latest
``window_rows`` rows of each entity are kept, and the model that takes over is primed with them in
one bulk call: work and a delay at a fallback alone, which the tally counts. The state is exact
when the entity's past, or what the model looks back on, is no longer than the window.

References
----------
.. [1] M. Nygard, "Release It!", 2nd edition, Pragmatic Bookshelf, 2018, chapter 5.
"""

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from sma_core.model import Inputs
from sma_pilot.arms.base import Decisions, Scorer, Scores
from sma_pilot.guard.calls import Values, ask, observed_rows, part_of, score_by_incumbent
from sma_pilot.guard.drift import DriftReference, DriftWindow
from sma_pilot.guard.fallback import Fallback, Model, Server, Tally, Trouble
from sma_pilot.guard.lane import FIRST, GuardState, Lane
from sma_pilot.guard.recent import RecentRows
from sma_pilot.guard.routing import ActivationWindow, confidence, runs
from sma_pilot.plan.guard import GuardPlan
from sma_pilot.replay.clock import Clock


class GuardedScorer:
    """A `Scorer` that gives the candidate's scores where it can be believed.

    No exception of a model passes through it. With fallback ``incumbent`` each row has a score that
    the incumbent would have given one; with fallback ``person`` a row on the fallback has none.

    A row that was scored too late keeps its score, and the fallback begins with the next one. The
    budget is that of one event, so only `step` is held against it. What the candidate routed is not
    handed on: it is told by the candidate's own replay.

    Parameters
    ----------
    candidate : Scorer
    incumbent : Scorer or None
        Needed by fallback ``incumbent``.
    plan : GuardPlan
    reference : DriftReference or None
        Needed when the plan has a ``drift_limit``.
    clock : Clock
        Times the models.

    Attributes
    ----------
    tally : Tally
        Of all rows since the scorer was made.
    """

    submodules: tuple[str, ...] = ()

    def __init__(
        self,
        candidate: Scorer,
        incumbent: Scorer | None,
        plan: GuardPlan,
        reference: DriftReference | None,
        clock: Clock,
    ) -> None:
        if plan.fallback == "incumbent" and incumbent is None:
            raise ValueError("fallback 'incumbent' needs the incumbent's scorer")
        if plan.drift_limit is not None and reference is None:
            raise ValueError("guard.drift_limit needs the reference of the training slice")
        self._candidate = candidate
        self._incumbent = incumbent if plan.fallback == "incumbent" else None
        self._plan = plan
        self._reference = reference if plan.drift_limit is not None else None
        self._clock = clock
        self._watches_confidence = plan.minimum_confidence is not None
        self._watches_collapse = plan.never_active is not None or plan.always_active is not None
        self._fallbacks: list[Fallback] = []
        self.tally = Tally()

    @property
    def weight_bytes(self) -> int | None:
        """Bytes of both models: the one that rests stays in memory. None: of one nobody knows."""
        rests = 0 if self._incumbent is None else self._incumbent.weight_bytes
        own = self._candidate.weight_bytes
        return None if own is None or rests is None else own + rests

    def start(self, batch: int) -> GuardState:
        """See `Scorer.start`."""
        return GuardState([self._lane() for _ in range(batch)])

    def _lane(self) -> Lane:
        plan, drift = self._plan, None
        if self._reference is not None:
            drift = DriftWindow(self._reference, plan.window_rows, plan.drift_channels)
        return Lane(RecentRows(plan.window_rows), ActivationWindow(plan.window_rows), drift)

    def score(self, inputs: Inputs, state: GuardState) -> Scores:
        """See `Scorer.score`; sequences go one after the other."""
        rows = [
            self._serve(part_of(inputs, slice(i, i + 1), slice(None)), lane, i, timed=False)
            for i, lane in enumerate(state.lanes)
        ]
        return Scores(torch.from_numpy(np.stack(rows)))

    def step(self, inputs: Inputs, state: GuardState) -> tuple[float, Decisions]:
        """See `Scorer.step`."""
        one = part_of(inputs, slice(1), slice(1))
        return self._serve(one, state.lanes[0], 0, timed=True).item(), ()

    def take_fallbacks(self) -> list[Fallback]:
        """Return the fallbacks since the last call, oldest first, and forget them.

        Called after every `score` or `step`, it gives those of that call, whose places tell entity
        and time.
        """
        taken, self._fallbacks = self._fallbacks, []
        return taken

    def _serve(self, inputs: Inputs, lane: Lane, place: int, *, timed: bool) -> Values:
        """Score the next rows of one lane, [1, T, channels], by whoever is to serve each."""
        steps = inputs.steps
        scores = np.full(steps, np.nan, np.float32)
        drifted = self._watch_inputs(inputs, lane)
        row = 0
        while row < steps:
            if lane.hold:
                stop = min(row + lane.hold, steps)
                part = part_of(inputs, slice(1), slice(row, stop))
                scores[row:stop] = self._fall_back(part, lane, place, row)
                lane.hold -= stop - row
                row = stop
                continue
            served, trouble = np.empty(0, np.float32), drifted.get(row)
            if trouble is None:
                until = min((t for t in drifted if t > row), default=steps)
                if lane.reason is not None:  # what follows a new trouble would be scored in vain
                    until = min(until, row + self._plan.window_rows)
                part = part_of(inputs, slice(1), slice(row, until))
                served, trouble = self._try(part, lane, timed=timed)
            stop = row + len(served)
            scores[row:stop] = served
            was_open = lane.reason is not None
            if len(served):
                self._accept(part_of(inputs, slice(1), slice(row, stop)), lane)
            if trouble is not None:
                # A late score stands: the row that follows is the first of the fallback.
                at = stop - 1 if trouble.reason == "latency" else stop
                self._open(trouble, lane, place, at, renewed=was_open and at == row)
            row = stop
        self.tally.rows += steps
        return scores

    def _watch_inputs(self, inputs: Inputs, lane: Lane) -> dict[int, Trouble]:
        """Return the rows whose window has drifted."""
        limit = self._plan.drift_limit
        if lane.drift is None or self._reference is None or limit is None:
            return {}
        try:
            index, channel = lane.drift.push(inputs)
        except Exception as error:  # rows that are not what the training slice held
            return dict.fromkeys(range(inputs.steps), Trouble.of(error))
        names = self._reference.channels
        return {
            int(t): Trouble(
                reason="drift", value=float(index[t]), limit=limit, detail=names[channel[t]]
            )
            for t in np.flatnonzero(index > limit)
        }

    def _try(self, part: Inputs, lane: Lane, *, timed: bool) -> tuple[Values, Trouble | None]:
        """Score rows by the candidate up to its first trouble, the row of which is left out."""
        if lane.is_candidate_resting:
            trouble = self._take_over(lane)
            if trouble is not None:
                return np.empty(0, np.float32), trouble
        before = None
        begin = end = self._clock()
        try:
            if part.steps > 1:
                # A call that raises half way leaves a state that is neither before nor after it.
                before = lane.candidate.select(FIRST)
                begin = self._clock()
            values, decisions = ask(self._candidate, part, lane.candidate)
            end = self._clock()
            sure = confidence(decisions) if self._watches_confidence else None
            ran = runs(decisions) if self._watches_collapse else None
        except Exception as error:
            self.tally.candidate_ns += self._clock() - begin
            if part.steps == 1:
                return np.empty(0, np.float32), Trouble.of(error)
            lane.candidate = before
            return self._try_rows(part, lane)
        self.tally.candidate_ns += end - begin
        values, trouble = self._believe(values, sure, ran, part, lane)
        budget = self._plan.latency_budget_ms
        if trouble is None and timed and budget is not None and end - begin > budget * 1e6:
            trouble = Trouble(reason="latency", value=(end - begin) / 1e6, limit=budget)
        return values, trouble

    def _take_over(self, lane: Lane) -> Trouble | None:
        """Bring the candidate up to date with the latest rows."""
        begin = self._clock()
        trouble = None
        try:
            lane.activation.clear()
            lane.candidate, past = lane.recent.prime(self._candidate)
            ran = runs(past.decisions) if past is not None and self._watches_collapse else None
            if ran is not None:
                for count in ran[0].tolist():
                    lane.activation.push(count, ran[1])
        except Exception as error:
            trouble = Trouble.of(error)
        if lane.reason is not None:  # the start of a sequence is nobody's fallback
            self.tally.priming_ns += self._clock() - begin
        return trouble

    def _try_rows(self, part: Inputs, lane: Lane) -> tuple[Values, Trouble | None]:
        """Find the row that a failed bulk call stumbled over."""
        served, trouble, rows = [], None, lane.rows
        for t in range(part.steps):
            values, trouble = self._try(part_of(part, slice(1), slice(t, t + 1)), lane, timed=False)
            served.append(values)
            lane.rows += len(values)
            if trouble is not None:
                break
        lane.rows = rows
        return np.concatenate(served), trouble

    def _believe(
        self,
        values: Values,
        sure: Values | None,
        ran: tuple[NDArray[np.int64], int] | None,
        part: Inputs,
        lane: Lane,
    ) -> tuple[Values, Trouble | None]:
        """Return the scores up to the first that cannot be believed, and why."""
        observed = observed_rows(part)
        for t, value in enumerate(values):
            is_first = lane.rows + t == 0
            trouble = None
            if np.isinf(value) or (np.isnan(value) and observed[t] and not is_first):
                trouble = Trouble(reason="non_finite", detail=str(value))
            elif np.isnan(value) and is_first:
                values[t] = self._first_score(part_of(part, slice(1), slice(1)))
            if trouble is None and sure is not None:
                trouble = self._doubt(float(sure[t]))
            if ran is not None:
                share = lane.activation.push(int(ran[0][t]), ran[1])
                trouble = trouble or self._collapse(share)
            if trouble is not None:
                return values[:t], trouble
        return values, None

    def _doubt(self, sure: float) -> Trouble | None:
        limit = self._plan.minimum_confidence
        # Written so that NaN is a doubt, too.
        if limit is None or sure >= limit:
            return None
        return Trouble(reason="low_confidence", value=sure, limit=limit)

    def _collapse(self, share: float | None) -> Trouble | None:
        never, always = self._plan.never_active, self._plan.always_active
        if share is None:
            return None
        if never is not None and share <= never:
            return Trouble(reason="never_active", value=share, limit=never)
        if always is not None and share >= always:
            return Trouble(reason="always_active", value=share, limit=always)
        return None

    def _first_score(self, row: Inputs) -> float:
        """Return the incumbent's score of a sequence's first row, which a forecast cannot score.

        That is no failure of the candidate, which stays in charge.
        """
        if self._incumbent is None:
            return float("nan")
        begin = self._clock()
        try:
            value = float(ask(self._incumbent, row, self._incumbent.start(1))[0][0])
        except Exception:
            value = float("nan")  # then neither model has a score of this row
        self.tally.incumbent_ns += self._clock() - begin
        return value if np.isfinite(value) else float("nan")

    def _accept(self, part: Inputs, lane: Lane) -> None:
        """Take rows that the candidate served."""
        lane.take(part)
        lane.incumbent = lane.reason = None
        self.tally.candidate_rows += part.steps

    def _open(self, trouble: Trouble, lane: Lane, place: int, at: int, *, renewed: bool) -> None:
        """Turn to the fallback."""
        lane.candidate = None
        lane.hold, lane.reason = self._plan.hold_rows, trouble.reason
        lane.is_escalated = False
        self.tally.fallbacks[trouble.reason] += 1
        self.tally.looks += self._plan.fallback == "person"
        self._note(trouble, "candidate", self._plan.fallback, place, at, renewed=renewed)

    def _fall_back(self, part: Inputs, lane: Lane, place: int, row: int) -> Values:
        """Score rows by the fallback; by none where a person is to look."""
        assert lane.reason is not None  # noqa: S101  (held by _open)
        self.tally.fallback_rows[lane.reason] += part.steps
        if self._incumbent is None:
            lane.take(part)
            return np.full(part.steps, np.nan, np.float32)
        begin = self._clock()
        before, scores = self.tally.priming_ns, []
        primed = partial(self._prime_incumbent, self._incumbent, lane)
        for values, trouble in score_by_incumbent(self._incumbent, part, lane, primed):
            if trouble is not None and not lane.is_escalated:
                lane.is_escalated = True
                self.tally.looks += 1
                at = row + sum(map(len, scores))
                self._note(trouble, "incumbent", "person", place, at, renewed=False)
            scores.append(values)
        self.tally.incumbent_ns += self._clock() - begin - (self.tally.priming_ns - before)
        return np.concatenate(scores)

    def _prime_incumbent(self, incumbent: Scorer, lane: Lane) -> None:
        begin = self._clock()
        try:
            lane.incumbent = lane.recent.prime(incumbent)[0]
        finally:
            self.tally.priming_ns += self._clock() - begin

    def _note(
        self, trouble: Trouble, model: Model, to: Server, place: int, at: int, *, renewed: bool
    ) -> None:
        self._fallbacks.append(
            Fallback(lane=place, row=at, model=model, to=to, renewed=renewed, **vars(trouble))
        )
