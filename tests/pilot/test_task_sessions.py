"""Task `session_anomaly`: from event ids to sessions learned, scored and judged."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError
from tests.pilot.judge_cases import MINUTE, START, make_slice
from tests.pilot.replay_cases import SMALL_MODEL, quiet
from tests.tolerances import TOLERANCES

from sma_core import HeadConfig, InputConfig, Inputs, ModelConfig, build_model
from sma_pilot import pilot
from sma_pilot.arms.surprise_scorer import SurpriseScorer
from sma_pilot.errors import LogError
from sma_pilot.judge.events import DAY_NS
from sma_pilot.judge.metrics import AVERAGE_PRECISION, EVENT_RECALL
from sma_pilot.judge.quality import measure_quality
from sma_pilot.judge.result import Result
from sma_pilot.judge.sessions import judged_units
from sma_pilot.plan import Plan
from sma_pilot.run_folder import RunFolder
from sma_pilot.targets import next_event

SECOND = 10**9
SESSIONS = {"kind": "session_anomaly"}
EVENT_LOG = {
    "entity": "session",
    "numeric": [],
    "categorical": ["event"],
    "duplicates": "keep",
}
TRAINING = {
    "max_steps": 30,
    "batch_size": 16,
    "window": 64,
    "warmup_steps": 5,
    "learning_rate": 0.02,
    "evaluate_every": 30,
    "evaluate_batches": 2,
}


def make_plan(file: str = "log.parquet", **sections: dict[str, Any]) -> Plan:
    """A plan of event sessions with small arms."""
    document: dict[str, Any] = {
        "version": 1,
        "name": "events",
        "log": {
            "files": [file],
            "time": "time",
            "label": "anomaly",
            "period": "1m",
            "max_gap": "1h",
            **EVENT_LOG,
        },
        "slices": {"validation_from": 0.5, "judged_from": 0.65},
        "task": SESSIONS,
        "quality": {
            "loss_limit": 0.2,
            "false_alarms_per_day": 60,
            "alarm_merge": "1m",
            "resamples": 200,
        },
        "arms": {
            "incumbent": {"kind": "dense_twin"},
            "candidate": {"kind": "sma", "model": SMALL_MODEL, "training": TRAINING},
            "baseline": {"kind": "count_pca"},
        },
        "replay": {"single_stream_events": 20, "warmup_events": 5, "passes": 2},
    }
    for name, fields in sections.items():
        document[name] = {**document[name], **fields}
    return Plan.model_validate(document)


def write_sessions(folder: Path, sequences: list[list[str]], anomaly: list[int]) -> None:
    """One session a minute; its events share two instants, so that order is all that tells them."""
    frames = []
    for number, (events, label) in enumerate(zip(sequences, anomaly, strict=True)):
        half = np.arange(len(events)) >= len(events) // 2
        frames.append(
            pl.DataFrame(
                {
                    "time": START + number * MINUTE + half * SECOND,
                    "session": [f"block {number}"] * len(events),
                    "event": events,
                    "anomaly": [label] * len(events),
                }
            )
        )
    pl.concat(frames).write_parquet(folder / "log.parquet")


def go_through(plan: Plan, folder: Path) -> Result:
    """From the log to the verdict."""
    run = RunFolder.create(plan, folder / "runs")
    pilot.prepare(plan, folder, run, quiet)
    pilot.fit(plan, folder, run, quiet)
    pilot.replay(plan, run, quiet)
    return pilot.judge(plan, run)


def test_the_next_event_is_taught_by_hand():
    code = np.array([3, 1, 2, 5, 4, 4, 7], np.int32)
    label = np.array([0, 0, 0, 0, 1, 0, 0], np.int32)
    starts = np.array([1, 0, 0, 1, 0, 0, 1], bool)
    # The second session holds an anomaly and teaches nothing; the third has one event only.
    assert next_event(code, label, starts).tolist() == [1, 2, -1, -1, -1, -1, -1]
    assert next_event(code[1:3], label[1:3], starts[1:3]).tolist() == [2, -1]


def surprise_scorer() -> SurpriseScorer:
    torch.manual_seed(0)
    config = ModelConfig(
        inputs=InputConfig(categorical=(6,)),
        head=HeadConfig(kind="step_classification", outputs=6),
        width=8,
    )
    return SurpriseScorer(build_model(config).eval())


def test_a_row_scores_the_least_likely_step_so_far_however_it_is_fed():
    scorer = surprise_scorer()
    events = torch.randint(0, 6, (2, 23, 1), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        model = scorer._model
        announced = model(Inputs(categorical=events)).prediction.log_softmax(-1)
        taken = -announced[:, :-1].gather(-1, events[:, 1:]).squeeze(-1)
        whole = scorer.score(Inputs(categorical=events), scorer.start(2)).score
        state, alone = scorer.start(2), scorer.start(1)
        split = [Inputs(categorical=piece) for piece in events.split([1, 9, 13], 1)]
        pieces = [scorer.score(piece, state).score for piece in split]
        single_rows = [Inputs(categorical=row) for row in events[:1].split(1, 1)]
        steps = [scorer.step(row, alone)[0] for row in single_rows]
    assert whole[:, 0].isnan().all()
    single = TOLERANCES["float32"].relative
    expected = taken.cummax(1).values
    torch.testing.assert_close(whole[:, 1:], expected, rtol=single, atol=single)
    joined = torch.cat(pieces, 1)
    torch.testing.assert_close(joined, whole, rtol=single, atol=single, equal_nan=True)
    assert steps[1:] == pytest.approx(whole[0, 1:].tolist(), rel=10 * single)


def test_a_session_is_judged_once_by_its_last_row():
    # Three sessions of 2, 3 and 1 rows; the middle one is an anomaly by a label on one row.
    rows = make_slice(
        [0, 0, 0, 1, 0, 0],
        {"incumbent": [np.nan, 1, np.nan, 2, 5, 3], "candidate": [np.nan, 2, np.nan, 2, 2, 4]},
        entity=[0, 0, 1, 1, 1, 2],
        time=[START + MINUTE * minute for minute in (0, 1, 0, 1, 2, 3)],
    )
    sessions, exposure = judged_units(rows, make_plan())
    assert sessions.label.tolist() == [0, 1, 0]
    assert sessions.scores["incumbent"].tolist() == [1, 5, 3]
    # Minutes 0 to 3 were observed, and a third of them belongs to each session.
    assert exposure.tolist() == [4 * MINUTE // 3] * 3


def test_recall_and_false_alarms_are_those_of_sessions():
    count = 60
    entity = np.repeat(np.arange(count), 2)
    time = START + MINUTE * np.repeat(np.arange(count), 2) + np.tile([0, SECOND], count)
    anomaly = np.arange(count) % 6 == 0
    score = np.where(anomaly, 9.0, 1.0)
    score[[6, 12]] = 0.5  # two anomalies missed
    score[[7, 8, 9]] = 5.0  # three false alarms, in neighbouring sessions
    scores = np.stack([np.full(count, np.nan), score], 1).ravel()
    quiet_scores = np.where(np.isnan(scores), np.nan, np.tile([0.0, 2.0], count))
    fields = {"entity": entity, "time": time}
    validation = make_slice(
        0 * entity, dict.fromkeys(("incumbent", "candidate"), quiet_scores), **fields
    )
    both = dict.fromkeys(("incumbent", "candidate"), scores)
    judged = make_slice(np.repeat(anomaly, 2), both, **fields)
    quality = measure_quality(validation, judged, make_plan())
    measured = quality.arms["incumbent"]
    assert quality.events == 10
    assert measured.values[EVENT_RECALL] == 0.8
    assert measured.values.keys() == {EVENT_RECALL, AVERAGE_PRECISION}
    days = 50 / 60 * quality.observed_days
    assert measured.false_alarms_per_day == pytest.approx(3 / days, rel=1e-6)
    assert quality.observed_days == pytest.approx((59 * MINUTE + MINUTE) / DAY_NS, rel=0.01)
    assert measured.median_delay_s is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log": {"entity": None}}, "log.entity is needed by task 'session_anomaly'"),
        ({"log": {"duplicates": "last"}}, "log.duplicates: events of one session"),
        ({"log": {"categorical": [], "numeric": ["x"]}}, "log.categorical: name the column"),
        ({"log": {"categorical": []}}, "log.numeric: name a column"),
        ({"quality": {"headline": "vus_pr"}}, "'vus_pr' is no metric of task 'session_anomaly'"),
        (
            {"task": {"kind": "forecast_anomaly"}, "arms": {"baseline": None}},
            "log.numeric: name a column that holds numbers",
        ),
    ],
)
def test_a_plan_that_does_not_fit_names_the_field(change, message):
    with pytest.raises(ValidationError, match=message):
        make_plan(**change)


def test_two_columns_of_events_are_refused_before_anything_is_written(tmp_path):
    write_sessions(tmp_path, [["a", "b"]] * 20, [0] * 20)
    frame = pl.read_parquet(tmp_path / "log.parquet")
    frame.with_columns(other=pl.col("event")).write_parquet(tmp_path / "log.parquet")
    plan = make_plan(log={"categorical": ["event", "other"]})
    run = RunFolder.create(plan, tmp_path / "runs")
    with pytest.raises(LogError, match="2 columns match; task session_anomaly needs one"):
        pilot.prepare(plan, tmp_path, run, quiet)
    assert not run.dataset.exists()


def test_events_out_of_order_are_found_in_a_made_log(tmp_path):
    rng = np.random.default_rng(0)
    usual = ["open", "write", "write", "sync", "close", "report"]
    sequences, anomaly = [], []
    for _ in range(240):
        events = list(usual)
        unusual = rng.random() < 0.15
        if unusual:
            place = int(rng.integers(1, 4))
            events[place], events[place + 1] = "close", events[0]
        sequences.append(events)
        anomaly.append(int(unusual))
    write_sessions(tmp_path, sequences, anomaly)
    result = go_through(make_plan(), tmp_path)
    values = {kpi.name: kpi.value for kpi in result.kpis}
    judged = sum(anomaly[int(0.65 * 240) + 1 :])
    assert values["quality/events"] == pytest.approx(judged, abs=1)
    # The anomalies take "close" or "open" twice, so counting them does, too.
    for arm in ("incumbent", "candidate", "baseline"):
        precision = values[f"quality/{arm}_average_precision"]
        assert precision is not None
        assert precision > 0.9
    unit = next(k.unit for k in result.kpis if k.name == "quality/false_alarm_difference")
    assert unit == "per day"
