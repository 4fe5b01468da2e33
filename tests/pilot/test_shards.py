"""A replay in shards is the replay, byte for byte, whatever was split, stopped or lost."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.pilot.replay_cases import (
    FakeArm,
    FakeClock,
    SumScorer,
    fake_arms,
    make_dataset,
    make_plan,
    quiet,
)
from tests.pilot.shard_cases import (
    BATCHES,
    HereWorkers,
    contents,
    many_machines,
    no_workers,
    sharding,
)
from tests.pilot.test_replay import real_plan
from typer.testing import CliRunner

from sma_core.dataset import PreparedDataset
from sma_core.model import build_model
from sma_pilot import cli
from sma_pilot.arms.neural import SMAArm
from sma_pilot.arms.neural_scorer import ForecastScorer
from sma_pilot.errors import PilotError, RunError
from sma_pilot.judge.verdict import judge
from sma_pilot.plan import Plan
from sma_pilot.replay import offline, parts, shards
from sma_pilot.replay import sharding as sharding_module
from sma_pilot.replay.card import ReplayCard
from sma_pilot.replay.environment import environment
from sma_pilot.replay.measurements_io import load_measurements
from sma_pilot.replay.runner import replay
from sma_pilot.replay.sharding import Sharding, WorkerLostError, shards_of
from sma_pilot.replay.shards import ShardJob, score_shard
from sma_pilot.replay.timeline import Timeline, batches_of

ROWS_PER_PART = 500


def quick_plan() -> Plan:
    """As few streamed events as there can be: what is split here is the offline scenario."""
    plan = make_plan(passes=1, single_stream_events=4, warmup_events=1)
    document = plan.model_dump(mode="json")
    document["quality"]["resamples"] = 200
    return Plan.model_validate(document)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> PreparedDataset:
    return make_dataset(tmp_path_factory.mktemp("many") / "dataset", many_machines())


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Parts that end in the middle of a chunk, as parts of a long log do."""
    monkeypatch.setattr(parts, "_ROWS_PER_PART", ROWS_PER_PART)


@pytest.fixture
def run(tmp_path, dataset):
    """Replay fakes into a folder; by `split` if given."""

    def go(folder: str, split: Sharding | None = None, arms=None, on_progress=quiet):
        clock = FakeClock()
        known = fake_arms(tmp_path / "models", clock, dataset)
        return replay(
            quick_plan(),
            dataset,
            tmp_path / "models",
            tmp_path / folder,
            on_progress,
            arms=known | (arms or {}),
            sharding=split,
            clock=clock,
        )

    return go


@pytest.fixture(scope="module")
def whole(tmp_path_factory, dataset) -> Path:
    """A folder of the same replay without shards; nobody writes to it."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "_ROWS_PER_PART", ROWS_PER_PART)
        clock = FakeClock()
        arms = fake_arms(root / "models", clock, dataset)
        replay(
            quick_plan(), dataset, root / "models", root / "replay", quiet, arms=arms, clock=clock
        )
    return root / "replay"


# How batches are dealt.


@given(st.lists(st.integers(1, 1000), max_size=30), st.integers(1, 12))
def test_every_batch_is_dealt_once_and_evenly(rows, shards):
    dealt = shards_of(rows, shards)
    assert sorted(place for own in dealt for place in own) == list(range(len(rows)))
    assert len(dealt) == min(shards, len(rows))
    assert all(dealt)
    if rows:
        longest = max(sum(rows[place] for place in own) for own in dealt)
        assert longest <= max(rows) + sum(rows) / shards  # as any dealing to the emptiest


def test_dealing_by_hand():
    # 9 and 8 begin; 4 joins the 8, 3 the 9, and of two with 12 rows the first takes the 2.
    assert shards_of([3, 9, 4, 8, 2], 2) == [(0, 1, 4), (2, 3)]


# The same numbers.


@pytest.mark.parametrize("count", [1, 2, 50])
def test_any_number_of_shards_leaves_what_no_shard_leaves(run, tmp_path, whole, count):
    card = run("split", sharding(HereWorkers(), count))
    assert contents(tmp_path / "split") == contents(whole)
    assert not (tmp_path / "split" / "shards").exists()
    before = ReplayCard.load(whole / "replay.json")
    for arm in ("candidate", "incumbent", "incumbent_again"):
        mine, theirs = (own.legs[f"{arm}/offline"] for own in (before, card))
        assert theirs["timed_rows"] == mine["rows"] == theirs["rows"]
        for name in ("activation_rate", "submodule_rates", "seconds", "rows_per_second"):
            assert theirs[name] == mine[name], (arm, name)


def test_the_verdict_and_every_figure_are_the_same(run, tmp_path, whole):
    run("split", sharding(HereWorkers(), 2))
    plan = quick_plan()
    one, other = (
        judge(load_measurements(path), plan).to_dict() for path in (whole, tmp_path / "split")
    )
    sampled = "_peak_rss_bytes"  # of this process, which has done more by now
    for result in (one, other):
        result["kpis"] = [kpi for kpi in result["kpis"] if not kpi["name"].endswith(sampled)]
    assert one == other


def test_parts_end_in_the_middle_of_batches(whole, dataset):
    rows = [
        pl.scan_parquet(path).select(pl.len()).collect().item()
        for path in sorted((whole / "routing").glob("*"))
    ]
    assert len(rows) > 2
    assert set(rows[:-1]) == {ROWS_PER_PART}
    batches = batches_of(Timeline(dataset, 3600 * 10**9).lanes)
    assert [len(batch) for batch in batches][:2] == [8, 8]
    assert len(batches) == BATCHES


def test_a_real_model_gives_the_same_bits_in_shards(run, tmp_path, dataset):
    torch.manual_seed(0)
    config = SMAArm(real_plan(), "candidate", Path()).config(dataset.card)
    model = build_model(config).eval()
    arm = FakeArm("candidate", lambda: ForecastScorer(model, smoothing=5))
    cards = [
        run(name, split, arms={"candidate": arm})
        for name, split in (("whole", None), ("split", sharding(HereWorkers(room=2))))
    ]
    assert contents(tmp_path / "split") == contents(tmp_path / "whole")
    rates = [card.legs["candidate/offline"]["submodule_rates"] for card in cards]
    assert rates[0] == rates[1] != {}


def test_throughput_is_taken_here_over_the_first_rows_alone(run, monkeypatch):
    monkeypatch.setattr(offline, "TIMED_ROWS", 300)
    card = run("split", sharding(HereWorkers()))
    figures = card.legs["candidate/offline"]
    assert 300 <= figures["timed_rows"] < figures["rows"]
    assert figures["seconds"] == pytest.approx(figures["timed_rows"] * 10 / 1e9)
    assert figures["rows_per_second"] == pytest.approx(1e8)


def test_nobody_is_asked_for_when_the_offline_legs_are_finished(run, tmp_path, whole):
    with pytest.raises(RuntimeError, match="stop"):
        run("split", sharding(HereWorkers()), on_progress=stop_at_the_streams)
    run("split", Sharding(no_workers))
    assert contents(tmp_path / "split") == contents(whole)


def stop_at_the_streams(stage: str, done: int, total: int | None) -> None:
    if stage == "replay single stream":
        raise RuntimeError("stop")


def test_workers_are_gone_before_a_stream_is_timed(run):
    here: list[str] = []

    class Coming(HereWorkers):
        def __enter__(self):
            here.append("joined")
            return self

        def __exit__(self, *_: object):
            here.append("left")

    def on_progress(stage: str, done: int, total: int | None) -> None:
        timed = stage.startswith("time ") or stage == "replay single stream"
        assert not timed or here in ([], ["joined", "left"]), stage

    run("split", Sharding(Coming), on_progress=on_progress)
    assert here == ["joined", "left"]


# Stopped, failed, lost.


def interrupted_at(call: int):
    def before(number: int, job: ShardJob) -> None:
        if number == call:
            raise KeyboardInterrupt

    return before


@pytest.mark.parametrize("again", [1, 3, None])
def test_a_stopped_replay_goes_on_with_the_batches_that_are_missing(run, tmp_path, whole, again):
    workers = HereWorkers(before=interrupted_at(4))
    with pytest.raises(KeyboardInterrupt):
        run("split", sharding(workers, 3))
    assert workers.stopped == [3]  # of the second arm, 5 was through and 4 was stopped
    kept = sorted((tmp_path / "split" / "shards").glob("*/[0-9]*"))
    assert kept
    if again is None:  # without workers, the leg runs from its start
        run("split")
    else:
        workers = HereWorkers()
        run("split", sharding(workers, again))
        first = workers.jobs[0]
        done = {int(path.name) for path in kept if path.parent.name == first.arm}
        mine = [job for job in workers.jobs if job.arm == first.arm]
        assert len(mine) <= again
        asked = {number for job in mine for number in job.batches}
        assert asked.isdisjoint(done)
        assert asked
    assert contents(tmp_path / "split") == contents(whole)
    assert not (tmp_path / "split" / "shards").exists()


class Stumbling(SumScorer):
    """Cannot score a sequence that begins as a given one does."""

    start_of: Any = None

    def score(self, inputs, state):
        assert inputs.numeric is not None
        if (inputs.numeric[:, 0] == self.start_of).all(-1).any():
            raise ZeroDivisionError("a reading of <0> & less")
        return super().score(inputs, state)


@pytest.fixture
def stumbling(dataset):
    """An arm that stumbles over one machine, and that machine's name."""
    timeline = Timeline(dataset, 0)
    rows = [(s, timeline.read(s, 0, 1).numeric) for s in timeline.stretches]
    stretch, begin = next(
        (s, x) for s, x in rows if x is not None and x.isfinite().all() and s.entity == 11
    )
    assert begin is not None
    scorer = type("Known", (Stumbling,), {"start_of": begin[0]})
    return FakeArm("candidate", lambda: scorer(FakeClock())), dataset.card.entities[stretch.entity]


@pytest.mark.parametrize("where", ["in a shard", "while it is timed", "without shards"])
def test_a_failure_names_the_entity_and_the_error(run, tmp_path, stumbling, monkeypatch, where):
    arm, machine = stumbling
    if where == "in a shard":
        monkeypatch.setattr(offline, "TIMED_ROWS", 1)
    split = None if where == "without shards" else sharding(HereWorkers(), 2)
    with pytest.raises(RunError) as caught:
        run("split", split, arms={"candidate": arm})
    message = str(caught.value)
    assert f"replay candidate: entity {machine!r} cannot be scored" in message
    assert "ZeroDivisionError: a reading of <0> & less" in message
    assert "rows from 2023-11-" in message
    others = list((tmp_path / "split" / "shards" / "candidate").glob("*"))
    assert not [path for path in others if not path.name.isdigit()]  # no half of a batch


def test_what_fails_in_company_alone_is_told_of_all(run, dataset):
    class Crowded(SumScorer):
        def score(self, inputs, state):
            if inputs.batch == 3:  # what is left over of 19 machines and 8 lanes at a time
                raise RuntimeError("three is a crowd")
            return super().score(inputs, state)

    timeline = Timeline(dataset, 3600 * 10**9)
    assert {len(batch) for batch in batches_of(timeline.lanes)} >= {8}
    arm = FakeArm("candidate", lambda: Crowded(FakeClock()))
    with pytest.raises(RunError, match=r"one of the entities 'machine.*three is a crowd"):
        run("split", sharding(HereWorkers(), 2), arms={"candidate": arm})


def lost(*calls: int):
    def before(number: int, job: ShardJob) -> None:
        if number in calls:
            raise WorkerLostError("killed by signal 9")

    return before


def test_a_lost_worker_is_replaced(run, tmp_path, whole):
    workers = HereWorkers(before=lost(0, 2))
    run("split", sharding(workers, 2))
    assert contents(tmp_path / "split") == contents(whole)
    assert len(workers.jobs) == 3 * 2 + 2


def test_workers_lost_over_and_over_end_the_replay_and_nothing_is_lost(run, tmp_path, whole):
    workers = HereWorkers(before=lost(0, 1, 2, 3, 4, 5))
    with pytest.raises(RunError, match=r"lost its worker 3 times: killed by signal 9"):
        run("split", sharding(workers, 1))
    assert len(workers.jobs) == 3
    run("split", sharding(HereWorkers(), 4))
    assert contents(tmp_path / "split") == contents(whole)


def test_a_worker_that_was_given_up_and_lives_on_changes_nothing(run, tmp_path, whole, monkeypatch):
    workers = HereWorkers()
    real, twice = shards._score_batch, []

    def by_two(job, scorer, timeline, number, batch):
        real(job, scorer, timeline, number, batch)
        twice.append(sorted((job.batch(number) / "scores").iterdir()))
        real(job, scorer, timeline, number, batch)
        assert sorted((job.batch(number) / "scores").iterdir()) == twice[-1]
        assert not list(job.place.glob(".*"))

    monkeypatch.setattr(shards, "_score_batch", by_two)
    run("split", sharding(workers, 2))
    assert twice
    assert contents(tmp_path / "split") == contents(whole)


# What a worker finds where it runs.


@pytest.fixture
def job(run, tmp_path, dataset) -> ShardJob:
    """A shard of a replay that has begun."""
    workers = HereWorkers(before=interrupted_at(0))
    with pytest.raises(KeyboardInterrupt):
        run("split", sharding(workers))
    return workers.jobs[0]


def test_a_worker_that_does_not_see_the_folder_says_so(job, tmp_path):
    with pytest.raises(RunError, match="a worker does not find this replay there; --out must"):
        score_shard(replace(job, folder=tmp_path / "elsewhere"))
    shutil.copytree(tmp_path / "split", tmp_path / "other")
    path = tmp_path / "other" / "begun.json"
    path.write_text(path.read_text().replace(job.begun["plan_digest"], "0" * 64))
    with pytest.raises(RunError, match="a worker does not find this replay there"):
        score_shard(replace(job, folder=tmp_path / "other"))


@pytest.mark.parametrize("part", ["cpu", "torch"])
def test_a_worker_of_another_kind_is_refused(job, monkeypatch, part):
    monkeypatch.setattr(
        shards, "environment", lambda *how: environment(*how) | {part: "another one"}
    )
    with pytest.raises(RunError, match=f"a worker has {part} 'another one', the machine that"):
        score_shard(job)


def test_batches_that_never_appear_are_missed(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sharding_module, "_APPEAR_SECONDS", 0.0)
    workers = HereWorkers()
    monkeypatch.setattr(workers, "end", lambda call: None)
    with pytest.raises(
        RunError, match=f"{BATCHES} of {BATCHES} batches were scored and are not seen here"
    ):
        run("split", sharding(workers))


def test_a_damaged_batch_is_told_of(run, tmp_path):
    def damage(number: int, job: ShardJob) -> None:
        for part in job.place.glob("*/scores/*.parquet"):
            part.write_bytes(b"cut short")

    with pytest.raises(RunError, match=r"shards/\w+/00000\d: damaged .*; delete it and replay"):
        run("split", sharding(HereWorkers(before=damage), 2))


# The command line.


@pytest.mark.parametrize("command", ["replay", "run"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shards", "3"], "--shards: say over which cluster with --address"),
        (["--address", "head"], "--address head: give auto, local, host:port"),
        (["--address", "http://head:8265"], "--address http://head:8265: give auto"),
        (["--address", "ray://head"], "--address ray://head: give auto"),
        (["--address", ""], "--address : give auto"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_made(tmp_path, command, options, message):
    plan = tmp_path / "plan.toml"
    out = tmp_path / "runs"
    done = CliRunner().invoke(cli.app, [command, str(plan), "--out", str(out), *options])
    assert isinstance(done.exception, PilotError)
    assert message in str(done.exception)
    assert not out.exists()


def test_without_ray_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "sma_pilot.replay.cluster", raising=False)
    done = CliRunner().invoke(cli.app, ["replay", str(tmp_path / "p.toml"), "--address", "auto"])
    assert isinstance(done.exception, PilotError)
    assert 'pip install "sma-pilot[cluster]"' in str(done.exception)
