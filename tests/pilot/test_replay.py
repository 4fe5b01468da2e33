"""A replay scores every row once, times what it says it times, and survives being stopped."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from tests.pilot.replay_cases import (
    SMALL_TRAINING,
    SMALL_TRANSFORMER,
    FakeArm,
    FakeClock,
    PlainScorer,
    SumScorer,
    fake_arms,
    make_dataset,
    make_plan,
    quiet,
)
from tests.slow import slow
from tests.tolerances import TOLERANCES

from sma_core.dataset import PreparedDataset
from sma_pilot.arms import fit_arms
from sma_pilot.errors import RunError
from sma_pilot.replay.legs import legs_of
from sma_pilot.replay.measurements_io import load_measurements
from sma_pilot.replay.runner import replay

SCENARIOS = ("offline", "single_stream")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> PreparedDataset:
    return make_dataset(tmp_path_factory.mktemp("data") / "dataset")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def run(tmp_path, dataset, clock):
    """Replay fakes into ``tmp_path/replay``; keyword arguments change the candidate's scorer."""

    def go(folder: str = "replay", plan=None, on_progress=quiet, **candidate):
        arms = fake_arms(tmp_path / "models", clock, dataset, **candidate)
        return replay(
            plan or make_plan(),
            dataset,
            tmp_path / "models",
            tmp_path / folder,
            on_progress,
            arms=arms,
            clock=clock,
        )

    return go


def scores_of(folder: Path) -> pl.DataFrame:
    parts = sorted((folder / "scores").glob("part-*.parquet"))
    return pl.read_parquet(parts).sort("arm", "entity", "time")


def expected_scores(dataset: PreparedDataset) -> pl.DataFrame:
    """The running sums that `SumScorer` must give, straight from the sequences."""
    joined = {(0, "judged"): (0, "validation")}  # the only entity that goes on across the border
    frames, totals = [], {}
    for name in ("validation", "judged"):
        split = dataset.split(name)
        for entity, start, stop in split.sequences:
            rows = split.read(start, stop)
            assert rows.numeric is not None
            before = totals.get(joined.get((entity, name)), 0.0)
            sums = before + rows.numeric[:, 0].double().nan_to_num(0.0).cumsum(0)
            totals[entity, name] = sums[-1]
            frames.append(
                pl.DataFrame(
                    {
                        "slice": name,
                        "entity": f"machine {entity}",
                        "time": rows.time.numpy(),
                        "label": rows.label.numpy(),
                        "score": sums.float().numpy(),
                    }
                )
            )
    return pl.concat(frames).sort("entity", "time")


# Scores.


def test_offline_scores_are_those_of_the_sequences(run, dataset, tmp_path):
    run()
    got = scores_of(tmp_path / "replay")
    expected = expected_scores(dataset)
    for arm in ("incumbent", "incumbent_again", "candidate"):
        own = got.filter(pl.col("arm") == arm).drop("arm")
        own = own.with_columns(pl.col("slice", "entity").cast(pl.String)).sort("entity", "time")
        assert own.drop("score").equals(expected.drop("score"))
        np.testing.assert_allclose(own["score"], expected["score"], rtol=1e-5, atol=1e-5)


def test_the_stream_scores_what_offline_scores(run):
    card = run()
    for arm in ("incumbent", "incumbent_again", "candidate"):
        difference = card.legs[f"{arm}/single_stream"]["score_difference"]
        assert difference is not None
        assert difference <= TOLERANCES["stream_row"].relative


def test_an_arm_that_streams_other_scores_is_found_out(run):
    card = run(offset=0.5)
    assert card.legs["candidate/single_stream"]["score_difference"] > 0.01
    assert card.legs["incumbent/single_stream"]["score_difference"] < 1e-6


def test_an_arm_that_leaves_out_scores_in_the_stream_is_refused(run):
    with pytest.raises(RunError, match="does not stream as it trains"):
        run(offset=float("nan"))


# Time.


def test_latency_is_the_time_of_each_step_and_nothing_else(run, tmp_path):
    card = run()
    frame = pl.read_parquet(sorted((tmp_path / "replay" / "latency").glob("part-*.parquet")))
    for (arm, visit), part in frame.group_by("arm", "pass"):
        assert part.sort("query")["query"].to_list() == list(range(40)), (arm, visit)
        # The warm-up's five steps are the first of the scorer; they are not in the record.
        expected = [SumScorer.step_ns(k) for k in range(5, 45)]
        assert part.sort("query")["service_ns"].to_list() == expected
    legs = card.legs["candidate/single_stream"]
    assert legs["rows"] == 80
    assert legs["seconds"] == pytest.approx(
        2 * sum(SumScorer.step_ns(k) for k in range(5, 45)) / 1e9
    )
    assert len(legs["passes"]) == 2


def test_offline_time_is_that_of_scoring(run, dataset):
    card = run(row_ns=500)
    rows = dataset.split("validation").rows + dataset.split("judged").rows
    figures = card.legs["candidate/offline"]
    assert figures["rows"] == rows
    assert figures["seconds"] == pytest.approx(rows * 500 / 1e9)
    assert figures["rows_per_second"] == pytest.approx(2e6)
    assert card.legs["incumbent/offline"]["rows_per_second"] == pytest.approx(1e8)


def test_all_arms_of_a_pass_get_the_same_events_and_passes_get_others(run, tmp_path):
    run(plan=make_plan(passes=3))
    frame = pl.read_parquet(sorted((tmp_path / "replay" / "latency").glob("part-*.parquet")))
    events = {
        (arm, visit): part.sort("query").select("entity", "time").rows()
        for (arm, visit), part in frame.group_by("arm", "pass")
    }
    assert len(events) == 9
    for (arm, visit), rows in events.items():
        assert rows == events["incumbent", visit], arm
    assert len({str(events["incumbent", visit]) for visit in range(3)}) == 3


def test_the_order_is_random_by_seed_and_offline_comes_first():
    plan = make_plan(passes=4)
    order = [str(leg) for leg in legs_of(plan)]
    assert order == [str(leg) for leg in legs_of(plan)]
    assert len({str(legs_of(make_plan(passes=4, seed=seed))) for seed in range(10)}) > 5
    assert sorted(order[:3]) == [
        "candidate/offline",
        "incumbent/offline",
        "incumbent_again/offline",
    ]
    assert len(set(order)) == 3 * 5
    visits = {tuple(name.split("/")[0] for name in order[i : i + 3]) for i in range(3, 15, 3)}
    assert len(visits) > 1


# Routing.


def test_routes_of_the_candidate_on_judged_rows_are_kept(run, dataset, tmp_path):
    card = run()
    routing = pl.read_parquet(sorted((tmp_path / "replay" / "routing").glob("part-*.parquet")))
    split = dataset.split("judged")
    x = split.read(0, split.rows).numeric
    assert x is not None
    left = (x[:, 0] > 0).float().mean().item()
    assert routing.height == split.rows * 2 * 2
    assert routing.schema["layer"] == pl.Int16
    assert routing["confidence"].unique().to_list() == [0.75]
    rates = {
        f"layer {layer} {submodule}": part["active"].mean()
        for (layer, submodule), part in routing.group_by("layer", "submodule")
    }
    assert rates == pytest.approx(
        {"layer 0 left": left, "layer 0 right": 1, "layer 1 left": left, "layer 1 right": 0}
    )
    figures = card.legs["candidate/offline"]
    assert figures["submodule_rates"] == pytest.approx(rates)
    assert figures["activation_rate"] == pytest.approx((1 + 2 * left) / 4)
    # Each of a machine's own rows has its own decision: x > 0 is what `left` looked at.
    own = routing.filter(pl.col("entity") == "machine 3", pl.col("submodule") == "left")
    reference = next(s for s in split.sequences if s.entity == 3)
    rows = split.read(reference.start, reference.stop)
    assert rows.numeric is not None
    expected = dict(zip(rows.time.tolist(), (rows.numeric[:, 0] > 0).tolist(), strict=True))
    assert dict(zip(own["time"], own["active"], strict=True)) == expected


def test_the_share_that_ran_is_kept_for_each_event(run, dataset, tmp_path):
    run()
    frame = pl.read_parquet(sorted((tmp_path / "replay" / "latency").glob("part-*.parquet")))
    shares = {arm: part["active_share"] for (arm,), part in frame.group_by("arm")}
    assert shares["incumbent"].null_count() == len(shares["incumbent"])
    # Of four sub-modules one always runs, and two more where x > 0.
    assert set(shares["candidate"].to_list()) == {0.25, 0.75}


def test_what_was_not_measured_is_none(run):
    card = run()
    for scenario in SCENARIOS:
        figures = card.legs[f"incumbent/{scenario}"]
        assert figures["activation_rate"] is None
        assert figures["peak_cuda_bytes"] is None
        assert figures["weight_bytes"] == 12
        assert figures["state_bytes_per_entity"] == 12
        assert figures["peak_rss_bytes"] >= figures["baseline_rss_bytes"] > 0
    assert card.environment["timer_overhead_ns"] == 0


# Stopping and going on.


class Stop(Exception):
    pass


def stop_at(call: int):
    """Progress that raises on its `call`-th call."""
    calls = iter(range(call + 1))

    def on_progress(stage: str, done: int, total: int | None) -> None:
        if next(calls) == call:
            raise Stop

    return on_progress


def finished_legs(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "legs").glob("*.json")}


def test_a_stopped_replay_goes_on_and_ends_the_same(run, tmp_path):
    run("whole")
    whole = scores_of(tmp_path / "whole")
    stops = 0
    for call in range(1, 40, 3):
        before = finished_legs(tmp_path / "replay")
        try:
            run("replay", on_progress=stop_at(call))
            break
        except Stop:
            stops += 1
            assert not (tmp_path / "replay" / "replay.json").exists()
            after = finished_legs(tmp_path / "replay")
            assert before.items() <= after.items()  # finished legs are not run again
    assert stops >= 3
    assert scores_of(tmp_path / "replay").equals(whole)
    latency = [
        pl.read_parquet(sorted((tmp_path / name / "latency").glob("part-*.parquet")))
        .select("arm", "pass", "query", "entity", "time")
        .sort("arm", "pass", "query")
        for name in ("whole", "replay")
    ]
    assert latency[0].equals(latency[1])


def test_an_unfinished_leg_leaves_nothing_behind_in_the_next_attempt(run, tmp_path):
    folder = tmp_path / "replay" / "scores"
    folder.mkdir(parents=True)
    for name in ("part-candidate-00007.parquet", ".part-candidate-00003.parquet.4711"):
        (folder / name).write_bytes(b"cut short")
    run()
    assert sorted(path.name for path in folder.iterdir()) == [
        "part-candidate-00000.parquet",
        "part-incumbent-00000.parquet",
        "part-incumbent_again-00000.parquet",
    ]


def test_a_finished_replay_is_not_run_again(run, tmp_path, clock):
    card = run()
    now = clock.now
    assert run() == card
    assert clock.now == now


def test_a_folder_of_another_plan_data_or_model_is_refused(run, tmp_path, clock):
    run()
    with pytest.raises(RunError, match="of another plan"):
        run(plan=make_plan(seed=1))
    other = make_dataset(tmp_path / "other", seed=9)
    arms = fake_arms(tmp_path / "models", clock, other)
    with pytest.raises(RunError, match="of another data set"):
        replay(make_plan(), other, tmp_path / "models", tmp_path / "replay", quiet, arms=arms)
    (tmp_path / "models" / "candidate" / "more.json").write_text("{}")
    with pytest.raises(RunError, match="of other models"):
        run()


def test_legs_of_two_machines_are_not_mixed(run, tmp_path):
    with pytest.raises(Stop):
        run(on_progress=stop_at(4))
    path = tmp_path / "replay" / "begun.json"
    begun = json.loads(path.read_text())
    begun["environment"]["cpu"] = "another"
    path.write_text(json.dumps(begun))
    with pytest.raises(RunError, match="on another machine"):
        run()


def test_models_that_were_not_fitted_are_asked_for(tmp_path, dataset, clock):
    arms = {"incumbent": FakeArm("incumbent", lambda: PlainScorer(clock))}
    with pytest.raises(RunError, match="no fitted model here"):
        replay(make_plan(), dataset, tmp_path, tmp_path / "replay", quiet, arms=arms)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_a_device_that_is_not_there_is_named(run):
    with pytest.raises(RunError, match=r"replay\.device: 'cuda'"):
        run(plan=make_plan(device="cuda"))


def test_threads_are_as_planned_and_given_back(run, monkeypatch):
    before = torch.get_num_threads()
    inside = []
    monkeypatch.setattr(
        SumScorer, "start", wrapped(SumScorer.start, lambda: inside.append(torch.get_num_threads()))
    )
    run(plan=make_plan(threads=2))
    assert set(inside) == {2}
    assert torch.get_num_threads() == before


def wrapped(function, also):
    def call(*args):
        also()
        return function(*args)

    return call


# Small real models.


def real_plan(task: str = "forecast_anomaly", incumbent: str = "dense_twin", **fields):
    baseline = {"kind": "logistic"} if task == "alarm" else {"kind": "pca", "components": 1}
    transformer = {
        "kind": "transformer",
        "model": SMALL_TRANSFORMER,
        "training": SMALL_TRAINING,
    }
    return make_plan(
        incumbent=transformer if incumbent == "transformer" else {"kind": incumbent},
        baseline=baseline,
        task=task,
        **fields,
    )


@pytest.mark.parametrize(
    ("task", "incumbent"), [("forecast_anomaly", "dense_twin"), ("alarm", "transformer")]
)
def test_real_arms_stream_as_they_score_and_the_incumbent_equals_itself(
    tmp_path, dataset, task, incumbent
):
    plan = real_plan(task, incumbent)
    fit_arms(plan, dataset, tmp_path, tmp_path / "models", quiet)
    card = replay(plan, dataset, tmp_path / "models", tmp_path / "replay", quiet)
    limit = TOLERANCES["stream_row"].relative
    for arm in ("incumbent", "incumbent_again", "candidate", "baseline"):
        difference = card.legs[f"{arm}/single_stream"]["score_difference"]
        assert difference is not None
        assert difference <= limit, arm
    measured = load_measurements(tmp_path / "replay")
    for slice_name, arms in measured.scores.items():
        first, again = arms["incumbent"], arms["incumbent_again"]
        np.testing.assert_array_equal(first.score, again.score, slice_name)
    rates = card.legs["incumbent/offline"]["activation_rate"]
    assert rates == (1.0 if incumbent == "dense_twin" else None)


def test_measurements_are_what_was_written(run, dataset, tmp_path):
    card = run()
    measured = load_measurements(tmp_path / "replay")
    assert measured.entities == dataset.card.entities
    assert set(measured.latency) == {"incumbent", "incumbent_again", "candidate"}
    frame = scores_of(tmp_path / "replay")
    for slice_name, arms in measured.scores.items():
        for arm, scores in arms.items():
            got = pl.DataFrame(
                {
                    "entity": [measured.entities[code] for code in scores.entity],
                    "time": scores.time,
                    "label": scores.label,
                    "score": scores.score,
                }
            ).sort("entity", "time")
            expected = frame.filter(pl.col("arm") == arm, pl.col("slice") == slice_name)
            expected = expected.with_columns(pl.col("entity").cast(pl.String))
            assert got.equals(expected.select(got.columns).sort("entity", "time"))
    sample = measured.latency["candidate"]
    assert sample.service_ns.size == 80
    assert np.isnan(measured.latency["incumbent"].active_share).all()
    assert measured.leg("candidate", "offline").rows == card.legs["candidate/offline"]["rows"]
    assert measured.leg("baseline", "offline").rows is None


def test_an_unfinished_or_damaged_replay_is_not_read(run, tmp_path):
    with pytest.raises(RunError, match="not a finished replay"):
        load_measurements(tmp_path / "replay")
    run()
    part = next((tmp_path / "replay" / "scores").glob("part-candidate-*.parquet"))
    part.write_bytes(part.read_bytes()[:40])
    with pytest.raises(RunError, match="damaged"):
        load_measurements(tmp_path / "replay")
    part.unlink()
    with pytest.raises(RunError, match="no measurements of arm 'candidate'"):
        load_measurements(tmp_path / "replay")
    path = tmp_path / "replay" / "replay.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(RunError, match="not a replay card of version 1"):
        load_measurements(tmp_path / "replay")


def test_a_log_without_judged_rows_measures_nothing_and_says_so(tmp_path, clock):
    pieces = (("train", 0, 0, 20), ("validation", 0, 20, 20))
    dataset = make_dataset(tmp_path / "dataset", pieces)
    arms = fake_arms(tmp_path / "models", clock, dataset)
    card = replay(
        make_plan(),
        dataset,
        tmp_path / "models",
        tmp_path / "replay",
        quiet,
        arms=arms,
        clock=clock,
    )
    figures = card.legs["candidate/single_stream"]
    assert figures["rows"] == 0
    for name in ("rows_per_second", "activation_rate", "score_difference"):
        assert figures[name] is None
    assert card.legs["candidate/offline"]["activation_rate"] is None
    measured = load_measurements(tmp_path / "replay")
    assert measured.scores["judged"]["candidate"].rows == 0


CHILD = """
import sys, time
from pathlib import Path
from sma_core.dataset import PreparedDataset
from sma_pilot.replay.runner import replay
from tests.pilot.test_replay import real_plan

root, wanted = Path(sys.argv[1]), sys.argv[2]

def on_progress(stage, done, total):
    if f"{stage} {done}" == wanted:
        print("reached", flush=True)
        time.sleep(600)

dataset = PreparedDataset.open(root / "dataset")
replay(real_plan(), dataset, root / "models", root / "replay", on_progress)
print("finished", flush=True)
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("undisturbed")
    dataset = make_dataset(root / "dataset")
    fit_arms(real_plan(), dataset, root, root / "models", quiet)
    replay(real_plan(), dataset, root / "models", root / "whole", quiet)
    return root


@slow
def test_a_killed_replay_goes_on_and_ends_the_same(undisturbed):
    root = undisturbed
    command = [sys.executable, "-c", CHILD, str(root)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    # Two legs into the offline scenario, then half way through the streams.
    for place in ("replay candidate 0", "replay single stream 3"):
        with subprocess.Popen(
            [*command, place], stdout=subprocess.PIPE, text=True, env=environment
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline().strip() == "reached"
            child.send_signal(signal.SIGKILL)
    folder = root / "replay"
    before = finished_legs(folder)
    assert before
    assert not (folder / "replay.json").exists()
    dataset = PreparedDataset.open(root / "dataset")
    replay(real_plan(), dataset, root / "models", folder, quiet)
    assert before.items() <= finished_legs(folder).items()
    assert scores_of(folder).equals(scores_of(root / "whole"))
