"""Task `classification`: from labels of windows and sessions to classes told and judged."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.metrics import balanced_accuracy_score, f1_score
from tests.pilot.judge_cases import MINUTE, START
from tests.pilot.log_cases import same_split, split_arrays
from tests.pilot.replay_cases import SMALL_MODEL, quiet
from tests.tolerances import TOLERANCES

from sma_core import HeadConfig, InputConfig, Inputs, ModelConfig, build_model
from sma_core.checkpoint import save_checkpoint
from sma_core.dataset import PreparedDataset
from sma_pilot import pilot
from sma_pilot.arms import build_arms
from sma_pilot.arms.class_scorer import ClassificationScorer
from sma_pilot.arms.count_logistic import CountLogisticScorer
from sma_pilot.errors import LogError, PlanError
from sma_pilot.judge.classes import confusion_table
from sma_pilot.judge.confusion import BalancedAccuracy, MacroF1
from sma_pilot.judge.measurements import AlignedSlice
from sma_pilot.judge.metrics import ACCURACY, BALANCED_ACCURACY, BRIER, MACRO_F1
from sma_pilot.judge.quality import measure_quality
from sma_pilot.logs.checks import check_log
from sma_pilot.logs.windows import prepare
from sma_pilot.plan import Plan
from sma_pilot.planning import plan_pilot
from sma_pilot.replay.recorder import _told
from sma_pilot.run_folder import RunFolder

CLOSE = TOLERANCES["float64"].relative
SINGLE = TOLERANCES["float32"].relative
HOUR = 60 * MINUTE
SECOND = 10**9
# What a page must not take for markup.
RUN = "run <b>&amp;\n"


def make_plan(file: str = "log.parquet", **sections: dict[str, Any]) -> Plan:
    """A plan that tells the state of a machine once an hour."""
    document: dict[str, Any] = {
        "version": 1,
        "name": "states",
        "log": {
            "files": [file],
            "time": "t",
            "class_label": "state",
            "numeric": ["x"],
            "period": "10m",
            "max_gap": "2h",
        },
        "slices": {"validation_from": 0.5, "judged_from": 0.6},
        "task": {"kind": "classification", "window": "1h"},
        "quality": {"headline": "balanced_accuracy", "loss_limit": 0.2, "resamples": 200},
        "arms": {"incumbent": {"kind": "logistic"}, "candidate": {"kind": "logistic"}},
        "replay": {"single_stream_events": 20, "warmup_events": 5, "passes": 2},
    }
    for name, fields in sections.items():
        document[name] = {**document.get(name, {}), **fields}
    return Plan.model_validate(document)


SESSIONS = {
    "log": {"entity": "job", "numeric": [], "categorical": ["event"], "duplicates": "keep"},
    "task": {"window": None},
    "arms": {"candidate": {"kind": "count_logistic"}},
}


def run_of(plan: Plan, folder: Path) -> RunFolder:
    run = RunFolder.create(plan, folder / "runs")
    pilot.prepare(plan, folder, run, quiet)
    pilot.fit(plan, folder, run, quiet)
    pilot.replay(plan, run, quiet)
    pilot.judge(plan, run)
    return run


# The metrics.


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_metrics_are_those_of_the_books_and_their_derivatives(data):
    classes = data.draw(st.integers(2, 4))
    size = data.draw(st.integers(1, 30))
    told = st.lists(st.integers(0, classes - 1), min_size=size, max_size=size)
    label, predicted = (np.array(data.draw(told), np.int32) for _ in range(2))
    bins = np.array(data.draw(st.lists(st.integers(0, 5), min_size=size, max_size=size)))
    balanced = BalancedAccuracy(label, predicted, bins, classes)
    macro = MacroF1(label, predicted, bins, classes)
    once = np.ones(6)
    recall = [np.mean(predicted[label == k] == k) for k in range(classes) if (label == k).any()]
    assert balanced(once) == pytest.approx(np.mean(recall), rel=CLOSE)
    seen = sorted({*label.tolist(), *predicted.tolist()})
    score = f1_score(
        label,
        predicted,
        labels=seen,
        average="macro",
        zero_division=0,  # pyright: ignore[reportArgumentType]
    )
    assert macro(once) == pytest.approx(score, rel=CLOSE)
    for metric in (balanced, macro):
        added = metric.contributions(6)
        assert added.sum() == pytest.approx(0, abs=CLOSE)
        step = 1e-6
        for place in np.unique(bins):
            moved = once.copy()
            moved[place] += step
            slope = (metric(moved) - metric(once)) / step
            assert slope == pytest.approx(added[place], abs=1e-4)


def test_balanced_accuracy_is_scikit_learn_s_and_weights_are_repetitions():
    rng = np.random.default_rng(0)
    label, predicted = rng.integers(0, 3, (2, 200)).astype(np.int32)
    bins = np.arange(200) // 10
    metric = BalancedAccuracy(label, predicted, bins, 3)
    assert metric(np.ones(20)) == pytest.approx(balanced_accuracy_score(label, predicted))
    weights = rng.integers(0, 3, 20).astype(float)
    again = np.repeat(np.arange(200), weights[bins].astype(int))
    expected = balanced_accuracy_score(label[again], predicted[again])
    assert metric(weights) == pytest.approx(expected)
    assert np.isnan(metric(np.zeros(20)))


def test_the_squared_error_of_a_row_by_hand():
    probability = torch.tensor([[0.7, 0.2, 0.1]] * 4)
    told = _told(probability, torch.tensor([0, 2, -1, 3], dtype=torch.int32))
    assert told["predicted"].tolist() == [0, 0, 0, 0]
    expected = [0.09 + 0.04 + 0.01, 0.49 + 0.04 + 0.81]
    assert told["squared_error"][:2].tolist() == pytest.approx(expected, rel=SINGLE)
    # Neither of a row without a class nor of one whose class is not known is anything said.
    assert np.isnan(told["squared_error"][2:]).all()


def units(label: np.ndarray, **predicted: np.ndarray) -> AlignedSlice:
    """A row an hour, told with certainty."""
    right = {arm: own == label for arm, own in predicted.items()}
    return AlignedSlice(
        name="judged",
        entity=np.zeros(label.size, np.int32),
        time=START + HOUR * np.arange(label.size),
        label=label.astype(np.int32),
        scores={arm: np.ones(label.size, np.float32) for arm in predicted},
        predicted={arm: own.astype(np.int32) for arm, own in predicted.items()},
        squared_error={arm: np.where(own, 0, 2).astype(np.float32) for arm, own in right.items()},
        classes=("idle", "run", "stop"),
    )


def test_the_loss_and_what_differs_by_hand():
    label = np.arange(240) // 4 % 3
    incumbent, candidate = label.copy(), label.copy()
    incumbent[:2] = 1  # two of class 0 that only the candidate tells
    candidate[[20, 21, 22, 32, 33]] = 0  # and five of class 2 that only the incumbent tells
    label[100:103], label[110] = 3, -1  # three of a class that training has not, and one without
    rows = units(label, incumbent=incumbent, candidate=candidate)
    quality = measure_quality(rows, rows, make_plan())
    counts = np.bincount(label[(label >= 0) & (label < 3)])
    one, other = quality.arms["incumbent"], quality.arms["candidate"]
    assert quality.events == counts.sum() == 236
    assert one.values[ACCURACY] == pytest.approx(234 / 236, rel=CLOSE)
    balanced = (counts[0] - 2) / counts[0] + 2
    assert one.values[BALANCED_ACCURACY] == pytest.approx(balanced / 3, rel=CLOSE)
    assert other.values[BRIER] == pytest.approx(2 * 5 / 236, rel=SINGLE)
    loss = quality.candidate.losses[BALANCED_ACCURACY]
    assert loss.value == pytest.approx((5 / counts[2] - 2 / counts[0]) / 3, rel=CLOSE)
    assert loss.low < loss.value < loss.high
    assert (quality.candidate.lost_events, quality.candidate.won_events) == (5, 2)
    left_out = quality.units_left_out
    assert left_out is not None
    assert (left_out.unseen, left_out.unlabelled) == (3, 1)
    # Four hours of one class follow each other: they are one run, and a block is no shorter.
    assert quality.incidents == 60
    assert quality.block >= 4
    table = confusion_table(other.row_metrics)
    assert table is not None
    assert table[2].tolist() == [5, 0, counts[2] - 5]
    assert MACRO_F1 in other.values


def test_arms_that_agree_are_bounded_by_the_rarest_class():
    label = np.repeat([0, 1, 0, 1, 0, 2, 0, 1, 2, 0, 1, 0], 20)
    rows = units(label, incumbent=label, candidate=label)
    quality = measure_quality(rows, rows, make_plan(quality={"block": "1h"}))
    # Two runs of class 2, as if there were two of each: 1 - 0.05^(1/6). Of all twelve: 0.22.
    left_out = quality.units_left_out
    assert left_out is not None
    assert (left_out.runs_of_rarest, quality.incidents) == (2, 12)
    assert quality.candidate.losses[BALANCED_ACCURACY].high == pytest.approx(1 - 0.05 ** (1 / 6))
    assert quality.candidate.losses[ACCURACY].high == pytest.approx(1 - 0.05 ** (1 / 12))


def test_a_slice_without_a_known_class_is_inconclusive():
    label = np.full(50, 3)
    told = np.zeros(50, np.int32)
    rows = units(label, incumbent=told, candidate=told)
    quality = measure_quality(rows, rows, make_plan())
    assert (quality.events, quality.candidate.losses) == (0, {})
    assert isinstance(quality.arms["incumbent"].row_metrics, dict)


# The plan.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log": {"class_label": None}}, "log.class_label: name the column of the class"),
        ({"task": {"kind": "alarm", "horizon": "1h", "window": None}}, "log.class_label: name"),
        ({"task": {"kind": "forecast_anomaly"}}, "`window` is known to the kind 'classification'"),
        ({"log": {"label": "fault"}}, "log.label: task 'classification' knows no events"),
        ({"task": {"window": None}}, "task.window: without it an entity is a session"),
        ({"task": {"window": "5m"}}, "task.window: shorter than log.period"),
        ({"quality": {"headline": "event_recall"}}, "'event_recall' is no metric of task 'class"),
        ({"quality": {"alarm_merge": "1h"}}, "quality.alarm_merge is unknown to task 'classif"),
        ({"guard": {"latency_budget_ms": 5.0}}, "guard: task 'classification' is replayed offl"),
        ({"arms": {"candidate": {"kind": "count_logistic"}}}, "arms.candidate: kind 'count_logi"),
        ({"arms": {"candidate": {"kind": "pca"}}}, "arms.candidate: kind 'pca' cannot do task"),
        ({"log": {"numeric": []}}, "log.numeric: name a column"),
    ],
)
def test_a_plan_that_does_not_fit_names_the_field(change, message):
    with pytest.raises(ValidationError, match=message):
        make_plan(**change)


def test_planning_names_no_metric_that_the_task_lacks(tmp_path):
    with pytest.raises(PlanError, match=r"quality\.headline") as caught:
        plan_pilot(make_plan(), tmp_path, quiet)
    assert "event_recall" not in str(caught.value)


def test_other_tasks_still_need_what_sets_their_alarms():
    document = make_plan().model_dump(mode="json", exclude_none=True)
    document["log"]["label"] = document["log"].pop("class_label")
    document["task"] = {"kind": "forecast_anomaly"}
    document["quality"]["headline"] = "event_recall"
    document["arms"] = {"incumbent": {"kind": "pca"}, "candidate": {"kind": "sma"}}
    with pytest.raises(ValidationError, match=r"quality.false_alarms_per_day is needed by"):
        Plan.model_validate(document)


# The log.


def states_log(folder: Path, hours: int = 240, strange: bool = True) -> None:
    """A machine that is idle, runs or stops for some hours each; its reading tells which."""
    rng = np.random.default_rng(0)
    state = np.repeat(rng.permutation(np.arange(hours // 3) % 3), 3)
    state = np.repeat(state, 6)
    name = np.array(["idle", RUN, "stop"], dtype=object)[state]
    if strange:
        name[-12:] = "never seen"
    name[5::6][::9] = None  # a window of which the last row is not labelled has the class before
    frame = pl.DataFrame(
        {
            "t": START - START % HOUR + 10 * MINUTE * np.arange(6 * hours),
            "x": state + rng.normal(0, 0.3, state.size),
            "state": name.tolist(),
        }
    )
    frame.write_parquet(folder / "log.parquet")


def test_each_row_is_taught_the_last_class_written_in_its_window(tmp_path):
    minutes = [0, 10, 50, 60, 70, 120, 130, 180, 240, 250]
    state = ["a", "b", None, None, "2", None, None, "2.0", "c", None]
    lines = ["t,x,state"] + [
        f"{(START // HOUR * HOUR + m * MINUTE) // SECOND},{m},{s or ''}"
        for m, s in zip(minutes, state, strict=True)
    ]
    (tmp_path / "log.csv").write_text("\n".join(lines))
    plan = make_plan("log.csv", slices={"validation_from": 0.7, "judged_from": 0.9})
    dataset = prepare(plan, tmp_path, tmp_path / "made")
    assert dataset.card.classes == ("2", "b")
    train = split_arrays(dataset, "train")
    # Hour 0 ends as b, hour 1 as 2, hour 2 has no class.
    assert train["target"].tolist() == [1, 1, 1, 0, 0, -1, -1]
    assert train["label"].tolist() == train["target"].tolist()
    assert split_arrays(dataset, "validation")["target"].tolist() == [0]
    judged = split_arrays(dataset, "judged")
    assert (judged["target"].tolist(), judged["label"].tolist()) == ([-1, -1], [2, 2])
    assert dataset.card.provenance["classes"] == {
        "units": {"train": {"2": 1, "b": 1}, "validation": {"2": 1}, "judged": {"c": 1}},
        "not_in_training": {"train": {}, "validation": {}, "judged": {"c": 1}},
    }


def test_what_comes_later_changes_no_class_of_an_earlier_slice(tmp_path):
    def prepared(name: str, late: str) -> PreparedDataset:
        (tmp_path / name).mkdir()
        # One job begins in training and ends, with its class, in judged time.
        frame = pl.DataFrame(
            {
                "t": START + SECOND * np.array([0, *range(40), 39]),
                "job": ["long", *(f"job {i // 2}" for i in range(40)), "long"],
                "event": ["e", *["e", "f"] * 20, "f"],
                "state": [None, *[None, "ok", None, "bad"] * 10, late],
            }
        )
        frame.write_parquet(tmp_path / name / "log.parquet")
        slices = {"validation_from": 0.4, "judged_from": 0.8}
        log = {**SESSIONS["log"], "period": "1s", "max_gap": "1m"}
        plan = make_plan(slices=slices, **{**SESSIONS, "log": log})
        return prepare(plan, tmp_path / name, tmp_path / name / "made", partition_bytes=1)

    one, other = prepared("one", "ok"), prepared("other", "bad")
    assert same_split(one, other, "train")
    train = split_arrays(one, "train")
    assert sorted(train["target"].tolist()) == [-1, *[0] * 8, *[1] * 8]
    assert not same_split(one, other, "judged")


def test_small_partitions_change_nothing(tmp_path):
    states_log(tmp_path)
    plan = make_plan()
    whole = prepare(plan, tmp_path, tmp_path / "whole")
    pieces = prepare(plan, tmp_path, tmp_path / "pieces", partition_bytes=1)
    for name in ("train", "validation", "judged"):
        assert same_split(whole, pieces, name)


def test_one_class_in_training_and_a_column_of_names_are_refused(tmp_path):
    states_log(tmp_path)
    frame = pl.read_parquet(tmp_path / "log.parquet")
    frame.with_columns(state=pl.lit("idle")).write_parquet(tmp_path / "one.parquet")
    with pytest.raises(LogError, match="gives the train slice the class 'idle' alone"):
        prepare(make_plan("one.parquet"), tmp_path, tmp_path / "made")
    frame.with_columns(state=pl.col("t").cast(pl.String)).write_parquet(tmp_path / "many.parquet")
    with pytest.raises(LogError, match="column 'state' has more than 100 distinct values"):
        prepare(make_plan("many.parquet"), tmp_path, tmp_path / "made")
    assert not (tmp_path / "made").exists()
    report = check_log(make_plan("one.parquet"), tmp_path)
    assert any("nothing to tell apart" in finding.message for finding in report.findings)


def test_the_check_tells_the_classes(tmp_path):
    states_log(tmp_path)
    texts = [finding.message for finding in check_log(make_plan(), tmp_path).findings]
    assert any(
        text.startswith("judged: classes that training has not: never seen") for text in texts
    )
    assert any(text.startswith("train: 120 windows have a class") for text in texts)


# The arms.


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["model", "counts"])
def test_classes_are_told_alike_however_rows_are_fed(kind):
    torch.manual_seed(0)
    if kind == "model":
        config = ModelConfig(
            inputs=InputConfig(categorical=(6,)),
            head=HeadConfig(kind="step_classification", outputs=3),
            width=8,
        )
        scorer: Any = ClassificationScorer(build_model(config).eval())
    else:
        scorer = CountLogisticScorer(torch.randn(6, 3), torch.randn(3), torch.tensor([6]))
    events = torch.randint(0, 6, (2, 23, 1))
    whole = scorer.score(Inputs(categorical=events), scorer.start(2))
    assert whole.classes.shape == (2, 23, 3)
    assert whole.classes.sum(-1).numpy() == pytest.approx(1, rel=10 * SINGLE)
    state, alone = scorer.start(2), scorer.start(1)
    parts = [scorer.score(Inputs(categorical=p), state) for p in events.split([1, 9, 13], 1)]
    joined = torch.cat([part.classes for part in parts], 1)
    torch.testing.assert_close(joined, whole.classes, rtol=10 * SINGLE, atol=SINGLE)
    steps = [scorer.step(Inputs(categorical=row), alone)[0] for row in events[:1].split(1, 1)]
    assert steps == pytest.approx(whole.score[0].tolist(), rel=10 * SINGLE)
    assert whole.score[0].tolist() == whole.classes[0].amax(-1).tolist()


# The way from the log to the page.


def test_states_of_a_machine_are_told_judged_and_shown(tmp_path):
    states_log(tmp_path)
    training = {"max_steps": 30, "batch_size": 8, "window": 64, "warmup_steps": 5}
    training |= {"learning_rate": 0.03, "evaluate_every": 30, "evaluate_batches": 2}
    candidate = {"kind": "sma", "model": SMALL_MODEL, "training": training}
    plan = make_plan(arms={"candidate": candidate, "baseline": {"kind": "logistic"}})
    run = run_of(plan, tmp_path)
    result = pilot.load_result(run)
    values = {kpi.name: kpi.value for kpi in result.kpis}
    assert values["quality/units"] == 94
    assert values["quality/units_of_unseen_class"] == 2
    for arm in ("incumbent", "candidate", "baseline"):
        balanced, brier = values[f"quality/{arm}_balanced_accuracy"], values[f"quality/{arm}_brier"]
        assert balanced is not None
        assert balanced > 0.9
        assert brier is not None
        assert brier < 0.3
    gate = result.kpi("quality/loss_balanced_accuracy")
    assert gate.is_gate
    assert gate.threshold == 0.2
    assert result.kpi("quality/right_to_wrong").unit == "windows"
    assert not [name for name in values if "alarm" in name or "threshold" in name]
    unseen = [r for r in result.reasons if r.kpi == "quality/units_of_unseen_class"]
    assert "2 judged windows are of a class that training has not" in unseen[0].text
    page = pilot.report(run).read_text()
    assert "run &lt;b&gt;&amp;amp;" in page
    assert "run <b>" not in page
    assert "windows of each class, and the class that was told for them" in page
    assert "Of 94 judged windows both arms told" in page


def sessions_log(folder: Path, count: int = 240) -> None:
    rng = np.random.default_rng(0)
    frames = []
    for number in range(count):
        kind = number % 2
        events = ["open", *rng.choice(["read", "seek"], 4, p=[0.8, 0.2] if kind else [0.2, 0.8])]
        frames.append(
            pl.DataFrame(
                {
                    "t": [START + number * 10 * MINUTE] * 5,
                    "job": [f"job {number}"] * 5,
                    "event": events,
                    "state": [kind] * 5,
                }
            )
        )
    pl.concat(frames).write_parquet(folder / "log.parquet")


def test_sessions_are_told_once_each(tmp_path):
    sessions_log(tmp_path)
    run = run_of(make_plan(**SESSIONS), tmp_path)
    result = pilot.load_result(run)
    assert result.kpi("quality/units").unit == "sessions"
    assert result.kpi("quality/units").value == 96
    # The last event alone tells eight of ten; all four together more.
    accuracy = [result.kpi(f"quality/{arm}_accuracy").value for arm in ("incumbent", "candidate")]
    assert accuracy[0] == pytest.approx(0.8, abs=0.1)
    assert accuracy[1] is not None
    assert accuracy[1] > 0.85


def test_a_checkpoint_of_other_classes_is_refused(tmp_path):
    sessions_log(tmp_path, 40)
    checkpoint = {"kind": "checkpoint", "checkpoint": "given"}
    plan = make_plan(**{**SESSIONS, "arms": {"candidate": checkpoint}})
    dataset = prepare(plan, tmp_path, tmp_path / "made")
    assert dataset.card.classes == ("0", "1")
    config = ModelConfig(
        inputs=InputConfig(categorical=(4,)),
        head=HeadConfig(kind="step_classification", outputs=2),
        width=8,
    )
    theirs = dataset.card.to_dict() | {"classes": ["0", "2"]}
    model = build_model(config)
    save_checkpoint(tmp_path / "given", model, provenance={}, dataset_card=theirs)
    with pytest.raises(PlanError, match=r"classes \['0', '2'\] and the log gives \['0', '1'\]"):
        build_arms(plan, tmp_path)["candidate"].check(dataset)
