"""What MLflow says of a decision: tags, the note, versions of a registered model, its aliases."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from tests.pilot.decision_cases import (
    NAME,
    flip,
    give,
    make_quick,
    records,
)
from tests.pilot.mlflow_cases import tracking_uri

from sma_pilot.decision.record import load_decisions
from sma_pilot.decision.verification import verify
from sma_pilot.errors import RunError
from sma_pilot.registry import aliases_of
from sma_pilot.run_folder import RunFolder
from sma_pilot.store import store_uri
from sma_pilot.tracking import track

NOTE = "mlflow.note.content"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    make_quick(monkeypatch)


def version(plan: str, signed: str | None = None, decision: str = "go") -> dict[str, str]:
    tags = {"sma.plan_digest": plan}
    if signed is None:
        return tags
    record = {"sma.decision_sha256": f"{plan} {signed}", "sma.signed_at": signed}
    return tags | record | {"sma.decision": decision}


@pytest.mark.parametrize(
    ("versions", "candidate", "champion", "previous"),
    [
        ([], None, None, None),
        ([version("a")], 1, None, None),
        ([version("a"), version("b")], 2, None, None),
        ([version("a", "1")], None, 1, None),
        ([version("a", "1", "no-go")], None, None, None),
        ([version("a", "1"), version("b")], 2, 1, None),
        ([version("a", "1"), version("b", "2")], None, 2, 1),
        ([version("a", "2"), version("b", "1")], None, 1, 2),
        ([version("a", "1"), version("b", "3", "no-go"), version("c", "2")], None, 3, 1),
        ([version("a", "1"), version("a", "1")], None, 2, None),
        ([version("a"), version("a", "1")], None, 2, None),
        ([version("a", "1"), version("a")], 2, 1, None),
    ],
)
def test_aliases_follow_signatures(
    versions: list[dict[str, str]],
    candidate: int | None,
    champion: int | None,
    previous: int | None,
) -> None:
    found = aliases_of({i + 1: tags for i, tags in reversed(list(enumerate(versions)))})
    assert found == {
        "candidate": candidate,
        "champion": champion,
        "previous-champion": previous,
    }


@pytest.fixture
def client(empty_database: Path, tmp_path: Path) -> MlflowClient:
    """A store of its own beside the run folders."""
    (tmp_path / "runs").mkdir(exist_ok=True)
    shutil.copy2(empty_database, tmp_path / "runs" / "mlflow.db")
    return MlflowClient(tracking_uri=store_uri(tmp_path / "runs" / "mlflow.db"))


def aliases(client: MlflowClient) -> dict[str, str]:
    return {
        alias: str(number)
        for alias, number in client.get_registered_model("fabricated").aliases.items()
    }


def test_a_go_moves_the_champion_and_a_no_go_moves_it_back(
    runs: dict[str, RunFolder], client: MlflowClient
) -> None:
    uri = client.tracking_uri
    one, two, three = runs.values()
    for run in (one, two):
        track(run.path, uri)
    assert aliases(client) == {"candidate": "2"}
    give(one)
    run_id = track(one.path, uri)
    assert aliases(client) == {"candidate": "2", "champion": "1"}
    tags = client.get_run(run_id).data.tags
    made = load_decisions(one)[-1]
    wanted = {
        "sma.decision": "go",
        "sma.signed_by": NAME,
        "sma.signed_at": made.signed_at,
        "sma.override": "false",
        "sma.decision_sha256": made.sha256,
    }
    assert wanted.items() <= tags.items()
    assert tags["sma.since_signed"] == "unchanged"
    assert tags[NOTE].startswith("**✓ Signed: go** by Ada &#60;script&#62;")
    assert "\n\n**✓ Go.** The evidence" in tags[NOTE]
    champion = client.get_model_version_by_alias("fabricated", "champion")
    assert wanted.items() <= champion.tags.items()
    assert champion.tags["sma.verdict"] == "go"
    (candidate,) = client.search_runs(
        [client.get_run(run_id).info.experiment_id],
        filter_string=f"tags.`mlflow.parentRunId` = '{run_id}' and tags.`sma.arm` = 'candidate'",
    )
    assert champion.run_id == candidate.info.run_id
    model = next(
        own
        for own in client.search_logged_models([candidate.info.experiment_id])
        if own.source_run_id == candidate.info.run_id
    )
    assert champion.source == model.artifact_location
    with tracking_uri(uri):
        served = mlflow.pyfunc.load_model("models:/fabricated@champion")
    assert served.metadata.model_id == model.model_id
    assert json.loads(model.tags["mlflow.modelVersions"])[0]["name"] == "fabricated"

    give(two, "go", override=True)
    track(two.path, uri)
    assert aliases(client) == {"champion": "2", "previous-champion": "1"}
    for run in (one, two):
        track(run.path, uri)
    assert aliases(client) == {"champion": "2", "previous-champion": "1"}, "whoever came last"
    assert len(client.search_model_versions("name = 'fabricated'")) == 2, "doubled"

    give(two, "no-go", "It stood still.")
    run_id = track(two.path, uri)
    assert aliases(client) == {"champion": "1"}
    note = client.get_run(run_id).data.tags[NOTE]
    assert note.startswith("**✕ Signed: no-go**")
    assert "Before: **⚠ Signed: go, AGAINST the verdict no-go**" in note
    track(three.path, uri)
    assert aliases(client) == {"champion": "1", "candidate": "3"}


def test_a_run_changed_after_it_was_signed_moves_nothing(
    run: RunFolder, client: MlflowClient
) -> None:
    give(run)
    flip(run.report, 9)
    tags = client.get_run(track(run.path, client.tracking_uri)).data.tags
    assert tags["sma.since_signed"] == "changed"
    assert tags[NOTE].startswith("**⚠ The run was changed after it was signed.**")
    assert aliases(client) == {"candidate": "1"}


def test_a_candidate_that_is_no_sequence_model_is_registered_with_its_files(
    run: RunFolder, client: MlflowClient
) -> None:
    (run.models / "candidate" / "model.json").rename(run.models / "candidate" / "pca.json")
    give(run)
    track(run.path, client.tracking_uri)
    track(run.path, client.tracking_uri)
    champion = client.get_model_version_by_alias("fabricated", "champion")
    assert champion.run_id
    assert champion.source
    files = {file.path for file in client.list_artifacts(champion.run_id, "model")}
    assert files == {"model/pca.json", "model/weights.safetensors"}
    assert champion.source.endswith("/artifacts/model")


def test_a_folder_that_lost_its_decision_is_not_recorded(
    run: RunFolder, client: MlflowClient
) -> None:
    signed = give(run)
    run_id = track(run.path, client.tracking_uri)
    shutil.rmtree(run.decisions)
    with pytest.raises(RunError, match=f"knows of a decision.*{signed.sha256}"):
        track(run.path, client.tracking_uri)
    assert client.get_run(run_id).data.tags["sma.decision"] == "go"


def test_without_a_store_the_decision_stands_and_is_recorded_later(
    run: RunFolder, client: MlflowClient, typed: Any, tmp_path: Path
) -> None:
    database = tmp_path / "runs" / "mlflow.db"
    whole = database.read_bytes()
    database.write_bytes(b"no database")
    words = ("sign", str(run.path), "--decision", "go", "--by", "Ada", "--reason", "As judged.")
    code, out, err = typed(*words)
    assert (code, "signed   go by Ada" in out) == (2, True)
    assert "signed, but MLflow does not show it yet" in err
    assert "`sma-pilot track`" in err
    assert verify(run).is_intact
    database.write_bytes(whole)
    code, out, _ = typed("track", str(run.path))
    assert (code, client.get_run(out.strip()).data.tags["sma.signed_by"]) == (0, "Ada")
    assert typed(*words)[0] == 0
    assert len(records(run)) == 1
    assert aliases(client) == {"champion": "1"}
