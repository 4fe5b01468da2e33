"""Words and figures for people: the labels of KPIs, arms and statuses, and values with units."""

import math
import re

from sma_pilot.judge.measurements import ARMS
from sma_pilot.judge.result import Kpi

VERDICTS = {
    "go": ("✓", "Go", "The evidence meets every limit of the plan."),
    "no-go": ("✕", "No-go", "The evidence shows that a limit of the plan is broken."),
    "inconclusive": ("?", "Inconclusive", "The evidence does not settle every limit of the plan."),
}
STATUSES = {
    "fail": ("✕", "fails"),
    "inconclusive": ("?", "open"),
    "pass": ("✓", "passes"),
    "info": ("·", "for information"),
    "not_measured": ("\N{EN DASH}", "not measured"),
}
GROUPS = {
    "quality": "Quality",
    "latency": "Latency",
    "memory": "Memory",
    "throughput": "Throughput",
    "cost": "Cost",
    "routing": "Routing",
    "guard": "Guard",
    "energy": "Energy",
    "noise": "Noise of the measurement",
    "safety": "Safety",
    "shadow": "Shadow",
}
_ARM_LABELS = {
    "incumbent": "incumbent",
    "incumbent_again": "incumbent, again",
    "candidate": "candidate",
    "candidate_again": "candidate, again",
    "baseline": "simple baseline",
}
_LABELS = {
    "quality/unscored_by_candidate": "Rows left unscored",
    "quality/unscored_by_incumbent": "Rows without a recorded score",
    "quality/events": "Events judged",
    "quality/events_left_out": "Events nobody could have caught",
    "quality/right_to_wrong": "Events that only the incumbent caught",
    "quality/wrong_to_right": "Events that only the candidate caught",
    "quality/units": "Units judged",
    "quality/units_left_out": "Units that nobody could have told",
    "quality/units_unlabelled": "Units without a class",
    "quality/units_of_unseen_class": "Units of a class that training has not",
    "quality/discordance": "Share of what is judged on which the arms differ",
    "quality/mcnemar_p": "Exact McNemar p-value of what they differ on",
    "quality/blocks": "Independent stretches of time",
    "quality/block_length_s": "Length of such a stretch",
    "memory/fleet_ratio": "Memory ratio, all entities",
    "cost/offline_saving_per_year": "Saving a year, offline",
    "cost/single_stream_saving_per_year": "Saving a year, one event at a time",
    "safety/loss_evidence": "Watch over losses: evidence",
    "safety/unscored_share": "Share of rows left unscored",
    "safety/fallback_share": "Share of rows served by the fallback",
    "safety/late_share": "Share of answers that were late",
    "cost/setup": "Set-up, once",
    "cost/running_per_year": "Running cost a year, beside machines",
    "cost/fallbacks_per_million": "Fallbacks of a million events",
    "cost/fallback_per_year": "Fallbacks, a year",
    "noise/score_rows_different": "Rows that the incumbent scored differently when run again",
}
# What a classification judges one by one.
_UNITS = ("windows", "sessions")
_UNIT_LABELS = {
    "quality/right_to_wrong": "That only the incumbent told rightly",
    "quality/wrong_to_right": "That only the candidate told rightly",
}
_TOPICS = {
    "affiliation_f1": "affiliation F1",
    "alarm_time_share": "share of normal time in alarm",
    "brier": "Brier score",
    "calibration_error": "expected calibration error",
    "false_alarms_per_day": "false alarms",
    "macro_f1": "macro F1",
    "mae": "mean absolute error",
    "mae_s": "mean absolute error in time",
    "exception_fallbacks": "fallbacks for an exception",
    "non_finite_fallbacks": "fallbacks for a score that is no number",
    "latency_fallbacks": "fallbacks for a late score",
    "low_confidence_fallbacks": "fallbacks for low confidence",
    "never_active_fallbacks": "fallbacks for a router that never runs",
    "always_active_fallbacks": "fallbacks for a router that always runs",
    "drift_fallbacks": "fallbacks for drift of inputs",
    "fallback_row_share": "rows taken from the candidate",
    "validation_fallback_row_share": "the same, of validation rows",
    "fallback_cost_per_year": "cost of fallbacks a year",
    "looks": "looks of a person",
    "own_time_ms": "time of the guard itself",
    "harness_share": "time of the harness itself, over the service time",
    "joules_per_million_events": "energy of a million events",
    "multi_stream_rows_per_second": "rows a second, many entities at once",
    "sustainable_events_per_second": "highest rate that keeps to the bound",
    "mean_ms": "mean service time",
    "median_delay_s": "median delay of the first alarm",
    "median_lead_time_s": "median warning before the event",
    "offline_per_million_events": "a million events, offline",
    "offline_per_year": "a year, offline",
    "p90_delay_s": "delay that nine of ten caught events stay within",
    "peak_cuda_bytes": "peak memory of the GPU",
    "peak_rss_bytes": "peak memory of the process",
    "response_p95_ms": "p95 from due to answered",
    "rmse": "root mean squared error",
    "rmse_s": "root mean squared error in time",
    "rows_per_second": "offline throughput",
    "score_difference": "stream against offline scores",
    "single_stream_per_million_events": "a million events, one at a time",
    "single_stream_per_year": "a year, one event at a time",
    "state_bytes_per_entity": "state of one entity",
    "threshold": "alarm threshold",
    "unscored_rows": "rows without a score",
    "vus_pr": "VUS-PR",
    "weight_bytes": "weights",
    "worst_class_recall": "share told rightly of the class told worst",
}
_PERCENTILE = re.compile(r"(multi_stream_|server_response_|server_service_)?p(\d+(?:\.\d+)?)_ms")
_TIMED = {
    "": "service time",
    "multi_stream_": "service time of a batch of entities",
    "server_response_": "response time under load",
    "server_service_": "service time under load",
}
_COUNTED = (
    "rows",
    "events",
    *_UNITS,
    "incidents",
    "blocks",
    "queries",
    "entities",
    "fallbacks",
    "looks",
    "sub-modules",
)
_TIMES = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"))


def arm_label(arm: str) -> str:
    """Return an arm's name as people say it."""
    return _ARM_LABELS.get(arm, arm)


def kpi_group(kpi: Kpi) -> str:
    """Return the heading that a KPI stands under."""
    group = kpi.name.split("/")[0]
    return GROUPS.get(group, group.capitalize())


def kpi_topic(kpi: Kpi) -> str:
    """Return the KPI's name without its group and arm: one row for all arms."""
    topic = kpi.name.split("/", 1)[-1]
    # Longest first: "incumbent" must not be cut from "incumbent_again_p95_ms".
    for arm in sorted(ARMS, key=len, reverse=True):
        if kpi.arm == arm:
            return topic.removeprefix(f"{arm}_")
    return topic


def kpi_label(kpi: Kpi) -> str:
    """Return a KPI's name as words, such as ``Loss of event recall``."""
    if kpi.unit in _UNITS and kpi.name in _UNIT_LABELS:
        return _UNIT_LABELS[kpi.name]
    if kpi.name in _LABELS:
        return _LABELS[kpi.name]
    topic = kpi_topic(kpi)
    if percentile := _PERCENTILE.fullmatch(topic):
        return f"{percentile[2]}th percentile of {_TIMED[percentile[1] or '']}"
    topic = _TOPICS.get(topic, topic)
    for head, words in (
        ("baseline_for_incumbent_loss_", "loss of the simple baseline against the incumbent: "),
        ("baseline_loss_", "loss of the simple baseline against the candidate: "),
        ("latency_ratio_", "second run of an arm against its first, "),
        ("loss_", "loss of "),
        ("ratio", f"{kpi_group(kpi)} ratio"),
        ("rate/", ""),
    ):
        if topic.startswith(head):
            rest = topic.removeprefix(head)
            topic = words + _TOPICS.get(rest, rest)
            break
    words = topic.replace("/", ": ").replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def in_sentence(label: str) -> str:
    """Begin a label in lower case, unless with an acronym such as VUS-PR."""
    return label if label[1:2].isupper() else f"{label[:1].lower()}{label[1:]}"


def unit_name(unit: str) -> str:
    """Return the unit that stands beside a bare number; empty where the number carries its own."""
    return "" if unit in ("", "ratio", "bytes", "s") else unit


def format_number(value: float | None, unit: str) -> str:
    """Write a value in as many digits as a reader can use, without the unit's name."""
    if value is None or not math.isfinite(value):
        return "not measured"
    if unit == "ratio":
        return f"{_digits(value)}\N{MULTIPLICATION SIGN}"
    if unit == "bytes":
        return _bytes(value)
    if unit == "s":
        return _seconds(value)
    if unit in _COUNTED:
        return minus(f"{value:,.0f}")
    if unit == "" and 0.001 <= abs(value) < 100:
        return minus(f"{value:.{3 if abs(value) >= 0.01 else 4}f}")
    return _digits(value)


def format_value(value: float | None, unit: str) -> str:
    """Write a value with its unit."""
    known = value is not None and math.isfinite(value)
    name = unit_name(unit) if known else ""
    return f"{format_number(value, unit)} {name}".rstrip()


def format_interval(kpi: Kpi) -> str:
    """Write a KPI's interval without its unit; nothing when it has none."""
    if kpi.interval is None:
        return ""
    low, high = (format_number(end, kpi.unit) for end in kpi.interval)
    return f"{low} to {high}"


def format_limit(kpi: Kpi) -> str:
    """Write a KPI's limit with the side that is allowed; nothing when it has none."""
    if kpi.threshold is None:
        return ""
    sign = {"lower": "\N{LESS-THAN OR EQUAL TO} ", "higher": "\N{GREATER-THAN OR EQUAL TO} "}
    return sign.get(kpi.direction or "", "") + format_number(kpi.threshold, kpi.unit)


def _digits(value: float) -> str:
    """Three significant digits, thousands set apart; powers of ten for the very small alone."""
    if value and abs(value) < 1e-4:
        return minus(f"{value:.1e}")
    if not value or abs(value) >= 100:
        return minus(f"{value:,.0f}")
    return minus(f"{value:.{2 - math.floor(math.log10(abs(value)))}f}")


def _bytes(value: float) -> str:
    for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= size:
            return f"{_digits(value / size)} {name}"
    return f"{minus(f'{value:.0f}')} B"


def _seconds(value: float) -> str:
    for size, name in _TIMES:
        if abs(value) >= 2 * size:
            return minus(f"{value / size:.3g} {name}")
    return minus(f"{value:.3g} s")


def minus(number: str) -> str:
    """Write a negative number with a true minus sign."""
    return number.replace("-", "\N{MINUS SIGN}")
