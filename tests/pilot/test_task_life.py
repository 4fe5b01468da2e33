"""Task `remaining_life`: from a log's events to lives learned, scored and judged."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError
from tests.pilot.judge_cases import make_plan, make_slice
from tests.pilot.log_cases import MINUTE, START
from tests.pilot.log_cases import make_plan as make_log_plan
from tests.pilot.replay_cases import SMALL_MODEL, quiet
from tests.pilot.test_judge_quality import DAY, VALIDATION, labelled, two_arms
from tests.tolerances import TOLERANCES

from sma_pilot import pilot
from sma_pilot.judge.metrics import BRIER, EVENT_RECALL, MAE, RMSE
from sma_pilot.judge.quality import measure_quality
from sma_pilot.plan import Plan, Task
from sma_pilot.run_folder import RunFolder
from sma_pilot.targets import LIFE_CLASSES, class_names, class_scores, classes_of

CLOSE = TOLERANCES["float64"].relative
SINGLE = TOLERANCES["float32"].relative
LIFE: dict[str, Any] = {"kind": "remaining_life", "horizon": "1h"}
TASK = Task.model_validate(LIFE)
HOUR = 60 * MINUTE


def test_lives_become_classes_by_hand():
    remaining = np.array([1, 3 * MINUTE, 3 * MINUTE + 1, HOUR - 1, HOUR, HOUR + 1, -1])
    assert classes_of(TASK, remaining, HOUR).tolist() == [0, 0, 1, 19, 19, 20, -1]
    names = class_names(TASK)
    assert (names[0], names[19], names[20]) == ("at most 3m", "at most 1h", "more than 1h")
    assert class_scores(TASK)[0] == pytest.approx(1 - 1 / 40, rel=CLOSE)
    assert (class_scores(TASK)[-1], len(class_scores(TASK))) == (0.0, LIFE_CLASSES + 1)


def test_an_alarm_keeps_its_two_classes():
    alarm = Task.model_validate({**LIFE, "kind": "alarm"})
    assert classes_of(alarm, np.array([1, HOUR, HOUR + 1, -1]), HOUR).tolist() == [1, 1, 0, -1]
    assert class_scores(alarm) == (0.0, 1.0)


def test_a_class_is_at_most_a_40th_of_the_horizon_off():
    remaining = np.arange(MINUTE // 7, HOUR, MINUTE // 7)
    predicted = 1 - np.array(class_scores(TASK))[classes_of(TASK, remaining, HOUR)]
    assert np.abs(predicted - remaining / HOUR).max() <= 1 / 40 + CLOSE


def test_errors_of_a_life_by_hand():
    judged = labelled((500, 520), (1000, 1010))
    life = np.ones(DAY)
    for start in (500, 1000):
        life[start - 60 : start] = np.arange(60, 0, -1) / 60
    off = np.zeros(DAY)
    off[100:130], off[470:480] = 0.5, -0.25
    rows = make_slice(judged, two_arms(1 - life, 1 - (life - off)))
    plan = make_plan(task=LIFE, quality={"headline": MAE, "resamples": 200})
    quality = measure_quality(VALIDATION, rows, plan)
    counted = DAY - 20 - 10 - 60  # rows inside events, and the last hour, say nothing
    incumbent, candidate = quality.arms["incumbent"], quality.arms["candidate"]
    assert incumbent.values[MAE] == pytest.approx(0, abs=SINGLE)
    mae = (30 * 0.5 + 10 * 0.25) / counted
    assert candidate.values[MAE] == pytest.approx(mae, rel=SINGLE)
    rmse = ((30 * 0.25 + 10 * 0.0625) / counted) ** 0.5
    assert candidate.values[RMSE] == pytest.approx(rmse, rel=SINGLE)
    # Lower is better, and the loss is what the candidate has more of it.
    assert quality.candidate.losses[MAE].value == pytest.approx(mae, rel=SINGLE)
    assert BRIER not in candidate.values
    assert candidate.reliability is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": {"kind": "remaining_life"}}, "`horizon` is needed"),
        ({"task": LIFE, "log": {"label": None}}, "log.label is needed by task 'remaining_life'"),
        ({"quality": {"headline": "mae"}}, "'mae' is no metric of task 'forecast_anomaly'"),
        (
            {"task": LIFE, "quality": {"headline": "brier"}},
            "'brier' is no metric of task 'remaining_life'",
        ),
    ],
)
def test_a_plan_that_does_not_fit_names_the_field(change, message):
    with pytest.raises(ValidationError, match=message):
        make_plan(**change)


def worn_log(folder: Path) -> str:
    """One machine whose wear grows for two hours before each failure of ten minutes."""
    rows, cycle = 2000, 200
    place = np.arange(rows) % cycle
    wear = np.clip(place - (cycle - 10 - 120), 0, 120) / 120
    noise = np.random.default_rng(0).normal(0, 0.05, (2, rows))
    frame = pl.DataFrame(
        {
            "t": START + MINUTE * np.arange(rows),
            "wear": wear + noise[0],
            "other": noise[1],
            "fault": (place >= cycle - 10).astype(int),
        }
    )
    frame.write_parquet(folder / "log.parquet")
    return "log.parquet"


def worn_plan(file: str) -> Plan:
    training = {
        "max_steps": 40,
        "batch_size": 8,
        "window": 64,
        "warmup_steps": 5,
        "learning_rate": 0.03,
        "evaluate_every": 40,
        "evaluate_batches": 2,
    }
    base = make_log_plan(file, label="fault", numeric=("wear", "other")).model_dump(mode="json")
    candidate = {"kind": "sma", "model": SMALL_MODEL, "training": training}
    replay = {"single_stream_events": 20, "warmup_events": 5, "passes": 2}
    return Plan.model_validate(
        {
            **base,
            "task": LIFE,
            "quality": {**base["quality"], "headline": "mae", "resamples": 200},
            "arms": {
                "incumbent": {"kind": "dense_twin"},
                "candidate": candidate,
                "baseline": {"kind": "ridge"},
            },
            "replay": replay,
        }
    )


def test_a_life_is_learned_and_judged_from_a_log(tmp_path):
    plan = worn_plan(worn_log(tmp_path))
    run = RunFolder.create(plan, tmp_path / "runs")
    dataset = pilot.prepare(plan, tmp_path, run, quiet)
    assert len(dataset.card.classes) == LIFE_CLASSES + 1
    pilot.fit(plan, tmp_path, run, quiet)
    pilot.replay(plan, run, quiet)
    result = pilot.judge(plan, run)
    values = {kpi.name: kpi.value for kpi in result.kpis}
    # Of every 190 rows outside failures 130 have the life 1 and 60 fall from 1: the best constant
    # is wrong by 0.16 on average, and wear tells better.
    mae = values["quality/candidate_mae"]
    assert mae is not None
    assert mae < 0.12
    simple = values["quality/baseline_mae"]
    assert simple is not None
    assert simple < 0.1
    assert values["quality/candidate_mae_s"] == pytest.approx(3600 * mae, rel=CLOSE)
    assert values[f"quality/candidate_{EVENT_RECALL}"] is not None
    gate = next(kpi for kpi in result.kpis if kpi.name == "quality/loss_mae")
    assert gate.is_gate
    assert gate.direction == "lower"
