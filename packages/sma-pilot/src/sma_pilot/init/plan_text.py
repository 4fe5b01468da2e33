"""The plan as TOML with comments: every choice with what it rests on."""

import json
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from sma_pilot.init.borders import USUAL
from sma_pilot.init.columns import Parts
from sma_pilot.logs.slices import iso
from sma_pilot.plan import format_duration

_WIDTH = 100
_MERGED_PERIODS = 10


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What was learnt from a log, ready to be written down.

    Parameters
    ----------
    first, last : int
        Of the log, ns.
    judged_rows, judged_events, events : int
        Rows and labelled events of the judged slice, and events in all.
    has_empty_slice : bool
        Whether the borders leave a slice without a row, as a long silence can.
    """

    name: str
    patterns: tuple[str, ...]
    parts: Parts
    period: timedelta
    max_gap: timedelta
    borders: tuple[float, float]
    rows: int
    entities: int
    first: int
    last: int
    judged_rows: int
    judged_events: int
    events: int
    has_empty_slice: bool


def quoted(text: str) -> str:
    """Write any text as a TOML string on one line."""
    # JSON's escapes are TOML's, but TOML also wants the delete character escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def plan_text(draft: Draft) -> str:
    """Write the plan."""
    sections = (_head, _log, _slices, _task, _quality, _efficiency, _arms, _replay)
    return "\n\n".join(section(draft) for section in sections) + "\n"


def _head(draft: Draft) -> str:
    return (
        _comment(
            f"A first plan, written from {draft.rows:,} rows of "
            f"{draft.entities:,} {'entity' if draft.entities == 1 else 'entities'}, "
            f"{iso(draft.first)} to {iso(draft.last)}. Read every line: what is written here is "
            "decided before a row is replayed. Then: sma-pilot check THIS_FILE, and sma-pilot run "
            "THIS_FILE."
        )
        + f"\nversion = 1\nname = {quoted(draft.name)}\nseed = 0"
    )


def _log(draft: Draft) -> str:
    parts = draft.parts
    lines = [
        "[log]",
        "# Paths or glob patterns; relative ones start at the folder that --data names (by default "
        "the\n# working directory).",
        f"files = {_array(draft.patterns)}",
        "# Without a zone it is taken as UTC.",
        f"time = {quoted(parts.time)}",
    ]
    if parts.entity is None:
        lines.append('# entity = "..."    names the machine; this log seems to hold one only')
    else:
        lines.append(f"entity = {quoted(parts.entity)}")
    if parts.label is not None:
        lines.append('# 0 or a word such as "normal": no event; 1 or "failure": an event.')
        lines.append(f"label = {quoted(parts.label)}")
    else:
        lines.append(
            _comment(
                'label = "..."    marks events. No column looks like one; without labels quality '
                "cannot be judged, and no verdict can be a go."
            )
        )
        if parts.maybe_labels:
            names = ", ".join(quoted(name) for name in parts.maybe_labels[:8])
            lines.append(
                _comment(
                    f"These hold 0 and 1 only: {names}. If one is the label, name it above and "
                    "take it out of numeric."
                )
            )
    lines.append(f"numeric = {_array(parts.numeric)}")
    if parts.categorical:
        lines.append(f"categorical = {_array(parts.categorical)}")
    lines += [_comment(f"Left out: {quoted(name)} {why}.") for name, why in parts.left_out.items()]
    lines += [
        "# The usual time between two rows of one entity, as found.",
        f"period = {quoted(format_duration(draft.period))}",
        "# A longer silence starts a new sequence.",
        f"max_gap = {quoted(format_duration(draft.max_gap))}",
    ]
    return "\n".join(lines)


def _slices(draft: Draft) -> str:
    if draft.borders == USUAL:
        why = "60 % of the log's time to train on, 20 % to set thresholds on, 20 % to be judged on."
    else:
        why = "Earlier borders than the usual 0.6 and 0.8, so that more events are judged."
    if draft.parts.label is not None:
        why += f" The judged slice holds {draft.judged_events:,} of {draft.events:,} events."
    if draft.has_empty_slice:
        why += (
            " A slice is EMPTY here: a long silence, or a wrong clock, takes most of the log's "
            "time. Set the borders yourself."
        )
    lines = [
        _comment(why + " Timestamps, such as 2024-01-31T00:00:00Z, do as well."),
        "[slices]",
        f"validation_from = {draft.borders[0]}",
        f"judged_from = {draft.borders[1]}",
    ]
    return "\n".join(lines)


def _task(draft: Draft) -> str:
    return "\n".join(
        [
            _comment(
                "forecast_anomaly: a row is the more anomalous the worse it was forecast; labels "
                "only judge. The other task learns from labels of the train slice: kind = "
                '"alarm" with horizon = "1h" announces events up to an hour ahead, and takes a '
                'baseline of kind "logistic".'
            ),
            "[task]",
            'kind = "forecast_anomaly"',
            "smoothing = 3",
        ]
    )


def _quality(draft: Draft) -> str:
    rows_a_day = timedelta(days=1) / draft.period
    allowed = float(f"{min(1.0, rows_a_day / 100):.1g}")
    return "\n".join(
        [
            _comment(
                "The largest loss of event recall that you accept: 0.10 is one event in ten. "
                "`sma-pilot check` tells whether so many events can prove it."
            ),
            "[quality]",
            'headline = "event_recall"',
            "loss_limit = 0.10",
            "# A day and entity, allowed outside of events; thresholds are set by it.",
            f"false_alarms_per_day = {allowed}",
            "# Rows over the threshold that are closer than this are one alarm.",
            f"alarm_merge = {quoted(format_duration(_MERGED_PERIODS * draft.period))}",
            "minimum_events = 10",
        ]
    )


def _efficiency(draft: Draft) -> str:
    return "\n".join(
        [
            "# Candidate over incumbent: 1.0 asks for no gain, 0.8 for a fifth less.",
            "[efficiency]",
            "latency_percentile = 95.0",
            "latency_ratio_limit = 1.0",
            "memory_ratio_limit = 1.0",
        ]
    )


def _arms(draft: Draft) -> str:
    channels = len(draft.parts.numeric) + len(draft.parts.categorical)
    width = 32 if channels <= 8 else 64 if channels <= 64 else 128
    steps = 1000 if draft.rows < 10**6 else 3000
    training = f"max_steps = {steps}\nbatch_size = 16\nwindow = 256\nlearning_rate = "
    return f"""\
# What runs today. If that is a model of yours, give its checkpoint: kind = "checkpoint".
[arms.incumbent]
kind = "transformer"
[arms.incumbent.model]
width = {width}
layers = 2
heads = 4
hidden_width = {4 * width}
window = 128
[arms.incumbent.training]
{training}1e-3

# What may replace it. target_rate: the share of rows on which each sub-module is to run.
[arms.candidate]
kind = "sma"
[arms.candidate.model]
width = {width}
layers = 2
states = 8
pool = [
    {{ kind = "gated_attention", query_width = 16, value_width = {width}, window = 64 }},
    {{ kind = "swiglu", hidden_width = {width} }},
]
[arms.candidate.training]
{training}2e-3
target_rate = 0.15

# The simplest thing that could work.
[arms.baseline]
kind = "pca"
components = {max(1, min(8, len(draft.parts.numeric) - 1))}"""


def _replay(draft: Draft) -> str:
    events = max(1, min(2000, draft.judged_rows // 4))
    return "\n".join(
        [
            "# Judged rows sent one at a time, for latencies.",
            "[replay]",
            f"single_stream_events = {events}",
            f"warmup_events = {min(200, events)}",
            "passes = 3",
        ]
    )


def _comment(text: str) -> str:
    # A name that holds a line break is quoted by now, so a comment cannot end early.
    return "\n".join(f"# {line}" for line in textwrap.wrap(text, _WIDTH - 2))


def _array(texts: Iterable[str]) -> str:
    items = [quoted(text) for text in texts]
    one_line = f"[{', '.join(items)}]"
    if len(one_line) <= _WIDTH - 15:
        return one_line
    lines, line = [], ""
    for item in items:
        if line and len(line) + len(item) + 6 > _WIDTH:
            lines.append(line)
            line = ""
        line += f"{item}, "
    lines.append(line)
    return "[\n" + "\n".join(f"    {line.rstrip()}" for line in lines) + "\n]"
