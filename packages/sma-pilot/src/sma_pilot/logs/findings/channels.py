"""Rules on channels: what they hold, and whether one gives the answer away."""

import math
import re
from collections.abc import Iterator

import numpy as np

from sma_pilot.logs.facts import LogFacts
from sma_pilot.logs.findings.finding import (
    MOST,
    MUCH,
    Finding,
    counted,
    listed,
    share_of,
)
from sma_pilot.logs.leakage import SUSPICIOUS, Separation
from sma_pilot.logs.slices import JUDGED, SLICES, TRAIN, VALIDATION
from sma_pilot.plan import Plan

_OUTLYING = 50.0
# What the columns of a label, and of what is known only afterwards, are called.
_ANSWERS = re.compile(
    r"(?:.*[_\W])?(?:labels?|target|anomaly|is_?anomaly|outlier|ground_?truth|rul|ttf|y_?true)"
    r"(?:[_\W].*)?"
)


def channels(plan: Plan, facts: LogFacts) -> Iterator[Finding]:
    """Tell of numeric channels that are empty, constant, sparse, unusable or far off."""
    names, tally = facts.reader.columns.numeric, facts.tally
    train, *later = tally.slice_moments
    empty = [name for name, count in zip(names, train.count, strict=True) if count == 0]
    if empty:
        yield Finding(
            "error" if len(empty) == len(names) else "warning",
            "channels",
            f"Without a value in training: {listed(empty)}; leave them out of log.numeric.",
        )
    constant = [
        name
        for name, count, low, high in zip(names, train.count, train.low, train.high, strict=True)
        if count and low == high
    ]
    if constant:
        moving = [
            name
            for i, name in enumerate(names)
            if name in constant
            and any(m.count[i] and not m.low[i] == m.high[i] == train.low[i] for m in later)
        ]
        yield Finding(
            "warning" if moving else "info",
            "channels",
            f"Constant in training: {listed(constant)}."
            + (f" They move later: {listed(moving)}; no model can know how." if moving else ""),
        )
    rows = tally.slices[TRAIN].rows
    sparse = [
        f"{name} ({100 * (1 - count / rows):.0f} %)"
        for name, count in zip(names, train.count, strict=True)
        if rows and 0 < count < (1 - MOST) * rows
    ]
    if sparse:
        yield Finding("warning", "channels", f"Mostly missing in training: {listed(sparse)}.")
    unusable = [
        f"{name} ({count:,})"
        for name, count in zip(names, tally.unusable.tolist(), strict=True)
        if count
    ]
    if unusable:
        yield Finding(
            "warning",
            "channels",
            f"Infinite values, or ones beyond float32, are taken as missing: {listed(unusable)}.",
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = np.maximum(train.high - train.mean, train.mean - train.low) / train.deviation
    outlying = [
        f"{name} ({far:.0f} deviations)"
        for name, far in zip(names, reach.tolist(), strict=True)
        if math.isfinite(far) and far > _OUTLYING
    ]
    if outlying:
        yield Finding(
            "warning",
            "channels",
            f"Single values far off in training: {listed(outlying)}. They widen the scale and hide "
            "smaller movements; if they are faults of a sensor, leave those cells empty.",
        )


def words(plan: Plan, facts: LogFacts) -> Iterator[Finding]:
    """Tell of categorical channels that say nothing, or something new later."""
    for name, unseen, vocabulary in zip(
        facts.reader.columns.categorical, facts.unseen, facts.vocabularies, strict=True
    ):
        if len(vocabulary) <= 2:
            yield Finding(
                "warning",
                "channels",
                f"Categorical channel {name!r} has {counted(len(vocabulary) - 1, 'value')} in "
                "training: it says nothing; leave it out.",
            )
        for number in (VALIDATION, JUDGED):
            rows = facts.tally.slices[number].rows
            if unseen.rows[number]:
                yield Finding(
                    "warning" if unseen.rows[number] > MUCH * rows else "info",
                    "channels",
                    f"Categorical channel {name!r}: {share_of(unseen.rows[number], rows)} of the "
                    f"{SLICES[number]} rows hold a value that training has not "
                    f"({listed(list(unseen.examples), quote=True)}); models see it as unknown.",
                )


def leakage(plan: Plan, facts: LogFacts) -> Iterator[Finding]:
    """Tell of channels that give the answer away."""
    told: set[str] = set()
    truths = (
        (facts.label_separations, f"an event ({plan.log.label!r})"),
        (facts.target_separations, "an event within task.horizon"),
    )
    for separations, truth in truths:
        for one in separations:
            if one.area >= SUSPICIOUS and one.channel not in told:
                told.add(one.channel)
                yield _leak(one, truth)
    for name in (*facts.reader.columns.numeric, *facts.reader.columns.categorical):
        if name not in told and _is_named_like_answer(name, plan.log.answer[1]):
            yield Finding(
                "warning",
                "leakage",
                f"Channel {name!r} is named like an answer. If it is known only afterwards, "
                "leave it out.",
            )


def _leak(one: Separation, truth: str) -> Finding:
    if one.is_answer:
        return Finding(
            "error",
            "leakage",
            f"Channel {one.channel!r} is the answer: it has one value in every row of {truth} and "
            "another in all normal ones. Leave it out.",
        )
    what = {"value": "its value", "missing": "whether it has a value", "word": "its value"}[one.by]
    return Finding(
        "warning",
        "leakage",
        f"Channel {one.channel!r} nearly is the answer: {what} alone tells {truth} from normal "
        f"rows (area under the ROC curve {one.area:.4f}). If it is written when, or because, the "
        "event was noticed, leave it out.",
    )


def _is_named_like_answer(name: str, label: str | None) -> bool:
    folded = name.casefold()
    inside = label is not None and len(label) > 2 and label.casefold() in folded
    return inside or _ANSWERS.fullmatch(folded) is not None
