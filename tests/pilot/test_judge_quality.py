"""Quality by hand on small logs, and what it must not depend on."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from tests.pilot.judge_cases import MINUTE, START, fleet_scores, make_plan, make_slice
from tests.tolerances import TOLERANCES

from sma_pilot.errors import RunError
from sma_pilot.judge.measurements import AlignedSlice, ArmScores, Measurements
from sma_pilot.judge.metrics import AVERAGE_PRECISION, EVENT_RECALL
from sma_pilot.judge.quality import Quality, measure_quality
from sma_pilot.judge.scene import FALSE_ALARMS, set_thresholds
from sma_pilot.plan import Plan

CLOSE = TOLERANCES["float64"].relative
DAY = 1440
ALARM_TASK = {"kind": "alarm", "horizon": "1h"}


def peaks(size: int, **at: float) -> np.ndarray:
    """Zeros, but for ``r17=5.0``: a score of 5 on row 17."""
    score = np.zeros(size, np.float32)
    for row, value in at.items():
        score[int(row[1:])] = value
    return score


def two_arms(incumbent, candidate) -> dict[str, np.ndarray]:
    return {"incumbent": incumbent, "candidate": candidate}


# One day; two alarms a day are allowed, so the third peak is the threshold.
VALIDATION = make_slice(
    np.zeros(DAY),
    two_arms(
        peaks(DAY, r100=9.0, r400=8.0, r800=7.0, r1200=6.0),
        peaks(DAY, r100=90.0, r400=80.0, r800=70.0, r1200=60.0),
    ),
    name="validation",
)


def labelled(*events: tuple[int, int]) -> np.ndarray:
    label = np.zeros(DAY, np.int32)
    for start, stop in events:
        label[start:stop] = 1
    return label


def forecast_case() -> AlignedSlice:
    return make_slice(
        labelled((100, 105), (500, 505), (900, 905)),
        two_arms(
            # 7 is not over the threshold of 7; rows 300 and 305 are one false alarm.
            peaks(DAY, r102=10.0, r500=10.0, r901=7.0, r300=8.0, r305=8.0, r700=8.0),
            peaks(DAY, r104=100.0, r700=71.0),
        ),
    )


def test_a_forecast_by_hand():
    quality = measure_quality(VALIDATION, forecast_case(), make_plan())
    incumbent, candidate = quality.arms["incumbent"], quality.arms["candidate"]
    assert incumbent.threshold is not None
    assert candidate.threshold is not None
    assert (incumbent.threshold.value, candidate.threshold.value) == (7.0, 70.0)
    assert incumbent.values[EVENT_RECALL] == pytest.approx(2 / 3, rel=CLOSE)
    assert candidate.values[EVENT_RECALL] == pytest.approx(1 / 3, rel=CLOSE)
    assert quality.candidate.losses[EVENT_RECALL].value == pytest.approx(1 / 3, rel=CLOSE)
    assert (quality.candidate.lost_events, quality.candidate.won_events) == (1, 0)
    assert (incumbent.median_delay_s, candidate.median_delay_s) == (60.0, 240.0)
    normal_days = (DAY - 15) / DAY
    assert incumbent.false_alarms_per_day == pytest.approx(2 / normal_days, rel=CLOSE)
    assert candidate.false_alarms_per_day == pytest.approx(1 / normal_days, rel=CLOSE)
    assert incumbent.alarm_share == pytest.approx(3 / (DAY - 15), rel=CLOSE)
    assert quality.false_alarm_difference == pytest.approx(-1 / normal_days, rel=CLOSE)
    assert (quality.events, quality.incidents, quality.observed_days) == (3, 3, 1.0)


def test_average_precision_of_a_forecast_is_over_all_rows_of_events():
    case = forecast_case()
    quality = measure_quality(VALIDATION, case, make_plan())
    for arm, measured in quality.arms.items():
        expected = average_precision_score(case.label > 0, case.scores[arm])
        assert measured.values[AVERAGE_PRECISION] == pytest.approx(expected, rel=CLOSE)


def test_an_alarm_by_hand():
    judged = make_slice(
        labelled((500, 520), (1000, 1010)),
        two_arms(
            # Announced 50 minutes ahead; within the event, and an hour and a minute ahead, nothing.
            peaks(DAY, r450=10.0, r505=10.0, r939=10.0),
            # Announced at the first and at the last possible minute.
            peaks(DAY, r440=100.0, r999=100.0),
        ),
    )
    quality = measure_quality(VALIDATION, judged, make_plan(task=ALARM_TASK))
    incumbent, candidate = quality.arms["incumbent"], quality.arms["candidate"]
    assert incumbent.values[EVENT_RECALL] == 0.5
    assert incumbent.median_delay_s == 50 * 60
    assert candidate.values[EVENT_RECALL] == 1.0
    assert candidate.median_delay_s == (60 * 60 + 60) / 2
    normal = DAY - 20 - 10 - 60 - 60 - 60  # events, their windows, and the last hour
    assert incumbent.false_alarms_per_day == pytest.approx(DAY / normal, rel=CLOSE)
    assert candidate.false_alarms_per_day == 0
    rows = np.r_[0:500, 520:1000, 1010:1380]
    positive = np.isin(rows, np.r_[440:500, 940:1000])
    expected = average_precision_score(positive, judged.scores["incumbent"][rows])
    assert incumbent.values[AVERAGE_PRECISION] == pytest.approx(expected, rel=CLOSE)


def test_false_alarms_are_counted_a_day_and_entity():
    entity = np.repeat([0, 1], DAY)
    time = START + MINUTE * np.tile(np.arange(DAY), 2)
    score = np.concatenate([peaks(DAY, r300=8.0), peaks(DAY, r300=8.0, r600=8.0)])
    judged = make_slice(np.zeros(2 * DAY), two_arms(score, score), entity=entity, time=time)
    quality = measure_quality(VALIDATION, judged, make_plan())
    assert quality.arms["incumbent"].false_alarms_per_day == 1.5
    assert quality.observed_days == 1.0


def test_no_false_alarm_seen_is_no_zero_rate():
    judged = make_slice(np.zeros(DAY), two_arms(peaks(DAY), peaks(DAY)))
    measured = measure_quality(VALIDATION, judged, make_plan()).arms["incumbent"]
    assert measured.false_alarms_per_day == 0
    assert measured.intervals[FALSE_ALARMS] == (0.0, pytest.approx(-np.log(0.05), rel=CLOSE))


def test_thresholds_never_see_judged_rows():
    plan = make_plan()
    before = measure_quality(VALIDATION, forecast_case(), plan)
    noise = np.random.default_rng(0).normal(0, 1e6, (2, DAY)).astype(np.float32)
    changed = replace(forecast_case(), scores=two_arms(*noise), label=labelled((7, 9)))
    after = measure_quality(VALIDATION, changed, plan)
    for arm in ("incumbent", "candidate"):
        assert after.arms[arm].threshold == before.arms[arm].threshold
        assert after.arms[arm].values != before.arms[arm].values


def test_unlabelled_rows_are_normal_for_thresholds_and_left_out_of_judging():
    unlabelled = replace(VALIDATION, label=np.full(DAY, -1, np.int32))
    assert set_thresholds(unlabelled, make_plan()) == set_thresholds(VALIDATION, make_plan())
    judged = forecast_case()
    judged.label[300:306] = -1
    measured = measure_quality(VALIDATION, judged, make_plan()).arms["incumbent"]
    assert measured.false_alarms_per_day == pytest.approx(DAY / (DAY - 21), rel=CLOSE)


def test_a_missing_score_is_a_missed_event_and_is_counted():
    judged = forecast_case()
    judged.scores["candidate"][100:105] = np.nan
    quality = measure_quality(VALIDATION, judged, make_plan())
    assert quality.only_incumbent_scored == 5
    assert quality.arms["candidate"].values[EVENT_RECALL] == 0
    used = np.r_[0:100, 105:DAY]
    for arm in ("incumbent", "candidate"):
        expected = average_precision_score(judged.label[used] > 0, judged.scores[arm][used])
        assert quality.arms[arm].values[AVERAGE_PRECISION] == pytest.approx(expected, rel=CLOSE)


def test_an_event_that_nobody_could_catch_is_left_out_and_counted():
    judged = forecast_case()
    judged.scores["incumbent"][500:505] = np.nan
    judged.scores["candidate"][500:505] = np.nan
    quality = measure_quality(VALIDATION, judged, make_plan())
    assert (quality.events, quality.events_left_out) == (2, 1)


def test_an_alarm_for_an_event_right_at_the_start_cannot_be_judged():
    judged = make_slice(labelled((0, 5), (500, 505)), two_arms(peaks(DAY), peaks(DAY)))
    quality = measure_quality(VALIDATION, judged, make_plan(task=ALARM_TASK))
    assert (quality.events, quality.events_left_out) == (1, 1)


def fleet(seed: int = 0, events: int = 60) -> tuple[AlignedSlice, AlignedSlice, Plan]:
    """A log of four machines whose arms differ on some events, in integer scores."""
    rng = np.random.default_rng(seed)
    hits = {arm: rng.random(events) < 0.8 for arm in ("incumbent", "candidate")}
    scores = fleet_scores(hits, seed=seed)
    for arms in scores.values():
        for arm, table in arms.items():
            # Whole numbers under 2^8: their cubes are exact in float32.
            arms[arm] = replace(table, score=np.round(100 * table.score).astype(np.float32))
    measurements = Measurements(entities=("a", "b", "c", "d"), scores=scores)
    slices = [AlignedSlice.align(measurements, name) for name in ("validation", "judged")]
    return slices[0], slices[1], make_plan()


def with_scores(slices, plan: Plan, change) -> Quality:
    validation, judged = (replace(part, scores=change(part.scores)) for part in slices)
    return measure_quality(validation, judged, plan)


def comparable(quality: Quality) -> dict[str, object]:
    return {
        "values": {arm: dict(measured.values) for arm, measured in quality.arms.items()},
        "rates": {arm: measured.false_alarms_per_day for arm, measured in quality.arms.items()},
        "losses": quality.candidate.losses,
    }


def test_only_the_order_of_scores_counts():
    validation, judged, plan = fleet()
    plain = measure_quality(validation, judged, plan)
    bent = with_scores(
        (validation, judged), plan, lambda s: {**s, "candidate": s["candidate"] ** 3}
    )
    assert comparable(bent) == comparable(plain)


def test_swapping_the_arms_mirrors_every_loss():
    validation, judged, plan = fleet()
    one = measure_quality(validation, judged, plan)
    other = with_scores(
        (validation, judged), plan, lambda s: two_arms(s["candidate"], s["incumbent"])
    )
    for metric in (EVENT_RECALL, AVERAGE_PRECISION):
        loss, mirrored = one.candidate.losses[metric], other.candidate.losses[metric]
        assert loss.value != 0
        assert mirrored.value == pytest.approx(-loss.value, rel=CLOSE)
        assert mirrored.high == pytest.approx(-loss.low, rel=CLOSE)
        assert mirrored.low == pytest.approx(-loss.high, rel=CLOSE)


def test_the_same_arm_twice_has_no_loss_and_still_an_interval():
    validation, judged, plan = fleet()
    quality = with_scores(
        (validation, judged), plan, lambda s: two_arms(s["incumbent"], s["incumbent"])
    )
    for loss in quality.candidate.losses.values():
        assert loss.value == 0
        assert loss.low < 0 < loss.high


def test_a_declared_block_is_used_and_a_chosen_one_holds_a_typical_event():
    validation, judged, _ = fleet()
    declared = measure_quality(validation, judged, make_plan(quality={"block": "2h"}))
    assert declared.block == 120
    assert measure_quality(validation, judged, make_plan()).block >= 5
    alarm = measure_quality(validation, judged, make_plan(task=ALARM_TASK))
    assert alarm.block >= 60


def test_silence_of_all_entities_is_no_observed_time():
    time = START + MINUTE * np.concatenate([np.arange(DAY // 2), 10 * DAY + np.arange(DAY // 2)])
    judged = replace(forecast_case(), time=time)
    assert measure_quality(VALIDATION, judged, make_plan()).observed_days == 1.0


def arm_scores(time, entity=None, label=None) -> ArmScores:
    size = len(time)
    return ArmScores(
        entity=np.zeros(size, np.int32) if entity is None else np.array(entity, np.int32),
        time=np.array(time, np.int64),
        label=np.zeros(size, np.int32) if label is None else np.array(label, np.int32),
        score=np.zeros(size, np.float32),
    )


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        (arm_scores([1, 2]), "has 2 rows, 'incumbent' has 3"),
        (arm_scores([1, 2, 4]), "differ in time at row 2"),
        (arm_scores([1, 2, 3], label=[0, 1, 0]), "differ in label at row 1"),
        (arm_scores([1, 2, 3], entity=[0, 0, 1]), "differ in entity at row 2"),
    ],
)
def test_arms_on_different_rows_are_refused(candidate, message):
    arms = {"incumbent": arm_scores([1, 2, 3]), "candidate": candidate}
    measurements = Measurements(entities=("a", "b"), scores={"validation": arms, "judged": arms})
    with pytest.raises(RunError, match=message):
        AlignedSlice.align(measurements, "judged")


def test_a_row_twice_and_an_entity_without_a_name_are_refused():
    for table, message in (
        (arm_scores([1, 1]), "entity 'a' has two rows at time 1"),
        (arm_scores([1, 2], entity=[0, 1]), "do not fit 1 entity names"),
    ):
        arms = {"incumbent": table, "candidate": table}
        measurements = Measurements(entities=("a",), scores={"validation": arms, "judged": arms})
        with pytest.raises(RunError, match=message):
            AlignedSlice.align(measurements, "judged")
