"""Assessing a log before training: the answer on logs of known difficulty, and its parts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as some
from tests.pilot.assess_cases import (
    CHANNELS,
    assess_values,
    noise,
    plan_of,
    regimes,
    spikes,
    write_dataset,
)
from tests.pilot.test_report import LOADING_TAGS, Page

from sma_core.costs import step_flops
from sma_pilot.assess import Assessment, Ceilings, read_ceilings
from sma_pilot.assess.concentration import Coverage, hard_runs
from sma_pilot.assess.difficulty import Foresight
from sma_pilot.assess.forecasts import LinearAutoregression, errors
from sma_pilot.assess.page import assessment_text, write_assessment
from sma_pilot.assess.plots import choose_stretch
from sma_pilot.assess.stretches import Stretch, stretches
from sma_pilot.errors import PlanError, RunError

CLOSE = 1e-9
HOSTILE = "press <script>alert(1)</script> $\\frac"
errors_of_steps = some.arrays(
    np.float64, st.integers(1, 60), elements=st.floats(0, 100, allow_subnormal=False)
)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Assessment]:
    root = tmp_path_factory.mktemp("logs")
    values = {"regimes": regimes(), "noise": noise(), "spikes": spikes()}
    return {
        name: assess_values(root / name, own, entities=(HOSTILE,)) for name, own in values.items()
    }


# The answer.


def test_rare_hard_stretches_let_much_be_saved(logs: dict[str, Assessment]):
    answer = logs["regimes"].answer
    assert answer.word == "much"
    assert answer.rate < 0.15  # a tenth of the steps is hard
    assert answer.saved > 0.4
    assert "the rows before them announce them:" in answer.reasons[0]
    assert logs["regimes"].runs.clustering > 2


def test_white_noise_lets_little_be_saved(logs: dict[str, Assessment]):
    found = logs["noise"]
    assert found.answer.word == "little"
    assert found.answer.rate == pytest.approx(0.75, abs=0.06)  # as many as by chance
    assert found.foreseen.gini == pytest.approx(0, abs=0.1)
    assert found.runs.clustering == pytest.approx(1, abs=0.1)
    assert any("next to nothing" in caution for caution in found.answer.cautions)


def test_spikes_that_nothing_announces_let_little_be_saved(logs: dict[str, Assessment]):
    found = logs["spikes"]
    assert found.answer.word == "little"
    assert found.hindsight.needed(0.75) < 0.1
    assert "come unannounced" in found.answer.reasons[0]


def test_a_high_floor_is_said(tmp_path: Path):
    pool = [{"kind": "local_convolution", "kernel_size": 2}]
    plan = plan_of(width=64, states=64, pool=pool, layers=4)
    answer = assess_values(tmp_path / "set", regimes(), plan).answer
    assert answer.rate < 0.15
    assert (answer.word, answer.saved < 0.4) == ("some", True) or answer.word == "little"
    assert "every step, whatever is skipped" in " ".join(answer.reasons)


def test_a_log_that_a_cheap_forecast_explains_is_said(tmp_path: Path):
    still = np.repeat(np.sin(np.arange(3000) / 300)[:, None], CHANNELS, axis=1)
    found = assess_values(tmp_path / "set", still.astype(np.float32))
    assert any("already explains" in caution for caution in found.answer.cautions)


def test_a_constant_log_has_nothing_left_to_learn(tmp_path: Path):
    found = assess_values(tmp_path / "set", np.zeros((600, CHANNELS), np.float32))
    assert found.answer.rate == 0
    assert found.difficulty.explained is None
    json.dumps(found.to_dict(), allow_nan=False)
    assert choose_stretch(found.difficulty)[0] >= 0
    assert any("rest" in caution for caution in found.answer.cautions)


def test_rows_that_will_judge_are_not_read(tmp_path: Path):
    values = regimes()
    other = values.copy()
    other[int(0.8 * len(values)) :] = 7.0
    found = [
        assess_values(tmp_path / str(i), own).to_dict() for i, own in enumerate((values, other))
    ]
    for document in found:
        del document["dataset_digest"]
    assert found[0] == found[1]


def test_a_candidate_that_does_not_route_is_refused(tmp_path: Path):
    for kind in ("transformer", "pca"):
        with pytest.raises(PlanError, match=f"candidate.kind: '{kind}' does not route"):
            assess_values(tmp_path / kind, noise(300), plan_of(kind=kind))


# Its parts.


def stretch_of(values: np.ndarray, first: int = 0, ages: np.ndarray | None = None) -> Stretch:
    rows = len(values)
    age = np.arange(rows) if ages is None else ages
    return Stretch(
        observed=values.astype(np.float32),
        values=values.astype(np.float64),
        time=np.arange(rows, dtype=np.int64),
        sequence=np.cumsum(age == 0) - 1,
        age=age,
        first=first,
    )


@settings(deadline=None, max_examples=20)
@given(cut=st.integers(20, 180), seed=st.integers(0, 100))
def test_nothing_flows_back_in_time(cut: int, seed: int):
    model, foresight = LinearAutoregression(CHANNELS), Foresight(CHANNELS)
    learnt = stretch_of(noise(200, seed))
    model.add(learnt)
    model.finish()
    foresight.add(learnt, errors(learnt, model.predict(learnt)))
    foresight.finish()
    values = noise(200, seed + 1).astype(np.float64)
    changed = values.copy()
    changed[cut:] += 5
    found = []
    for own in (values, changed):
        stretch = stretch_of(own)
        predicted = model.predict(stretch)
        found.append((predicted, foresight.foresee(stretch, errors(stretch, predicted))))
    for before, after in zip(*found, strict=True):
        np.testing.assert_array_equal(before[: cut + 1], after[: cut + 1])
        assert not np.array_equal(before[cut + 1 :], after[cut + 1 :])


def test_an_autoregression_is_found_again():
    generator = np.random.default_rng(3)
    values = np.zeros((4000, 2))
    for step in range(1, 4000):
        carried = 0.9 * values[step - 1, 0], 0.5 * values[step - 1, 0]
        values[step] = np.array(carried) + 0.1 * generator.normal(size=2)
    model = LinearAutoregression(2)
    stretch = stretch_of(values)
    model.add(stretch)
    model.finish()
    error = errors(stretch, model.predict(stretch))
    assert np.nanmean(error) == pytest.approx(0.01, rel=0.1)  # what cannot be known
    assert np.isnan(error[0])


def test_gaps_and_sequence_borders_by_hand(tmp_path: Path):
    values = np.array([[1.0], [np.nan], [3.0], [np.nan], [5.0]], np.float32)
    dataset = write_dataset(tmp_path / "set", np.repeat(values, 3, axis=0), ("a", "b"))
    (whole,) = stretches(dataset.split("train"), 100, 1000)
    assert whole.observed[:, 0].tolist()[:3] == [1, 1, 1]
    assert whole.values[:, 0].tolist() == [1, 1, 1, 1, 1, 1] * 2  # carried on within an entity
    assert whole.age.tolist() == [0, 1, 2, 3, 4, 5] * 2
    assert whole.before(2)[:, 0].tolist() == [0, 0, 1, 1, 1, 1] * 2
    parts = list(stretches(dataset.split("train"), 5, 1000))
    assert [part.first for part in parts] == [0, 5, 10]
    fresh = np.concatenate([part.values[part.first :] for part in parts])
    np.testing.assert_array_equal(fresh, whole.values)
    sampled = list(stretches(dataset.split("train"), 2, 4))
    assert len(sampled) == 2  # of six, evenly spread: the first and the last


@settings(deadline=None, max_examples=60)
@given(error=errors_of_steps, data=st.data())
def test_hindsight_bounds_every_order(error: np.ndarray, data: Any):
    key = data.draw(some.arrays(np.float64, error.size, elements=st.floats(-5, 5)))
    shares = np.linspace(0, 1, 11)
    best, other = Coverage(error, error), Coverage(error, key)
    slack = 1e-9
    assert (best(shares) >= other(shares) - slack).all()
    assert (best(shares) >= shares - slack).all()
    assert (np.diff(other(shares)) >= -slack).all()
    assert other(np.array([1.0]))[0] == pytest.approx(1, rel=CLOSE)
    if error.sum() > 0:
        for held in (0.25, 0.75):
            needed = other.needed(held)
            assert other(np.array([needed]))[0] == pytest.approx(held, rel=1e-6)
            assert best.needed(held) <= needed + slack


def test_coverage_by_hand():
    one_holds_all = Coverage(np.array([0.0, 0, 4, 0]), np.array([0.0, 0, 4, 0]))
    assert one_holds_all(np.array([0.25, 0.125])).tolist() == [1.0, 0.5]
    assert one_holds_all.needed(0.75) == pytest.approx(0.1875, rel=CLOSE)
    assert one_holds_all.gini == pytest.approx(0.75, rel=CLOSE)
    even = Coverage(np.ones(4), np.array([3.0, 1, 2, 0]))
    assert even.needed(0.75) == pytest.approx(0.75, rel=CLOSE)
    assert even.gini == pytest.approx(0, abs=CLOSE)
    blind = Coverage(np.array([9.0, 1, 1, 1]), np.zeros(4))
    assert blind.needed(0.75) == pytest.approx(0.75, rel=CLOSE)  # equal keys tell nothing


def test_hard_runs_by_hand():
    error = np.array([9.0, 9, 0, 0, 9, 0, 9, 9, 9, 0, 0, 0])
    together = hard_runs(error, np.zeros(12, np.int64))
    assert (together.rate, together.count, together.longest) == (0.5, 3, 3)
    assert together.mean_length == pytest.approx(2, rel=CLOSE)
    assert together.by_chance == pytest.approx(2, rel=CLOSE)
    apart = hard_runs(error, np.array([0, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2]))
    assert (apart.count, apart.longest) == (5, 2)  # broken between steps 0 and 1, and 7 and 8
    none = hard_runs(np.ones(5), np.zeros(5, np.int64))
    assert (none.rate, none.count, none.mean_length) == (0, 0, 0)


def test_costs_follow_the_cost_model(logs: dict[str, Assessment]):
    costs = logs["regimes"].costs
    rates = [0.0, 0.1, 0.5, 1.0]
    found = [costs(rate) for rate in rates]
    assert (found[-1].flops, found[-1].bytes) == (1.0, 1.0)
    assert [one.flops for one in found] == sorted(one.flops for one in found)
    assert [one.bytes for one in found] == sorted(one.bytes for one in found)
    pool = len(costs.config.pool)
    half = step_flops(costs.config, [[0.5] * pool] * costs.config.layers)
    whole = step_flops(costs.config, [[1.0] * pool] * costs.config.layers)
    # The table of a pass counts as a streaming step does, once windows are full.
    assert found[2].flops == pytest.approx(half / whole, rel=0.02)
    assert sum(costs.part_shares().values()) == pytest.approx(1, rel=CLOSE)
    assert found[0].time is None


def test_ceilings_of_a_machine_add_times(tmp_path: Path):
    file = tmp_path / "floor.json"
    file.write_text(json.dumps({"ceilings": {"flops": 1e12, "bytes": 1e11}, "machine": {}}))
    found = assess_values(tmp_path / "set", regimes(1500), None, read_ceilings(file))
    times = [saving.time for saving in found.savings]
    assert times[-1] == 1.0
    assert times == sorted(times, key=lambda time: time or 0)
    assert "least time" in assessment_text(found)
    # Where moving is free, time is work.
    free = replace(found.ceilings or Ceilings(1, 1, ""), bytes=1e30)
    bound = assess_values(tmp_path / "again", regimes(1500), None, free)
    assert bound.costs(0.1).time == pytest.approx(bound.costs(0.1).flops, rel=1e-6)
    for content in ("", "{}", '{"ceilings": {"flops": 0, "bytes": 1}}', "[]"):
        file.write_text(content)
        with pytest.raises(RunError, match="bench floor --json"):
            read_ceilings(file)
    with pytest.raises(RunError, match="cannot be read"):
        read_ceilings(tmp_path / "absent.json")


# What is shown.


def test_the_page_says_it_all_and_loads_nothing(tmp_path: Path, logs: dict[str, Assessment]):
    found, path = logs["spikes"], tmp_path / "page.html"
    write_assessment(found, path)
    page, text = Page(path.read_text(encoding="utf-8")), assessment_text(found)
    assert "Little" in page.text
    for line in (*found.answer.reasons, *found.answer.cautions):
        assert line in page.text
        assert " ".join(line.split()[:5]) in text
    assert page.tags["svg"] == 3
    assert not LOADING_TAGS & set(page.tags)
    assert HOSTILE in page.text
    assert len(page.html) < 400_000


def test_the_stretch_shown_is_one_with_hard_steps(logs: dict[str, Assessment]):
    own = logs["regimes"].difficulty
    start, stop = choose_stretch(own)
    assert 0 <= start < stop <= own.error.size
    assert (own.run[start:stop] == own.run[start]).all()
    assert (own.error[start:stop] > own.error.mean()).any()


# The command.


def write_log(folder: Path) -> None:
    values = regimes(1500)
    columns = {f"c{i}": values[:, i] for i in range(CHANNELS)}
    minutes = pl.datetime_range(
        pl.datetime(2024, 1, 1), pl.datetime(2024, 1, 2, 0, 59), "1m", eager=True
    )
    pl.DataFrame({"t": minutes, **columns}).write_csv(folder / "press.csv")


def test_a_bare_log_and_its_plan_give_one_answer(tmp_path: Path, typed: Any, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    write_log(tmp_path)
    code, out, err = typed("assess", "press.csv", "--json")
    assert code == 0, err
    bare = json.loads(out)
    assert (bare["format"], bare["version"]) == ("sma.assessment", 1)
    assert bare["answer"]["word"] == "much"
    (folder,) = Path("runs").iterdir()
    assert json.loads((folder / "assessment.json").read_text()) == bare
    assert (folder / "assessment.html").exists()
    assert typed("init", "press.csv")[0] == 0
    # The same plan, so the same folder and the same prepared data set.
    code, out, err = typed("assess", "pilot.toml")
    assert code == 0, err
    assert "assessment of press: Much." in out
    assert str(folder / "assessment.html") in out
    assert json.loads((folder / "assessment.json").read_text()) == bare


def test_bad_input_is_one_message(tmp_path: Path, typed: Any, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    for words, message in (
        (("assess", "nothing.csv"), "no such file"),
        (("assess", "absent.toml"), "cannot read the plan"),
        (("assess", "pilot.toml", "--time", "t"), "a plan names its own columns"),
        (("assess", "x.csv", "--floor", "absent.json"), "cannot be read"),
    ):
        code, out, err = typed(*words)
        assert code == 2
        assert out == ""
        assert message in err
        assert not Path("runs").exists()
