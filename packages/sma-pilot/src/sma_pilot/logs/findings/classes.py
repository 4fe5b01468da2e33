"""Rules on classes: which there are, in which slices, and whether they suffice to judge."""

from collections.abc import Iterator

from sma_pilot.logs.facts import LogFacts
from sma_pilot.logs.findings.finding import Finding, counted, listed
from sma_pilot.logs.slices import JUDGED, SLICES, TRAIN
from sma_pilot.plan import Plan


def classes(plan: Plan, facts: LogFacts) -> Iterator[Finding]:
    """Tell the classes of a log for `classification`; nothing for a log whose labels are events."""
    coding, units = facts.reader.survey.coding, facts.tally.units
    if coding is None or units is None:
        return
    what = "session" if plan.task.window is None else "window"
    names = list(coding.codes)
    counts = units.counts(len(names))
    for slice_name, own in zip(SLICES, counts, strict=True):
        told = [f"{name} ({count:,})" for name, count in zip(names, own, strict=True) if count]
        yield Finding(
            "info",
            "labels",
            f"{slice_name}: {counted(int(own.sum()), f'{what} has', f'{what}s have')} a class"
            + (f": {listed(told)}." if told else "."),
        )
    known = counts[TRAIN] > 0
    if known.sum() < 2:
        yield Finding(
            "error",
            "labels",
            f"Training has {counted(int(known.sum()), 'class', 'classes')} of "
            f"{plan.log.class_label!r}: there is nothing to tell apart; move "
            "slices.validation_from, or check log.class_label.",
        )
    for slice_name, own in zip(SLICES[1:], counts[1:], strict=True):
        strange = [f"{n} ({c:,})" for n, c, k in zip(names, own, known, strict=True) if c and not k]
        if strange:
            yield Finding(
                "warning",
                "labels",
                f"{slice_name}: classes that training has not: {listed(strange)}. No model can "
                f"tell them; such {what}s are counted and left out of the metrics.",
            )
    judged = int(counts[JUDGED][known].sum())
    if judged < plan.quality.minimum_events:
        yield Finding(
            "warning",
            "proof",
            f"The judged slice holds {counted(judged, what)} of a known class, "
            f"quality.minimum_events asks for {plan.quality.minimum_events}: the verdict will be "
            "inconclusive. A longer judged slice would mend it.",
        )
