"""Latency in words and KPIs: the gate on the ratio, and the machine's own noise before it."""

from collections.abc import Mapping

from sma_pilot.judge.findings import Findings, bound_text, status_of
from sma_pilot.judge.latency import MEDIAN, ArmLatency, Figure, minimum_queries
from sma_pilot.judge.measurements import BASELINE, CANDIDATE, FIRST_OF, INCUMBENT
from sma_pilot.judge.result import Kpi, Status
from sma_pilot.plan import Plan


def judge_latency(
    measured: Mapping[str, ArmLatency], plan: Plan, findings: Findings
) -> dict[str, float | None]:
    """Add the gate `latency/ratio_p<percentile>`, the ratio of medians and each arm's figures.

    Returns
    -------
    dict
        An arm against itself: what belongs to the result's `noise`.
    """
    percentile = plan.efficiency.latency_percentile
    label = f"p{percentile:g}"
    ratio = _ratio(measured, CANDIDATE, percentile)
    status, text = _headline(measured, ratio, plan)
    findings.gate(
        _kpi(
            f"latency/ratio_{label}",
            ratio,
            "ratio",
            plan,
            threshold=plan.efficiency.latency_ratio_limit,
            status=status,
        ),
        text,
    )
    recorded = [arm for arm in (INCUMBENT, CANDIDATE) if arm in measured and plan.is_recorded(arm)]
    if recorded:
        findings.remark(
            f"latency/ratio_{label}",
            f"The service times of the {' and the '.join(recorded)} are those that the log "
            "recorded, on whatever machine that was, and were not measured here: a ratio says "
            "something about the models only if both ran on the like.",
        )
    others = (MEDIAN,) if percentile != MEDIAN else ()
    for other in others:
        figure = _ratio(measured, CANDIDATE, other)
        findings.inform(_kpi(f"latency/ratio_p{other:g}", figure, "ratio", plan))
    for arm in (INCUMBENT, CANDIDATE, BASELINE):
        latency = measured.get(arm)
        if latency is None:
            continue
        note = f"{latency.queries} queries in {latency.passes} passes."
        for each in (*others, percentile):
            findings.inform(
                _kpi(
                    f"latency/{arm}_p{each:g}_ms",
                    latency.percentiles.get(each),
                    "ms",
                    plan,
                    arm=arm,
                    note=note,
                )
            )
        findings.inform(
            Kpi(
                name=f"latency/{arm}_mean_ms",
                arm=arm,
                value=latency.mean_ms,
                unit="ms",
                direction="lower",
                note=note,
            )
        )
    return _noise(measured, others, plan, findings)


def is_quiet(measured: Mapping[str, ArmLatency], plan: Plan) -> bool:
    """Tell whether an arm against itself stayed within the plan's noise band."""
    again, _ = _again(measured, plan.efficiency.latency_percentile)
    return again is not None and _in_band(again, plan)


def _in_band(again: Figure, plan: Plan) -> bool:
    band = plan.efficiency.noise_band
    return 1 - band <= again.interval[0] and again.interval[1] <= 1 + band


def _ratio(measured: Mapping[str, ArmLatency], arm: str, percentile: float) -> Figure | None:
    return measured[arm].ratios.get(percentile) if arm in measured else None


def _again(measured: Mapping[str, ArmLatency], percentile: float) -> tuple[Figure | None, str]:
    """Return the ratio of an arm's second run to its first, and which arm that is."""
    for second, first in FIRST_OF.items():
        if second in measured:
            return _ratio(measured, second, percentile), first
    return None, INCUMBENT


def _headline(
    measured: Mapping[str, ArmLatency], ratio: Figure | None, plan: Plan
) -> tuple[Status, str]:
    percentile, limit = plan.efficiency.latency_percentile, plan.efficiency.latency_ratio_limit
    label = f"p{percentile:g}"
    absent = [arm for arm in (INCUMBENT, CANDIDATE) if arm not in measured]
    silent = [arm for arm in absent if plan.is_recorded(arm)]
    if silent:
        return "inconclusive", (
            f"Latency was not measured: the log has no service times of: {', '.join(silent)}."
        )
    if absent:
        return "inconclusive", (
            f"Latency was not measured: no query was served by all arms "
            f"(nothing for: {', '.join(absent)})."
        )
    if ratio is None:
        return "inconclusive", (
            f"Latency {label} is not estimable: {measured[CANDIDATE].queries} queries, "
            f"and LoadGen's early-stopping rule asks for {minimum_queries(percentile)}."
        )
    again, twice = _again(measured, percentile)
    if again is None:
        return "inconclusive", (
            f"Latency {label}: candidate over incumbent is {ratio.value:.3f}, but the {twice} "
            "was not timed a second time, so the machine's own noise is unknown."
        )
    if not _in_band(again, plan):
        return "inconclusive", (
            f"The machine was too noisy for a verdict on latency {label}: the {twice} against "
            f"itself gives a ratio of {again.value:.3f} ({again.interval[0]:.3f} to "
            f"{again.interval[1]:.3f}), outside 1 +- {plan.efficiency.noise_band:g}. Time both "
            "again on a quiet machine."
        )
    status = status_of(*ratio.interval, limit)
    bound = bound_text(ratio.interval, limit, plan.quality.alpha)
    return status, (
        f"Latency {label}: the candidate takes {ratio.value:.3f} of the incumbent's time; "
        f"the true ratio is {bound}."
    )


def _noise(
    measured: Mapping[str, ArmLatency],
    others: tuple[float, ...],
    plan: Plan,
    findings: Findings,
) -> dict[str, float | None]:
    noise: dict[str, float | None] = {"latency_band": plan.efficiency.noise_band}
    for percentile in (*others, plan.efficiency.latency_percentile):
        figure, twice = _again(measured, percentile)
        name = f"latency_ratio_p{percentile:g}"
        findings.inform(
            _kpi(
                f"noise/{name}",
                figure,
                "ratio",
                plan,
                direction=None,
                note=f"The {twice} against itself; 1 on a machine without noise.",
            )
        )
        noise[name] = None if figure is None else figure.value
        noise[f"{name}_low"] = None if figure is None else figure.interval[0]
        noise[f"{name}_high"] = None if figure is None else figure.interval[1]
    return noise


def _kpi(name: str, figure: Figure | None, unit: str, plan: Plan, **fields) -> Kpi:
    return Kpi(
        **{
            "name": name,
            "value": None if figure is None else figure.value,
            "unit": unit,
            "interval": None if figure is None else figure.interval,
            "confidence": None if figure is None else 1 - plan.quality.alpha,
            "direction": "lower",
            **fields,
        }
    )
