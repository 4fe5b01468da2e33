"""Verdict and decision as Markdown, for a page that shows them on top: MLflow's run page.

A page may fold all but the first lines: these hold the verdict and every limit.
"""

import re
from collections.abc import Iterator, Sequence

from sma_pilot.decision.record import Decision
from sma_pilot.judge.measurements import BASELINE, CANDIDATE, INCUMBENT
from sma_pilot.judge.result import Result, Status
from sma_pilot.report.svg import printable
from sma_pilot.report.tables import arm_figures, gate_rows
from sma_pilot.report.words import (
    STATUSES,
    VERDICTS,
    arm_label,
    format_limit,
    format_value,
    kpi_label,
)

# As character references, which no Markdown takes for markup, not even where it allows HTML.
_MARKUP = re.compile(r"[&<>\"'`*_\[\]|~\\@$^]|(?<=:)//|(?<=www)\.", re.IGNORECASE)
_LONGEST = 600


def escape_markdown(text: object, length: int = _LONGEST) -> str:
    """Return `text` for the middle of a line, where Markdown shows it as it is.

    No markup, link, row, line or tag comes of it. What is markup at the start of a line alone, such
    as a dash, stays: a page reads better in its source.
    """
    line = printable(" ".join(str(text).split()), length)
    return _MARKUP.sub(lambda match: "".join(f"&#{ord(c)};" for c in match[0]), line)


def verdict_markdown(result: Result, length: int) -> str:
    """Lay the result out as Markdown: verdict, limits, reasons (what fails first), figures.

    Parameters
    ----------
    result : Result
    length : int
        Characters that the page takes; the last parts are left out where they would not fit.
    """
    arms = [
        arm
        for arm in (INCUMBENT, CANDIDATE, BASELINE)
        if any(kpi.arm == arm for kpi in result.kpis)
    ]
    symbol, word, meaning = VERDICTS[result.verdict]
    text = f"**{symbol} {word}.** {meaning}"
    for part in (_gates(result), _limits(result, arms), *_reasons(result), _figures(result, arms)):
        if len(text) + len(part) + 2 <= length:
            text += f"\n\n{part}"
    return text


def decision_markdown(decisions: Sequence[Decision], *, unchanged: bool, length: int) -> str:
    """Say who signed what, the newest decision first; it is there however short `length` is.

    Parameters
    ----------
    decisions : sequence of Decision
        Of one run, oldest first.
    unchanged : bool
        Whether the run is still what was signed.
    length : int
        Characters that the page takes; the oldest decisions are left out where they do not fit.
    """
    if not decisions:
        return ""
    text = _signed(decisions[-1])
    if not unchanged:
        text = f"**\N{WARNING SIGN} The run was changed after it was signed.** {text}"
    for place, decision in enumerate(reversed(decisions[:-1])):
        line = f"\n\nBefore: {_signed(decision)}"
        if len(text) + len(line) > length:
            return f"{text}\n\nBefore: {len(decisions) - 1 - place} more, on the report."
        text += line
    return text


def _signed(decision: Decision) -> str:
    symbol, word, _ = VERDICTS[decision.decision]
    head = f"**{symbol} Signed: {word.lower()}**"
    if decision.override:
        head = (
            f"**\N{WARNING SIGN} Signed: {word.lower()}, AGAINST the verdict {decision.verdict}**"
        )
    by, reason = escape_markdown(decision.by, 100), escape_markdown(decision.reason, 200)
    return f"{head} by {by}, {decision.moment}: {reason}"


def _gates(result: Result) -> str:
    """Say in one line how every limit stands."""
    gates = sorted((kpi for kpi in result.kpis if kpi.is_gate), key=lambda kpi: _rank(kpi.status))
    words = []
    for kpi in gates:
        limit = f" ({format_limit(kpi)})" if kpi.threshold is not None else ""
        text = f"{kpi_label(kpi)} {format_value(kpi.value, kpi.unit)}{limit}"
        words.append(f"{STATUSES[kpi.status][0]} {escape_markdown(text)}")
    return " \N{MIDDLE DOT} ".join(words)


def _limits(result: Result, arms: Sequence[str]) -> str:
    names = [arm_label(arm) for arm in arms]
    head = ["limit of the plan", "status", "compared", "interval", "limit", *names]
    rows = []
    for row in sorted(gate_rows(result, arms), key=lambda row: _rank(row["status"])):
        symbol, status = STATUSES[row["status"]]
        words = [row["label"], f"{symbol} {status}", row["value"], row["interval"], row["limit"]]
        rows.append([*words, *row["by_arm"]])
    return _table(head, rows)


def _reasons(result: Result) -> Iterator[str]:
    reasons = sorted(result.reasons, key=lambda reason: _rank(reason.status))
    lines = [f"- {STATUSES[reason.status][0]} {escape_markdown(reason.text)}" for reason in reasons]
    if lines:
        yield "\n".join(["**Why**\n", *lines])
    if result.more_data is not None:
        yield f"**What would settle it.** {escape_markdown(result.more_data.text)}"


def _figures(result: Result, arms: Sequence[str]) -> str:
    rows = []
    for group in arm_figures(result, arms):
        for row in group["rows"]:
            values = [cell["value"] for cell in row["cells"]]
            rows.append([f"{group['title']}: {row['label']}", row["unit"], *values])
    return _table(["figure", "unit", *(arm_label(arm) for arm in arms)], rows)


def _rank(status: Status) -> int:
    return list(STATUSES).index(status)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, *([escape_markdown(cell) for cell in row] for row in rows)]
    # The space keeps columns apart on a page whose style gives its cells no margin.
    text = [f"| {'&ensp; | '.join(cells)} |" for cells in lines]
    return "\n".join([text[0], f"|{' --- |' * len(head)}", *text[1:]])
