"""Rules on rows: schema, clock, order and slices."""

from collections.abc import Iterator

from sma_pilot.logs.facts import LogFacts
from sma_pilot.logs.findings.finding import (
    MOST,
    MUCH,
    Finding,
    counted,
    lasting,
    listed,
    share_of,
)
from sma_pilot.logs.slices import JUDGED, SLICES, TRAIN, VALIDATION, iso, nanoseconds
from sma_pilot.plan import Plan, format_duration

_SHORT_SEQUENCE = 32


def schema(plan: Plan, facts: LogFacts) -> Iterator[Finding]:
    """Tell what was read, and of rows that cannot be placed."""
    survey, columns = facts.reader.survey, facts.reader.columns
    yield Finding(
        "info",
        "schema",
        f"{survey.rows:,} rows in {counted(len(facts.reader.files), 'file')}: "
        f"{counted(len(columns.numeric), 'numeric channel')}, "
        f"{len(columns.categorical)} categorical, "
        f"{counted(len(facts.entities), 'entity', 'entities')}; "
        f"{iso(survey.first)} to {iso(survey.last)}.",
    )
    if survey.lines_unparsed:
        yield Finding(
            "warning",
            "schema",
            f"{share_of(survey.lines_unparsed, survey.rows)} of the lines do not parse and are "
            f"left out: {'; '.join(survey.unparsed_examples)}.",
        )
    for count, part in ((survey.without_time, "time"), (survey.without_entity, "entity")):
        if count:
            yield Finding(
                "warning",
                "schema",
                f"{share_of(count, survey.rows)} of the rows have no {part} and are left out.",
            )


def clock(plan: Plan, facts: LogFacts) -> Iterator[Finding]:
    """Tell whether period and max_gap fit the time between rows."""
    survey, period = facts.reader.survey, nanoseconds(plan.log.period)
    max_gap, median = nanoseconds(plan.log.max_gap), facts.steps.median
    if median is None:
        yield Finding("error", "clock", "No entity has two rows of different time.")
        return
    usual = f"the usual step between two rows of an entity is {lasting(median)}"
    if median > max_gap:
        yield Finding(
            "error",
            "clock",
            f"log.max_gap is {format_duration(plan.log.max_gap)}, but {usual}: nearly every row "
            "would be a sequence of its own; make log.max_gap longer.",
        )
    if not 0.5 <= median / period <= 2:
        yield Finding(
            "warning",
            "clock",
            f"log.period is {format_duration(plan.log.period)}, but {usual}; correct log.period.",
        )
    else:
        yield Finding("info", "clock", f"{usual.capitalize()}, as log.period says.")
    span = survey.last - survey.first
    if facts.tally.gaps:
        yield Finding(
            "info",
            "clock",
            f"{counted(facts.tally.gaps, 'silence')} longer than log.max_gap; the longest lasts "
            f"{lasting(facts.steps.longest)}. Each starts a new sequence.",
        )
    if span and facts.steps.longest > MOST * span:
        yield Finding(
            "warning",
            "clock",
            f"One silence of {lasting(facts.steps.longest)} is most of the log's time from "
            f"{iso(survey.first)} to {iso(survey.last)}: is a clock wrong? Slices that are given "
            "as shares would fall into it.",
        )


def order(plan: Plan, facts: LogFacts) -> Iterator[Finding]:
    """Tell of late and of repeated rows."""
    survey = facts.reader.survey
    if survey.out_of_order:
        yield Finding(
            "info",
            "order",
            f"{share_of(survey.out_of_order, survey.rows)} of the rows are older than an earlier "
            "row of their entity and file; they are sorted in.",
        )
    if facts.duplicates:
        alone = plan.log.entity is None
        yield Finding(
            "warning" if facts.duplicates > MUCH * survey.rows else "info",
            "order",
            f"{share_of(facts.duplicates, survey.rows)} of the rows repeat a time of their entity; "
            f"of such rows the {plan.log.duplicates} one stands."
            + (" Does the log hold several machines? Then name log.entity." if alone else ""),
        )


def slices(plan: Plan, facts: LogFacts) -> Iterator[Finding]:
    """Tell of slices that lack rows, and of entities that one lacks."""
    for number, (name, counts) in enumerate(zip(SLICES, facts.tally.slices, strict=True)):
        if counts.rows == 0:
            yield Finding(
                "error", "slices", f"No row falls into the {name} slice; move the borders."
            )
            continue
        absent = [
            entity
            for entity, rows in zip(facts.entities, facts.rows_of_entity, strict=True)
            if rows[number] == 0 and rows.sum() > 0
        ]
        if absent:
            effect = {
                TRAIN: "their values are scaled as the fleet's",
                VALIDATION: "they say nothing on thresholds",
                JUDGED: "they are not judged",
            }[number]
            yield Finding(
                "info" if number == JUDGED else "warning",
                "slices",
                f"{counted(len(absent), 'entity has', 'entities have')} no row in the {name} slice "
                f"({listed(absent)}): {effect}.",
            )
        length = counts.rows / counts.sequences
        if length < _SHORT_SEQUENCE:
            yield Finding(
                "warning",
                "slices",
                f"The sequences of the {name} slice are {length:.1f} rows long on average: too "
                "short for a sequence model; a longer log.max_gap joins them.",
            )
    if facts.tally.outside:
        yield Finding(
            "info",
            "slices",
            f"{facts.tally.outside:,} rows from slices.judged_until on are left out.",
        )
    if facts.repeated > MOST:
        yield Finding(
            "warning",
            "slices",
            f"{100 * facts.repeated:.0f} % of the judged rows repeat, with the three rows before "
            "them, values of training rows: is old time copied under new timestamps? A model "
            "would be judged on what it has learnt by heart.",
        )
