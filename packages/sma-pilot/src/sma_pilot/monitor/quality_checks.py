"""Checks of quality, for which labels are needed: losses, false alarms, calibration."""

from collections.abc import Mapping

from sma_pilot.judge.metrics import METRICS, loss_of
from sma_pilot.judge.result import Kpi
from sma_pilot.monitor.finding import Finding, LookFigures, figures_of, value_of
from sma_pilot.plan import MonitorPlan, Plan


def check_loss(now: LookFigures, then: Mapping[str, Kpi], plan: Plan) -> Finding:
    """Hold what the candidate loses to the incumbent against the plan's limit."""
    name = f"quality/loss_{plan.quality.headline}"
    words, limit = METRICS[plan.quality.headline].words, plan.quality.loss_limit
    kpi = now.kpis.get(name)
    figures = figures_of(name, kpi, then, limit)
    if kpi is None or kpi.value is None:
        return Finding(status="not_measured", text=_why_no_quality(now, words), **figures)
    low, high = kpi.interval or (kpi.value, kpi.value)
    seen = f"The candidate loses {kpi.value:.3f} of {words} against the incumbent"
    if kpi.value < 0:
        seen = f"The candidate is {-kpi.value:.3f} better in {words} than the incumbent"
    if now.too_few:
        return Finding(status="open", text=f"{seen}, too little to tell: {now.too_few}.", **figures)
    if kpi.value <= limit:
        proven = "" if high <= limit else f" (up to {high:.3f} is not ruled out)"
        return Finding(status="ok", text=f"{seen}; the limit is {limit:g}{proven}.", **figures)
    if low > limit:
        text = f"{seen}, and at least {low:.3f}: over the limit of {limit:g}."
        return Finding(status="alarm", advice="fall back", text=text, **figures)
    if low > 0:
        text = f"{seen}: over the limit of {limit:g}, though {low:.3f} is not ruled out."
        return Finding(status="alarm", advice="re-pilot", text=text, **figures)
    text = f"{seen}, over the limit of {limit:g}, but no loss at all is not ruled out."
    return Finding(status="open", text=text, **figures)


def check_own_quality(
    now: LookFigures, then: Mapping[str, Kpi], plan: Plan, limits: MonitorPlan
) -> Finding:
    """Hold the candidate's headline against what it was at the verdict."""
    headline = plan.quality.headline
    words = METRICS[headline].words
    name = f"quality/candidate_{headline}"
    most = plan.quality.loss_limit if limits.quality_drop is None else limits.quality_drop
    kpi, before = now.kpis.get(name), value_of(then, name)
    down = METRICS[headline].higher_is_better
    limit = None if before is None else max(0.0, before - most) if down else before + most
    figures = figures_of(name, kpi, then, limit)
    if kpi is None or kpi.value is None:
        return Finding(status="not_measured", text=_why_no_quality(now, words), **figures)
    seen = f"The candidate's {words} is {kpi.value:.3f}"
    if before is None:
        return Finding(
            status="open", text=f"{seen}; at the verdict it was not measured.", **figures
        )
    seen += f", at the verdict {before:.3f}"
    drop = loss_of(headline, before, kpi.value)
    if now.too_few:
        return Finding(status="open", text=f"{seen}, too little to tell: {now.too_few}.", **figures)
    if drop <= most:
        return Finding(status="ok", text=f"{seen}.", **figures)
    least = min((loss_of(headline, before, end) for end in kpi.interval or ()), default=drop)
    if least <= 0:
        text = f"{seen}: {drop:.3f} worse, but no change at all is not ruled out."
        return Finding(status="open", text=text, **figures)
    text = f"{seen}: {drop:.3f} worse, over the limit of {most:g}.{_incumbent_too(now, then, plan)}"
    return Finding(status="alarm", advice="re-pilot", text=text, **figures)


def _incumbent_too(now: LookFigures, then: Mapping[str, Kpi], plan: Plan) -> str:
    """Say how the incumbent fared meanwhile: a plant that changed is hard on both."""
    headline = plan.quality.headline
    name = f"quality/incumbent_{headline}"
    own, before = value_of(now.kpis, name), value_of(then, name)
    if own is None or before is None:
        return ""
    drop = loss_of(headline, before, own)
    change = f"{drop:.3f} worse" if drop >= 0 else f"{-drop:.3f} better"
    return f" The incumbent is {change} than at the verdict."


def check_false_alarms(
    now: LookFigures, then: Mapping[str, Kpi], plan: Plan, limits: MonitorPlan
) -> Finding:
    """Hold the candidate's false alarms against the declared rate."""
    name = "quality/candidate_false_alarms_per_day"
    declared = plan.quality.false_alarms_per_day
    limit = None if declared is None else limits.false_alarm_ratio * declared
    kpi = now.kpis.get(name)
    figures = figures_of(name, kpi, then, limit)
    if kpi is None or kpi.value is None or declared is None or limit is None:
        return Finding(status="not_measured", text=_why_no_quality(now, "false alarms"), **figures)
    seen = f"The candidate raises {kpi.value:.3g} false alarms a day, {declared:g} were declared"
    if kpi.value <= limit:
        return Finding(status="ok", text=f"{seen}.", **figures)
    low = kpi.value if kpi.interval is None else kpi.interval[0]
    if low <= declared:
        text = f"{seen}, but as many as declared are not ruled out."
        return Finding(status="open", text=text, **figures)
    text = f"{seen}: over the limit of {limit:g}."
    return Finding(status="alarm", advice="re-pilot", text=text, **figures)


def check_calibration(now: LookFigures, then: Mapping[str, Kpi], limits: MonitorPlan) -> Finding:
    """Tell whether probabilities are as honest as at the verdict."""
    name = "quality/candidate_calibration_error"
    kpi, before = now.kpis.get(name), value_of(then, name)
    limit = None if before is None else before + limits.calibration_limit
    figures = figures_of(name, kpi, then, limit)
    if kpi is None or kpi.value is None:
        return Finding(status="not_measured", text=_why_no_quality(now, "calibration"), **figures)
    seen = f"Probabilities are off by {kpi.value:.3f} on average"
    if before is None or limit is None:
        return Finding(
            status="open", text=f"{seen}; at the verdict it was not measured.", **figures
        )
    seen += f", by {before:.3f} at the verdict"
    if now.too_few:
        return Finding(status="open", text=f"{seen}, too little to tell: {now.too_few}.", **figures)
    if kpi.value <= limit:
        return Finding(status="ok", text=f"{seen}.", **figures)
    text = f"{seen}: more than {limits.calibration_limit:g} worse."
    return Finding(status="alarm", advice="re-pilot", text=text, **figures)


def _why_no_quality(now: LookFigures, words: str) -> str:
    if not now.labelled_rows:
        return f"{words[:1].upper()}{words[1:]}: not measured: no labels yet."
    return f"{words[:1].upper()}{words[1:]}: not measured on these labels ({now.events} events)."
