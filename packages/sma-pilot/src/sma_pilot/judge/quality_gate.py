"""Quality in words and KPIs: the gate on the headline's loss, and what a reader should know."""

from sma_pilot.judge.alarms import LARGEST_ALARM_SHARE
from sma_pilot.judge.class_kpis import remark_unseen, unit_counts, worst_class
from sma_pilot.judge.discordance import mcnemar_p
from sma_pilot.judge.events import DAY_NS, nanoseconds
from sma_pilot.judge.findings import Findings, bound_text, confidence_text, status_of
from sma_pilot.judge.measurements import CANDIDATE, INCUMBENT, JUDGED, AlignedSlice
from sma_pilot.judge.metrics import EVENT_RECALL, MAE, METRICS, RMSE, bounded_metrics, metrics_of
from sma_pilot.judge.power import more_data
from sma_pilot.judge.quality import Quality
from sma_pilot.judge.result import Kpi, MoreData, Status
from sma_pilot.judge.scene import FALSE_ALARMS, ArmQuality
from sma_pilot.judge.statistics import Estimate, count_bounds
from sma_pilot.plan import Plan

MINIMUM_BLOCKS = 10
"""With fewer independent stretches of time no bound of a bootstrap can be trusted."""


def judge_quality(quality: Quality, plan: Plan, findings: Findings) -> MoreData | None:
    """Add the gates `quality/loss_<headline>` and `quality/unscored_by_candidate`, and the KPIs.

    Returns
    -------
    MoreData or None
        What would settle the loss, when it is open.
    """
    headline = plan.quality.headline
    estimate = quality.candidate.losses.get(headline)
    status, text = _headline(quality, estimate, plan)
    findings.gate(_loss(f"quality/loss_{headline}", estimate, plan, status), text)
    missing = quality.only_incumbent_scored
    findings.gate(
        Kpi(
            name="quality/unscored_by_candidate",
            value=missing,
            unit="rows",
            threshold=0,
            direction="lower",
            status="inconclusive" if missing else "pass",
            note="Judged rows with a score of the incumbent and none of the candidate.",
        ),
        f"The candidate gave no score on {missing} judged rows that the incumbent scored; what it "
        "would have said there is unknown."
        if missing
        else "The candidate scored every judged row that the incumbent scored.",
    )
    if plan.is_recorded(INCUMBENT):
        _unrecorded(quality.only_candidate_scored, findings)
    for metric in bounded_metrics(plan):
        if metric != headline:
            other = quality.candidate.losses.get(metric)
            findings.inform(_loss(f"quality/loss_{metric}", other, plan, "info"))
    for arm, measured in quality.arms.items():
        _arm_kpis(arm, measured, quality.classes, plan, findings)
    _counts(quality, plan, findings)
    if plan.task.by_class:
        remark_unseen(quality, plan, findings)
    else:
        _false_alarms(quality, plan, findings)
    if status != "inconclusive":
        return None
    return _more_data(quality, estimate, plan)


def _unrecorded(missing: int, findings: Findings) -> None:
    """Add a gate on gaps in a recording: what is not there must not pass for a missed event."""
    findings.gate(
        Kpi(
            name="quality/unscored_by_incumbent",
            value=missing,
            unit="rows",
            threshold=0,
            direction="lower",
            status="inconclusive" if missing else "pass",
            note="Judged rows with a score of the candidate and none recorded of the incumbent.",
        ),
        f"The log has no score of the incumbent on {missing} judged rows that the candidate "
        "scored; what it said there is unknown."
        if missing
        else "The log has a score of the incumbent on every judged row that the candidate scored.",
    )


def proven(quality: Quality, plan: Plan) -> bool:
    """Say whether there are events and time enough for a bound to mean anything."""
    return quality.events >= plan.quality.minimum_events and quality.blocks >= MINIMUM_BLOCKS


def score_noise(judged: AlignedSlice, again: str) -> int | None:
    """Count judged rows on which the incumbent, run twice, gave two different scores."""
    if again not in judged.scores:
        return None
    one, other = judged.scores[INCUMBENT], judged.scores[again]
    same = (one == other) | ((one != one) & (other != other))
    return int((~same).sum())


def _headline(quality: Quality, estimate: Estimate | None, plan: Plan) -> tuple[Status, str]:
    name, limit = METRICS[plan.quality.headline].words, plan.quality.loss_limit
    units = plan.task.units
    if quality.events == 0 and plan.task.by_class:
        return "inconclusive", (
            f"The {JUDGED} rows hold no {units.removesuffix('s')} of a class that training has, so "
            f"a loss of {name} can be neither shown nor ruled out."
        )
    if quality.events == 0:
        left = quality.events_left_out
        return "inconclusive", (
            f"The {JUDGED} rows hold no labelled event that could be caught"
            + (f" ({left} events without a scored row in reach)" if left else "")
            + f", so a loss of {name} can be neither shown nor ruled out."
        )
    if estimate is None:
        arms = [arm for arm in (INCUMBENT, CANDIDATE) if quality.arms[arm].threshold is None]
        why = (
            f"no normal validation row has a score of: {', '.join(arms)}; without a threshold "
            "there are no alarms"
            if arms and plan.quality.headline == EVENT_RECALL
            else f"none of the {units} has a score of both arms"
            if plan.task.by_class
            else "no row of an event has a score of both arms"
        )
        return "inconclusive", f"The loss of {name} could not be measured: {why}."
    figures = [quality.arms[arm].values[plan.quality.headline] for arm in (INCUMBENT, CANDIDATE)]
    seen = (
        f"incumbent {figures[0]:.3f}, candidate {figures[1]:.3f} on {quality.events} {units}, "
        f"a {'gain' if estimate.value < 0 else 'loss'} of {abs(estimate.value):.3f}"
    )
    if quality.events < plan.quality.minimum_events:
        return "inconclusive", (
            f"Too few {units} for a verdict on {name}: {quality.events} of the "
            f"{plan.quality.minimum_events} that the plan asks for ({seen})."
        )
    if quality.blocks < MINIMUM_BLOCKS:
        return "inconclusive", (
            f"Too little time for a verdict on {name}: rows hang together over "
            f"{_hours(quality.block, plan)}, so the judged slice holds {quality.blocks} "
            f"independent stretches, and {MINIMUM_BLOCKS} are needed ({seen})."
        )
    status = status_of(estimate.low, estimate.high, limit)
    bound = bound_text((estimate.low, estimate.high), limit, plan.quality.alpha)
    return status, f"{name[0].upper()}{name[1:]}: {seen}; the true loss is {bound}."


def _loss(name: str, estimate: Estimate | None, plan: Plan, status: Status) -> Kpi:
    return Kpi(
        name=name,
        value=None if estimate is None else estimate.value,
        unit="",
        interval=None if estimate is None else (estimate.low, estimate.high),
        confidence=None if estimate is None else 1 - plan.quality.alpha,
        threshold=None if status == "info" else plan.quality.loss_limit,
        direction="lower",
        status=status,
        note="" if estimate is None else estimate.note,
    )


def _arm_kpis(
    arm: str, measured: ArmQuality, classes: tuple[str, ...], plan: Plan, findings: Findings
) -> None:
    confidence = 1 - plan.quality.alpha

    def inform(name: str, value: float | None, unit: str, direction=None, key="", note="") -> None:
        interval = measured.intervals.get(key)
        findings.inform(
            Kpi(
                name=f"quality/{arm}_{name}",
                arm=arm,
                value=value,
                unit=unit,
                interval=interval,
                confidence=None if interval is None else confidence,
                direction=direction,
                note=note,
            )
        )

    for metric in metrics_of(plan):
        better = "higher" if METRICS[metric].higher_is_better else "lower"
        inform(metric, measured.values.get(metric), "", better, metric)
    if plan.task.kind == "remaining_life" and plan.task.horizon is not None:
        for metric in (MAE, RMSE):
            share = measured.values.get(metric)
            seconds = None if share is None else share * plan.task.horizon.total_seconds()
            inform(f"{metric}_s", seconds, "s", "lower")
    if plan.task.kind == "alarm" or plan.task.by_class:
        diagram = measured.reliability
        inform("reliability", None if diagram is None else diagram.reliability, "", "lower")
        error = None if diagram is None else diagram.expected_calibration_error
        inform("calibration_error", error, "", "lower")
    if plan.task.by_class:
        inform("unscored_rows", measured.unscored_rows, plan.task.units, "lower")
        worst, note = worst_class(measured, classes)
        inform("worst_class_recall", worst, "", "higher", note=note)
        return
    threshold = measured.threshold
    inform("threshold", None if threshold is None else threshold.value, "score")
    note = ""
    if threshold is not None:
        note = (
            f"Set on validation rows: {threshold.false_alarms} false alarms in "
            f"{threshold.entity_days:.3g} entity days."
        )
        if threshold.capped:
            note += " The share of time in alarm, not the declared rate, kept it from going lower."
    inform(
        "false_alarms_per_day",
        measured.false_alarms_per_day,
        _rate_unit(plan),
        "lower",
        FALSE_ALARMS,
        note,
    )
    inform("alarm_time_share", measured.alarm_share, "", "lower")
    inform("unscored_rows", measured.unscored_rows, "rows", "lower")
    if plan.task.by_session:
        return
    ahead = plan.task.horizon is not None
    inform(
        "median_lead_time_s" if ahead else "median_delay_s",
        measured.median_delay_s,
        "s",
        "higher" if ahead else "lower",
        note="Over the events that the arm caught.",
    )
    if not ahead:
        inform("p90_delay_s", measured.p90_delay_s, "s", "lower")


def _counts(quality: Quality, plan: Plan, findings: Findings) -> None:
    counts = (
        unit_counts(quality, plan)
        if plan.task.by_class
        else {
            "events": (quality.events, "Judged events that could be caught."),
            "events_left_out": (quality.events_left_out, "No row in reach with a score."),
            "incidents": (quality.incidents, "Events that start together count as one."),
            "right_to_wrong": (quality.candidate.lost_events, "Caught by the incumbent only."),
            "wrong_to_right": (quality.candidate.won_events, "Caught by the candidate only."),
            "blocks": (quality.blocks, "Stretches of time that are taken as independent."),
        }
    )
    for name, (value, note) in counts.items():
        unit = name if name in ("blocks", "incidents") else plan.task.units
        if name == "runs_of_rarest_class":
            unit = "incidents"
        findings.inform(Kpi(name=f"quality/{name}", value=value, unit=unit, note=note))
    _discordance(quality, plan, findings)
    findings.inform(
        Kpi(
            name="quality/block_length_s",
            value=quality.block * nanoseconds(plan.step) / 1e9,
            unit="s",
        )
    )
    headline = plan.quality.headline
    for name, comparison in (
        (f"baseline_loss_{headline}", quality.baseline),
        (f"baseline_for_incumbent_loss_{headline}", quality.baseline_for_incumbent),
    ):
        if comparison is not None:
            loss = comparison.losses.get(headline)
            findings.inform(_loss(f"quality/{name}", loss, plan, "info"))


def _discordance(quality: Quality, plan: Plan, findings: Findings) -> None:
    """Inform of events on which the arms differ, and whether it goes both ways alike."""
    units, right = plan.task.units, "told rightly" if plan.task.by_class else "caught"
    lost, won = quality.candidate.lost_events, quality.candidate.won_events
    share = p_value = None
    if lost is not None and won is not None and quality.events:
        p_value = mcnemar_p(lost, won)
        share = (lost + won) / quality.events
    findings.inform(
        Kpi(
            name="quality/discordance",
            value=share,
            unit="",
            direction="lower",
            note=f"Share of {units} that one of incumbent and candidate {right} and the other "
            "did not.",
        )
    )
    findings.inform(
        Kpi(
            name="quality/mcnemar_p",
            value=p_value,
            unit="",
            note=f"Exact, two-sided, {units} taken as independent: small when the differing ones "
            "do not go both ways alike. A large one is no proof that nothing is lost.",
        )
    )


def _false_alarms(quality: Quality, plan: Plan, findings: Findings) -> None:
    """Inform of realised false alarms. No gate: thresholds were set alike, on earlier rows."""
    name, interval = "quality/false_alarm_difference", quality.false_alarm_difference_interval
    findings.inform(
        Kpi(
            name=name,
            value=quality.false_alarm_difference,
            unit=_rate_unit(plan),
            interval=interval,
            confidence=None if interval is None else 1 - plan.quality.alpha,
            direction="lower",
            note="Candidate minus incumbent on judged rows, each at its own threshold.",
        )
    )
    if interval is not None and interval[0] > 0:
        rates = [quality.arms[arm].false_alarms_per_day for arm in (INCUMBENT, CANDIDATE)]
        findings.remark(
            name,
            f"The candidate raises more false alarms than the incumbent: {rates[1]:.3g} against "
            f"{rates[0]:.3g} {_rate_unit(plan)}, at least {interval[0]:.3g} more with "
            f"{confidence_text(plan.quality.alpha)} confidence. Part of its recall may be bought "
            "with them.",
        )
    for arm in (INCUMBENT, CANDIDATE):
        measured = quality.arms[arm]
        if measured.alarm_share is not None and measured.alarm_share > LARGEST_ALARM_SHARE:
            findings.remark(
                f"quality/{arm}_alarm_time_share",
                f"The {arm} stands in alarm for {100 * measured.alarm_share:.0f} % of the normal "
                "judged time: it catches events in part by chance, and alarms that never end "
                "are counted as few.",
            )
        realised = measured.intervals.get(FALSE_ALARMS)
        if realised is None or measured.threshold is None:
            continue
        # The threshold was set on a sample too: drift is what both samples' noise cannot explain.
        _, expected = count_bounds(measured.threshold.false_alarms, plan.quality.alpha)
        expected /= measured.threshold.entity_days
        declared = plan.quality.false_alarms_per_day or 0.0
        if realised[0] > max(expected, declared):
            findings.remark(
                f"quality/{arm}_false_alarms_per_day",
                f"The {arm} raises {measured.false_alarms_per_day:.3g} false alarms "
                f"{_rate_unit(plan)} on judged rows; its threshold was set for "
                f"{declared:g} on earlier ones. The log has drifted, or "
                "holds events without a label.",
            )


def _more_data(quality: Quality, estimate: Estimate | None, plan: Plan) -> MoreData:
    if estimate is None or quality.events == 0:
        first = plan.task.units.removesuffix("s")
        return MoreData(
            text=f"How much more data is needed cannot be told without a first {first}."
        )
    discordance = None
    if plan.quality.headline == EVENT_RECALL:
        differing = (quality.candidate.lost_events or 0) + (quality.candidate.won_events or 0)
        discordance = differing / quality.events
    stretch = quality.block * nanoseconds(plan.step) / DAY_NS
    return more_data(
        estimate,
        limit=plan.quality.loss_limit,
        events=quality.events,
        observed_days=quality.observed_days,
        minimum_events=plan.quality.minimum_events,
        minimum_days=MINIMUM_BLOCKS * stretch,
        discordance=discordance,
        alpha=plan.quality.alpha,
        units=plan.task.units,
    )


def _hours(bins: int, plan: Plan) -> str:
    return f"{bins * nanoseconds(plan.step) / 3.6e12:.3g} h"


def _rate_unit(plan: Plan) -> str:
    """Return what false alarms are counted by; a session is no machine that lasts for days."""
    return "per day" if plan.task.by_session else "per day and entity"
