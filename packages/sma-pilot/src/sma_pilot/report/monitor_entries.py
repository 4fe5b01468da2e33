"""What the run of a look after a go says in the tracking store; docs/mlflow.md lists the names."""

from collections.abc import Iterator, Sequence

from sma_pilot.monitor.finding import Finding
from sma_pilot.monitor.look import MonitorLook
from sma_pilot.plan import Plan
from sma_pilot.report.entries import (
    LOOK_TAG,
    PLAN_TAG,
    RECOMMENDATION_TAG,
    RECORD_TAG,
    Entries,
    metric_name,
)
from sma_pilot.report.markdown import escape_markdown
from sma_pilot.report.monitor import STATUSES, finding_label, moment
from sma_pilot.report.svg import printable
from sma_pilot.report.words import format_number

SECTION = "monitor"
REPLACES_TAG = "sma.replaces"
REPLACED_TAG = "sma.replaced_by"
CARD_TAG = "sma.look_sha256"
FINDING_TAG = "sma.watch."


def look_entries(
    look: MonitorLook, before: Sequence[MonitorLook], plan: Plan, replaced_by: int | None
) -> Entries:
    """Return what the run of one look says.

    Every figure is a curve over looks, a look's number being its step: the run of the newest look
    shows the whole trend, and its last value is its own.

    Parameters
    ----------
    look : MonitorLook
    before : sequence of MonitorLook
        Earlier looks that still stood when it was taken.
    plan : Plan
    replaced_by : int or None
        The look that took its place since.
    """
    own = dict(_figures(look))
    curves: dict[str, list[tuple[int, float]]] = {name: [] for name in own}
    for one in (*before, look):
        for name, value in _figures(one):
            # A figure that this look did not measure must not stand as if it had.
            if name in own:
                curves[name].append((one.number, value))
    return Entries(
        metrics={},
        curves=curves,
        params={
            "look": str(look.number),
            "rows_from": moment(look.since_ns),
            "rows_until": moment(look.until_ns - 1),
            "rows": str(look.rows),
            "entities": str(look.entities),
            "labelled_rows": str(look.labelled_rows),
            "events": str(look.events),
            "files": printable(", ".join(file["file"] for file in look.log["files"]), 500),
            **({} if look.replaces is None else {"replaces": str(look.replaces)}),
        },
        tags={
            RECOMMENDATION_TAG: look.recommendation,
            LOOK_TAG: str(look.number),
            **({} if look.replaces is None else {REPLACES_TAG: str(look.replaces)}),
            **({} if replaced_by is None else {REPLACED_TAG: str(replaced_by)}),
            **{
                FINDING_TAG + metric_name(one.name).replace("/", "_"): one.status
                for one in look.findings
            },
            PLAN_TAG: plan.digest,
            RECORD_TAG: look.decision,
            CARD_TAG: look.sha256,
        },
    )


def look_metrics(plan: Plan) -> list[str]:
    """Return the metrics of looks that are worth a chart, the first ones first."""
    headline = plan.quality.headline
    names = (
        f"quality/loss_{headline}",
        f"quality/candidate_{headline}",
        "quality/candidate_false_alarms_per_day",
        "drift/index",
        "routing/activation_rate",
        "routing/collapsed_share",
    )
    return [f"{SECTION}/{name.replace('/', '_')}" for name in names]


def look_markdown(look: MonitorLook, length: int) -> str:
    """Return a look's findings as Markdown, in at most so many characters."""
    lines = [f"**{look.recommendation}**: {escape_markdown(look.summary, 1000)}", ""]
    lines += ["| watched | now | at the verdict | limit | status |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for one in look.findings:
        symbol, word, _ = STATUSES[one.status]
        numbers = [
            "" if value is None else format_number(value, one.unit)
            for value in (one.value, one.at_verdict, one.limit)
        ]
        cells = [escape_markdown(finding_label(one)), *numbers, f"{symbol} {word}"]
        lines.append(f"| {' | '.join(cells)} |")
    text = "\n".join(lines)
    return text if len(text) <= length else lines[0][:length]


def _figures(look: MonitorLook) -> Iterator[tuple[str, float]]:
    for one in look.findings:
        name = f"{SECTION}/{metric_name(one.name).replace('/', '_')}"
        yield from _ends(name, one)


def _ends(name: str, one: Finding) -> Iterator[tuple[str, float]]:
    """Give value, bounds, limit and what stood at the verdict, where there is a value."""
    if one.value is None:
        return
    ends = {
        "": one.value,
        "_low": one.low,
        "_high": one.high,
        "_limit": one.limit,
        "_verdict": one.at_verdict,
    }
    yield from ((name + end, value) for end, value in ends.items() if value is not None)
