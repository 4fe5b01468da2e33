"""A canary on machines of hostile names: who is served, a breach before a signature, a kill."""

import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from mlflow import MlflowClient
from polars.testing import assert_frame_equal
from tests.pilot import stage_cases
from tests.pilot.decision_cases import give
from tests.pilot.replay_cases import FakeClock, fake_arms, make_dataset, quiet
from tests.pilot.stage_cases import BORDERS, SEQUENCES, go_on, script, staged_plan

from sma_core.dataset import PreparedDataset
from sma_pilot import pilot
from sma_pilot.errors import DecisionError
from sma_pilot.run_folder import RunFolder
from sma_pilot.stages.course import take_look
from sma_pilot.stages.standing import standing
from sma_pilot.stages.windows import served_by_candidate

NAMES = ("press <script>alert(1)</script> & co", "mill/../7\nverdict: GO\x1b[31m")
STAGES: tuple[dict[str, Any], ...] = (
    {"kind": "offline", "until": 0.65},
    {"kind": "canary", "share": 0.6, "looks": 2, "signature_required": True},
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = RunFolder.create(staged_plan(*STAGES), tmp_path_factory.mktemp("made"))
    dataset = make_dataset(
        run.dataset, SEQUENCES, missing=False, provenance={"borders_ns": BORDERS}, named=NAMES
    )
    fake_arms(run.models, FakeClock(), dataset)
    return run


@pytest.fixture
def run(made: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(made.path, tmp_path / "runs" / made.path.name)))


def judged_scores(run: RunFolder, look: int) -> pl.DataFrame:
    """Return what the candidate scored of a canary's look."""
    parts = run.at("canary").look(look) / "scores" / "part-candidate-0*.parquet"
    frame = pl.read_parquet(parts).filter(pl.col("slice") == "judged")
    return frame.with_columns(pl.col("entity").cast(pl.String)).sort("entity", "time")


def test_only_the_machines_that_were_drawn_are_replayed(run: RunFolder, monkeypatch) -> None:
    script(monkeypatch, {})
    now = go_on(run)
    assert [own.state for own in now.stages] == ["go", "pending"]
    drawn = served_by_candidate(now.plan, now.plan.stage("canary"), NAMES)
    assert drawn is not None
    assert len(drawn) == 1, "a share that draws both would show nothing"
    for look in (1, 2):
        assert set(judged_scores(run, look)["entity"]) == {NAMES[index] for index in drawn}


def test_a_breach_stops_a_canary_while_its_signature_is_pending(
    run: RunFolder, monkeypatch
) -> None:
    script(monkeypatch, {("canary", 2): "breach"})
    dataset = PreparedDataset.open(run.dataset)
    for _ in range(2):
        take_look(standing(run), dataset, run, quiet)
    assert (standing(run).current.stage.name, standing(run).current.state) == ("canary", "pending")
    now = go_on(run)
    assert (now.current.state, now.verdict) == ("stopped", "no-go")
    with pytest.raises(DecisionError, match="no signature starts it again"):
        give(run.at("canary"))


def test_a_killed_canary_goes_on_to_the_same_scores(
    run: RunFolder, made: RunFolder, tmp_path: Path, monkeypatch
) -> None:
    script(monkeypatch, {})
    other = RunFolder(Path(shutil.copytree(made.path, tmp_path / "other")))
    go_on(other)
    dataset = PreparedDataset.open(run.dataset)
    take_look(standing(run), dataset, run, quiet)

    def kill(stage: str, done: int, total: int | None) -> None:
        if stage == "replay candidate" and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take_look(standing(run), dataset, run, kill)
    assert not run.at("canary").looks()
    now = go_on(run)
    assert now.current.state == "pending"
    for look in (1, 2):
        assert_frame_equal(judged_scores(run, look), judged_scores(other, look))


def test_hostile_names_stay_text_on_pages_in_mlflow_and_on_the_terminal(
    run: RunFolder, monkeypatch, tmp_path: Path, empty_database: Path, typed: Any
) -> None:
    # As the judge tells of a fallback: what comes from a log is in quotes.
    told = f"The guard fell back for entity {NAMES[0]!r}, then for {NAMES[1]!r}."
    monkeypatch.setattr(stage_cases, "BREACH", told)
    script(monkeypatch, {("canary", 1): "breach"})
    go_on(run)
    shutil.copy2(empty_database, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    run_id = pilot.track(run, uri)
    for page in (pilot.report(run), pilot.report(run.at("canary"))):
        text = page.read_text(encoding="utf-8")
        assert "&lt;script&gt;alert(1)" in text
        assert "<script>alert(1)" not in text
    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_run(run_id).info.experiment_id])
    notes = [own.data.tags.get("mlflow.note.content", "") for own in runs]
    assert sum("alert(1)" in note.replace("\\", "") for note in notes) >= 2, "pilot and stage"
    assert not any("<script>" in note for note in notes)
    code, out, _ = typed("status", str(run.path))
    assert code == 0
    assert "alert(1)" in out
    assert "\x1b[31m" not in out
    assert "\nverdict: GO" not in out
