"""The verdict as Markdown, for a page that shows it above everything else: MLflow's run page.

The table of limits comes first, because a page may fold all that follows.
"""

import re
from collections.abc import Iterator, Sequence

from sma_pilot.judge.measurements import BASELINE, CANDIDATE, INCUMBENT
from sma_pilot.judge.result import Result
from sma_pilot.report.svg import printable
from sma_pilot.report.tables import arm_figures, gate_rows
from sma_pilot.report.words import STATUSES, VERDICTS, arm_label

# As character references, which no Markdown takes for markup, not even where it allows HTML.
_MARKUP = re.compile(r"[&<>\"'`*_\[\]|~\\@$^]|(?<=:)//|(?<=www)\.|(?m:^[-+#=:])|(?m:(?<=^\d)[.)])")
_LONGEST = 600


def escape_markdown(text: object, length: int = _LONGEST) -> str:
    """Return `text` as one line that Markdown shows as it is: no markup, link, row or tag."""
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
    for part in (_limits(result, arms), *_reasons(result), _figures(result, arms)):
        if len(text) + len(part) + 2 <= length:
            text += f"\n\n{part}"
    return text


def _limits(result: Result, arms: Sequence[str]) -> str:
    names = [arm_label(arm) for arm in arms]
    head = ["limit of the plan", "status", "compared", "interval", "limit", *names]
    order = list(STATUSES)
    rows = []
    for row in sorted(gate_rows(result, arms), key=lambda row: order.index(row["status"])):
        symbol, status = STATUSES[row["status"]]
        words = [row["label"], f"{symbol} {status}", row["value"], row["interval"], row["limit"]]
        rows.append([*words, *row["by_arm"]])
    return _table(head, rows)


def _reasons(result: Result) -> Iterator[str]:
    order = list(STATUSES)
    reasons = sorted(result.reasons, key=lambda reason: order.index(reason.status))
    lines = [f"- {STATUSES[reason.status][0]} {escape_markdown(reason.text)}" for reason in reasons]
    if lines:
        yield "\n".join(["**Why**\n", *lines])
    if result.more_data is not None:
        yield f"**What would settle it.** {escape_markdown(result.more_data.text)}"


def _figures(result: Result, arms: Sequence[str]) -> str:
    rows = [
        [f"{group['title']}: {row['label']}", row["unit"], *(cell["value"] for cell in row["cells"])]
        for group in arm_figures(result, arms)
        for row in group["rows"]
    ]
    return _table(["figure", "unit", *(arm_label(arm) for arm in arms)], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([escape_markdown(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
