"""Rules on labels, and on what could be proven with them."""

import math
from collections.abc import Iterator
from statistics import NormalDist

from sma_pilot.judge.power import POWER
from sma_pilot.judge.provable import LIKELY_DISCORDANCE
from sma_pilot.judge.statistics import share_upper_bound
from sma_pilot.logs.facts import LogFacts
from sma_pilot.logs.findings.finding import (
    DAY_NS,
    MOST,
    Finding,
    counted,
    share_of,
)
from sma_pilot.logs.labels import EVENT
from sma_pilot.logs.slices import JUDGED, SLICES, TRAIN, VALIDATION, nanoseconds
from sma_pilot.plan import Plan

_FEWEST_FALSE_ALARMS = 5


def labels(plan: Plan, facts: LogFacts) -> Iterator[Finding]:
    """Tell how many rows are labelled, and how many events there are."""
    if plan.task.by_class:
        return
    judged, coding = facts.tally.slices[JUDGED], facts.reader.survey.coding
    if coding is None:
        yield Finding(
            "warning",
            "labels",
            "The plan names no log.label: quality cannot be judged, so no verdict can be a go.",
        )
        return
    for name, counts in zip(SLICES, facts.tally.slices, strict=True):
        if counts.labelled == 0:
            yield Finding("info", "labels", f"{name}: no row is labelled.")
            continue
        yield Finding(
            "info",
            "labels",
            f"{name}: {share_of(counts.labelled, counts.rows)} of the rows are labelled, "
            f"{share_of(counts.event_rows, counts.labelled)} of those lie in "
            f"{counted(counts.events, 'event')}.",
        )
    if not any(code >= EVENT for code in coding.codes.values()):
        yield Finding("warning", "labels", f"{plan.log.label!r} marks no event anywhere.")
    elif judged.labelled and judged.event_rows > MOST * judged.labelled:
        yield Finding(
            "warning",
            "labels",
            f"{share_of(judged.event_rows, judged.labelled)} of the labelled judged rows are event "
            f"rows: does {plan.log.label!r} mean the reverse?",
        )
    if plan.task.horizon is not None:
        for number in (TRAIN, VALIDATION):
            if facts.announced[number] == 0:
                yield Finding(
                    "error" if number == TRAIN else "warning",
                    "labels",
                    f"No {SLICES[number]} row lies within task.horizon before an event, so there "
                    "is nothing to learn from; move the borders or check log.label.",
                )


def proof(plan: Plan, facts: LogFacts) -> Iterator[Finding]:
    """Tell beforehand what the judge could not conclude, however well the candidate does."""
    quality = plan.quality
    if quality.false_alarms_per_day is None:
        return  # no alarms, no events
    rows = int(facts.rows_of_entity[:, VALIDATION].sum())
    days = rows * nanoseconds(plan.log.period) / DAY_NS
    allowed = quality.false_alarms_per_day * days
    if 0 < allowed < _FEWEST_FALSE_ALARMS:
        yield Finding(
            "warning",
            "proof",
            f"The validation slice allows {allowed:.1f} false alarms in all ({days:.2g} entity "
            f"days at {quality.false_alarms_per_day:g} a day): thresholds rest on few rows; make "
            "the slice longer.",
        )
    if facts.reader.survey.coding is None:
        return
    events = facts.tally.slices[JUDGED].events
    if events < quality.minimum_events:
        yield Finding(
            "warning",
            "proof",
            f"The judged slice holds {counted(events, 'event')}, quality.minimum_events asks for "
            f"{quality.minimum_events}: the verdict will be inconclusive. More labelled time, or "
            "an earlier slices.judged_from, would mend it.",
        )
    if quality.headline != "event_recall" or events == 0:
        return
    least = math.ceil(math.log(quality.alpha) / math.log1p(-quality.loss_limit))
    z = NormalDist().inv_cdf(1 - quality.alpha) + NormalDist().inv_cdf(POWER)
    likely = max(least, math.ceil(LIKELY_DISCORDANCE * (z / quality.loss_limit) ** 2))
    if share_upper_bound(0, events, quality.alpha) > quality.loss_limit:
        yield Finding(
            "warning",
            "proof",
            f"A loss of event recall under {quality.loss_limit:g} cannot be proven with "
            f"{counted(events, 'judged event')}, even if both arms catch the same ones: that takes "
            f"{least}. A loss limit of {share_upper_bound(0, events, quality.alpha):.2g} is the "
            "smallest within reach.",
        )
    else:
        yield Finding(
            "info" if events >= likely else "warning",
            "proof",
            f"A loss of event recall under {quality.loss_limit:g} can be proven with "
            f"{counted(events, 'judged event')} ({least} would do if both arms caught the same). "
            f"If they differ on {100 * LIKELY_DISCORDANCE:g} % of the events, it takes about "
            f"{likely}; events that come in clusters count less.",
        )
