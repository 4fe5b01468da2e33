"""Whether a plan's limit is within reach of its log: evidence, answer, and how it is told."""

from dataclasses import asdict, dataclass
from typing import Any, Final

from sma_pilot.judge.events import DAY_NS, nanoseconds
from sma_pilot.judge.measurements import CANDIDATE, INCUMBENT, AlignedSlice
from sma_pilot.judge.metrics import EVENT_RECALL
from sma_pilot.judge.provable import (
    Assumption,
    Evidence,
    needed_for,
    smallest_provable_loss,
)
from sma_pilot.judge.quality import measure_quality
from sma_pilot.judge.quality_gate import MINIMUM_BLOCKS
from sma_pilot.judge.scene import Scene
from sma_pilot.plan import Plan

FORMAT: Final = "sma.provability"
VERSION: Final = 1
DISCORDANCES: Final = (0.0, 0.02, 0.05, 0.1, 0.2)
"""Besides the assumed one, so that a reader sees what the assumption is worth."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a log before the pilot.

    Attributes
    ----------
    evidence : Evidence or None
        None without an event that could be caught.
    block_days : float
        Length of a stretch that is taken as independent.
    recall : float or None
        Of the incumbent; None when it was not replayed.
    """

    evidence: Evidence | None
    block_days: float
    recall: float | None = None


@dataclass(frozen=True, kw_only=True)
class Provability:
    """The smallest loss that a log can prove, and whether the plan's limit is that large.

    Attributes
    ----------
    reachable : bool
        Whether a candidate without any true loss would pass with the wanted chance.
    smallest_loss : float or None
        The smallest limit for which it would; None where the plan's own minima are not met.
    needed : Evidence or None
        What the plan's limit takes; None without a first event to reckon with.
    by_discordance : tuple of (float, float)
        Smallest losses for other shares of differing events.
    reason : str
        The answer in a sentence or two.
    stage : str or None
        Of a plan in stages the one that this is about.
    """

    reachable: bool
    limit: float
    smallest_loss: float | None
    known: Known
    assumed: Assumption
    needed: Evidence | None
    by_discordance: tuple[tuple[float, float], ...]
    reason: str
    plan_name: str
    plan_digest: str
    stage: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the answer, JSON-ready."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "plan": {"name": self.plan_name, "digest": self.plan_digest},
            **({} if self.stage is None else {"stage": self.stage}),
            "reachable": self.reachable,
            "loss_limit": self.limit,
            "smallest_provable_loss": self.smallest_loss,
            "known": asdict(self.known),
            "assumed": asdict(self.assumed),
            "needed": None if self.needed is None else asdict(self.needed),
            "by_discordance": [
                {"discordance": share, "smallest_provable_loss": loss}
                for share, loss in self.by_discordance
            ],
            "reason": self.reason,
        }

    def to_text(self) -> str:
        """Lay the answer out for a terminal."""
        known, assumed, evidence = self.known, self.assumed, self.known.evidence
        stage = "" if self.stage is None else f", stage {self.stage}"
        lines = [f"plan {self.plan_name} {self.plan_digest[:8]}{stage}: {self.reason}", ""]
        if evidence is not None:
            source = (
                "events that start together; no arm replayed"
                if known.recall is None
                else f"measured on what the incumbent catches, {known.recall:.3f} of the events"
            )
            lines += [
                f"judged events    {evidence.events} in {evidence.incidents} incidents, "
                f"{evidence.days:.3g} days, {evidence.blocks} stretches of "
                f"{24 * known.block_days:.3g} h",
                f"design effect    {evidence.design_effect:.2f} ({source})",
            ]
        lines.append(
            f"assumed          no true loss; arms that differ on {100 * assumed.discordance:g} % "
            f"of the events; alpha {100 * assumed.alpha:g} %, power {100 * assumed.power:g} %"
        )
        if self.by_discordance:
            lines += ["", "differing events    smallest provable loss"]
            lines += [
                f"{100 * share:>12g} %        {loss:.3f}" for share, loss in self.by_discordance
            ]
        return "\n".join(lines)


def evidence_of_events(judged: AlignedSlice, plan: Plan) -> Known:
    """Take the evidence from events alone: those that start together count as one.

    Parameters
    ----------
    judged : AlignedSlice
        With any score of both arms on every row that they would score.
    """
    scene = Scene.of(judged, plan)
    # Without anything caught no loss has a memory, so this is the least block.
    unknown = scene.score(INCUMBENT, None)
    block = scene.block({INCUMBENT: unknown, CANDIDATE: unknown}, plan)
    return _known(
        scene.events.count,
        scene.incidents,
        scene.bins,
        block,
        scene.observed_days,
        plan,
    )


def evidence_of_incumbent(validation: AlignedSlice, judged: AlignedSlice, plan: Plan) -> Known:
    """Take the evidence from what the incumbent catches, with the judge's own measure of memory.

    Parameters
    ----------
    validation, judged : AlignedSlice
        With the incumbent, and a candidate that never raises an alarm: their difference is the
        incumbent's recall, and its design effect stands in for that of a loss.
    """
    quality = measure_quality(validation, judged, plan)
    caught = quality.candidate.losses.get(EVENT_RECALL)
    return _known(
        quality.events,
        quality.incidents,
        quality.bins,
        quality.block,
        quality.observed_days,
        plan,
        design_effect=1.0 if caught is None else caught.design_effect or 1.0,
        recall=None if caught is None else caught.value,
    )


def assess_provability(known: Known, assumed: Assumption, plan: Plan) -> Provability:
    """Hold the plan's limit against the smallest loss that the log can prove.

    A plan in stages is asked one stage at a time: `plan` is then `Plan.reading` of one.
    """
    limit, minimum = plan.quality.loss_limit, plan.quality.minimum_events
    evidence = known.evidence
    smallest = needed = None
    table: tuple[tuple[float, float], ...] = ()
    if evidence is None:
        reason = (
            "The judged rows hold no labelled event that could be caught, so no loss can be shown "
            "or ruled out, and how much data it takes cannot be told."
        )
    else:
        enough = evidence.events >= minimum and evidence.blocks >= MINIMUM_BLOCKS
        grown = max(1.0, minimum / evidence.events, MINIMUM_BLOCKS / max(evidence.blocks, 0.5))
        needed = needed_for(limit, evidence.times(grown), assumed, plan.seed)
        if enough:
            smallest = smallest_provable_loss(evidence, assumed, plan.seed)
            shares = sorted({*DISCORDANCES, assumed.discordance})
            table = tuple(
                (
                    share,
                    smallest_provable_loss(
                        evidence,
                        Assumption(discordance=share, alpha=assumed.alpha, power=assumed.power),
                        plan.seed,
                    ),
                )
                for share in shares
            )
        reason = _reason(limit, smallest, evidence, needed, minimum)
    vacuous = known.recall is not None and limit >= known.recall
    if vacuous:
        reason = (
            f"quality.loss_limit {limit:g} is no limit: the incumbent catches {known.recall:.3f} "
            f"of the judged events, so a candidate that catches none would lose no more. {reason}"
        )
    return Provability(
        reachable=smallest is not None and smallest <= limit and not vacuous,
        limit=limit,
        smallest_loss=smallest,
        known=known,
        assumed=assumed,
        needed=needed,
        by_discordance=table,
        reason=reason,
        plan_name=plan.name,
        plan_digest=plan.digest,
        stage=plan.stages[0].name if plan.stages else None,
    )


def _known(
    events: int,
    incidents: int,
    bins: int,
    block: int,
    days: float,
    plan: Plan,
    *,
    design_effect: float = 1.0,
    recall: float | None = None,
) -> Known:
    evidence = None
    if events:
        evidence = Evidence(
            events=events,
            incidents=incidents,
            blocks=bins // block,
            days=days,
            design_effect=min(max(design_effect, events / incidents), float(events)),
        )
    return Known(
        evidence=evidence,
        block_days=block * nanoseconds(plan.log.period) / DAY_NS,
        recall=recall,
    )


def _reason(
    limit: float, smallest: float | None, evidence: Evidence, needed: Evidence, minimum: int
) -> str:
    more = (
        f"It takes about {needed.events} judged events, {needed.events - evidence.events} more "
        f"than there are, or {needed.days - evidence.days:.3g} further days like these."
    )
    if smallest is None:
        return (
            f"The judged rows hold {evidence.events} events and {evidence.blocks} independent "
            f"stretches of time; {minimum} and {MINIMUM_BLOCKS} are needed for any verdict on "
            f"quality. {more}"
        )
    if smallest > limit:
        return (
            f"A loss of event recall under {limit:g} (quality.loss_limit) cannot be proven with "
            f"this data: {smallest:.3f} is the smallest within reach. {more}"
        )
    return (
        f"A loss of event recall under {limit:g} (quality.loss_limit) can be proven with this "
        f"data; {smallest:.3f} is the smallest within reach."
    )
