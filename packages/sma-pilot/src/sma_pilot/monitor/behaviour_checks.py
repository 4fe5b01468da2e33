"""Checks that need no labels: rows without a score, inputs, routing, time."""

from collections.abc import Mapping

from sma_pilot.judge.result import Kpi
from sma_pilot.monitor.finding import (
    ACTIVATION,
    COLLAPSED,
    DRIFT,
    UNSCORED,
    Finding,
    LookFigures,
    figures_of,
    value_of,
)
from sma_pilot.plan import MonitorPlan, Plan

_RATE = "routing/rate/"


def check_unscored(now: LookFigures, limits: MonitorPlan) -> Finding:
    """Count rows that the incumbent scored and the candidate did not."""
    kpi = now.kpis.get(UNSCORED)
    figures = figures_of(UNSCORED, kpi, {}, limits.unscored_limit)
    if kpi is None or kpi.value is None:
        return Finding(
            status="not_measured", text="The incumbent scored no row to compare with.", **figures
        )
    text = f"The candidate gave no score on {kpi.value:.2%} of the rows that the incumbent scored"
    if kpi.value <= limits.unscored_limit:
        return Finding(status="ok", text=f"{text}.", **figures)
    if few := _few_rows(now, limits):
        return Finding(status="open", text=f"{text}; {few}.", **figures)
    text = f"{text}, over the limit of {limits.unscored_limit:g}."
    return Finding(status="alarm", advice="fall back", text=text, **figures)


def check_drift(now: LookFigures, limits: MonitorPlan) -> Finding:
    """Tell how far the inputs are from those of the judged rows."""
    drifted = sorted(now.drift.items(), key=lambda item: -item[1])
    rank = min(limits.drift_channels, len(drifted))
    value = drifted[rank - 1][1] if drifted else None
    kpi = Kpi(name=DRIFT, value=value, unit="")
    figures = figures_of(DRIFT, kpi, {}, limits.drift_limit)
    if value is None:
        return Finding(status="not_measured", text="The log has no channel.", **figures)
    most = ", ".join(f"{name!r} {index:.2f}" for name, index in drifted[:3])
    over = sum(index > limits.drift_limit for _, index in drifted)
    text = (
        f"Beyond a stability index of {limits.drift_limit:g} from the judged rows: {over} of "
        f"{len(drifted)} channels (most: {most})"
    )
    if value <= limits.drift_limit:
        return Finding(status="ok", text=f"{text}.", **figures)
    if few := _few_rows(now, limits):
        return Finding(status="open", text=f"{text}; {few}.", **figures)
    return Finding(status="alarm", advice="re-pilot", text=f"{text}.", **figures)


def check_activation(now: LookFigures, then: Mapping[str, Kpi], limits: MonitorPlan) -> Finding:
    """Hold the rate at which sub-modules run against that of the judged rows."""
    name = ACTIVATION
    kpi, before = now.kpis.get(name), value_of(then, name)
    figures = figures_of(name, kpi, then, None)
    if kpi is None or kpi.value is None or before is None:
        return Finding(status="not_measured", text="The candidate does not route.", **figures)
    text = f"Sub-modules run on {kpi.value:.1%} of the steps, on {before:.1%} at the verdict"
    least, most = before / limits.activation_ratio, before * limits.activation_ratio
    if least <= kpi.value <= most:
        return Finding(status="ok", text=f"{text}.", **{**figures, "limit": most})
    figures["limit"] = most if kpi.value > most else least
    if few := _few_rows(now, limits):
        return Finding(status="open", text=f"{text}; {few}.", **figures)
    text = (
        f"{text}: outside of {least:.1%} to {most:.1%}. What was measured of time and cost does "
        "not hold any more."
    )
    return Finding(status="alarm", advice="re-pilot", text=text, **figures)


def check_collapse(now: LookFigures, then: Mapping[str, Kpi], limits: MonitorPlan) -> Finding:
    """Tell whether the router runs nothing, or everything, for long."""
    kpi, before = now.kpis.get(COLLAPSED), value_of(then, COLLAPSED) or 0.0
    limit = before + limits.collapse_share
    figures = figures_of(COLLAPSED, kpi, then, limit)
    if kpi is None or kpi.value is None:
        return Finding(
            status="not_measured",
            text="The candidate does not route."
            if ACTIVATION not in now.kpis
            else f"No entity has {limits.window_rows:,} rows, which a collapse is told from.",
            **figures,
        )
    text = f"On {kpi.value:.1%} of the rows the router runs nothing, or everything, for a window"
    if kpi.value <= limit:
        return Finding(status="ok", text=f"{text}; at the verdict {before:.1%}.", **figures)
    if few := _few_rows(now, limits):
        return Finding(status="open", text=f"{text}; {few}.", **figures)
    text = (
        f"The router has collapsed. {text} of {limits.window_rows:,}; at the verdict {before:.1%}."
    )
    return Finding(status="alarm", advice="fall back", text=text, **figures)


def check_submodules(now: LookFigures, then: Mapping[str, Kpi], limits: MonitorPlan) -> Finding:
    """Tell whether a single sub-module ceased to be routed."""
    name = "routing/collapsed_submodules"
    own, before = _rates(now.kpis), _rates(then)
    both = own.keys() & before.keys()
    gone = {
        "never": [m for m in sorted(both) if own[m] <= limits.never_active < before[m]],
        "always": [m for m in sorted(both) if own[m] >= limits.always_active > before[m]],
    }
    count = len(gone["never"]) + len(gone["always"])
    value = float(count) if both else None
    kpi = Kpi(name=name, value=value, unit="sub-modules")
    figures = figures_of(name, kpi, {}, 0.0)
    if value is None:
        return Finding(status="not_measured", text="The candidate does not route.", **figures)
    if not count:
        return Finding(
            status="ok", text="Every sub-module routes that did at the verdict.", **figures
        )
    told = "; ".join(f"{how} runs {', '.join(which)}" for how, which in gone.items() if which)
    text = f"The router now {told}, and did not at the verdict"
    if few := _few_rows(now, limits):
        return Finding(status="open", text=f"{text}; {few}.", **figures)
    return Finding(status="alarm", advice="re-pilot", text=f"{text}.", **figures)


def check_latency(now: LookFigures, then: Mapping[str, Kpi], plan: Plan) -> Finding:
    """Hold the ratio of service times against the limit, where the plan has it measured."""
    percentile = plan.efficiency.latency_percentile
    name, limit = f"latency/ratio_p{percentile:g}", plan.efficiency.latency_ratio_limit
    kpi = now.kpis.get(name)
    figures = figures_of(name, kpi, then, limit)
    if kpi is None or kpi.value is None:
        return Finding(
            status="not_measured",
            text="Latency was not measured: monitor.latency_events asks for none, or for too few.",
            **figures,
        )
    text = f"The candidate takes {kpi.value:.3g} times the incumbent's p{percentile:g}"
    if kpi.value <= limit:
        return Finding(status="ok", text=f"{text}.", **figures)
    low = kpi.value if kpi.interval is None else kpi.interval[0]
    if low <= limit:
        return Finding(
            status="open", text=f"{text}; the limit of {limit:g} is not ruled out.", **figures
        )
    text = f"{text}, over the limit of {limit:g}."
    return Finding(status="alarm", advice="re-pilot", text=text, **figures)


def _few_rows(now: LookFigures, limits: MonitorPlan) -> str:
    if now.rows >= limits.minimum_rows:
        return ""
    return f"{now.rows:,} rows raise no alarm, {limits.minimum_rows:,} are needed"


def _rates(kpis: Mapping[str, Kpi]) -> dict[str, float]:
    """Return the share of steps that ran each sub-module."""
    return {
        name.removeprefix(_RATE): kpi.value
        for name, kpi in kpis.items()
        if name.startswith(_RATE) and kpi.value is not None
    }
