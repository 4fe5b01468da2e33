"""The saved views of MLflow's page: what they filter, group by and draw is there."""

import json
from typing import Any

import pytest
from mlflow import MlflowClient
from tests.eval.studies import MLFLOW_WARNING, finished, tiny_study, tiny_trials

from sma_eval.dashboard import VIEW_TAG, study_views
from sma_eval.folder import StudyFolder
from sma_eval.records import Report, TrialRecord
from sma_eval.tracking import StudyRuns, default_uri

pytestmark = pytest.mark.filterwarnings(MLFLOW_WARNING)


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> list[StudyFolder]:
    """Two folders of one study whose trials have ended, in one store and so in one experiment."""
    root = tmp_path_factory.mktemp("views")
    folders = []
    for name in ("first", "second"):
        (root / name).mkdir()
        folder = StudyFolder.create(
            root / name, tiny_study(), tiny_trials(), root / "datasets" / "d", "abc"
        )
        runs = StudyRuns(folder, default_uri(folders[0] if folders else folder))
        for trial, accuracy in zip(folder.trials, (0.25, 0.75, 0.5, 1.0), strict=True):
            ran = TrialRecord(trial=trial, status="running", step=4)
            names = ("train_loss", "validation_accuracy", "activation_rate")
            runs.write(ran, [Report(step=4, metrics=dict.fromkeys(names, 0.5))])
            runs.write(finished(trial, accuracy, latency_seconds=2e-5, state_bytes=64), [])
        runs.end(status="FINISHED", description="table")
        folders.append(folder)
    return folders


@pytest.fixture(scope="module")
def client(studies: list[StudyFolder]) -> MlflowClient:
    return MlflowClient(tracking_uri=default_uri(studies[0]))


def experiment(client: MlflowClient, folder: StudyFolder) -> Any:
    return client.get_experiment_by_name(f"sma-eval/{folder.study.name}")


def state(client: MlflowClient, folder: StudyFolder, kind: str) -> dict[str, Any]:
    tags = experiment(client, folder).tags
    view = json.loads(tags[f"{VIEW_TAG}{kind}-{folder.key[:8]}"])
    return json.loads(view["state"])


@pytest.mark.parametrize("kind", ["arms", "trials"])
def test_a_view_finds_the_trials_of_its_own_study(
    client: MlflowClient, studies: list[StudyFolder], kind: str
) -> None:
    for folder in studies:
        view = state(client, folder, kind)
        direction = "ASC" if view["orderByAsc"] else "DESC"
        found = client.search_runs(
            [experiment(client, folder).experiment_id],
            filter_string=view["searchFilter"],
            order_by=[f"{view['orderByKey']} {direction}"],
        )
        assert {run.data.tags["sma.study"] for run in found} == {folder.key}
        assert [run.data.metrics["test/accuracy"] for run in found] == [1.0, 0.75, 0.5, 0.25]


def test_every_chart_and_column_shows_what_a_trial_has(
    client: MlflowClient, studies: list[StudyFolder]
) -> None:
    view = state(client, studies[0], "trials")
    run = client.search_runs(
        [experiment(client, studies[0]).experiment_id], filter_string=view["searchFilter"]
    )[0]
    sections = {section["uuid"] for section in view["compareRunSections"]}
    charts = view["compareRunCharts"]
    assert {chart["metricSectionId"] for chart in charts} == sections
    assert len({chart["uuid"] for chart in charts}) == len(charts)
    for chart in charts:
        axes = [chart["xaxis"], chart["yaxis"]] if chart["type"] == "SCATTER" else []
        for name in [axis["key"] for axis in axes] or [chart["metricKey"]]:
            assert name in run.data.metrics, name
    there = {"metrics": run.data.metrics, "params": run.data.params, "tags": run.data.tags}
    for column in view["selectedColumns"]:
        kind, _, name = column.partition(".")
        assert name.strip("`") in there[kind], column
    assert run.data.metrics["cost/latency_us"] == pytest.approx(20.0)


def test_the_groups_are_the_arms_folded_and_only_theirs(
    client: MlflowClient, studies: list[StudyFolder]
) -> None:
    grouped, flat = (state(client, studies[0], kind) for kind in ("arms", "trials"))
    (key,) = grouped["groupBy"]["groupByKeys"]
    runs = client.search_runs(
        [experiment(client, studies[0]).experiment_id], filter_string=grouped["searchFilter"]
    )
    arms = {run.data.tags[key["groupByData"]] for run in runs}
    assert grouped["groupsExpanded"] == {f"tag.sma.arm.{arm}": False for arm in arms}
    assert len(arms) == 2
    assert "groupBy" not in flat


def test_more_arms_than_a_tag_holds_are_not_folded() -> None:
    objective = tiny_study().objective
    arms = [f"arm {i} of a name that is rather long" for i in range(500)]
    views = study_views("0123456789", objective, arms)
    assert all(len(view) <= 20_000 for view in views.values())
    grouped = json.loads(json.loads(views[f"{VIEW_TAG}arms-01234567"])["state"])
    assert "groupBy" in grouped
    assert "groupsExpanded" not in grouped


def test_both_descriptions_link_the_views_and_a_users_own_stays(
    client: MlflowClient, studies: list[StudyFolder]
) -> None:
    where = experiment(client, studies[1])
    for folder in studies:
        (parent,) = client.search_runs(
            [where.experiment_id],
            filter_string=f"tags.`sma.study` = '{folder.key}' AND tags.`sma.status` IS NULL",
        )
        note = parent.data.tags["mlflow.note.content"]
        assert f"viewStateShareKey=arms-{folder.key[:8]}&" in note
        assert f"viewStateShareKey=trials-{folder.key[:8]}&" in note
        assert note.endswith("\n\ntable")
    name = "mlflow.note.content"
    assert f"arms-{studies[1].key[:8]}&" in where.tags[name]  # the newer study's
    client.set_experiment_tag(where.experiment_id, name, "Ask Ada before you use these.")
    StudyRuns(studies[0], default_uri(studies[0]))
    assert experiment(client, studies[0]).tags[name] == "Ask Ada before you use these."
