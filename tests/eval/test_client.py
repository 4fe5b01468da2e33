"""Sweeps by the Ray client: what is written where, who hears of it, what is said when it fails.

Ray's part is played by a stand-in that does here and at once what a cluster would do elsewhere;
`test_ray_for_real.py` has the real one.
"""

import fcntl
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayTaskError, TaskCancelledError, WorkerCrashedError
from tests.eval.studies import finished, tiny_study, tiny_trials

from sma_eval.errors import FolderError, StudyError
from sma_eval.folder import StudyFolder
from sma_eval.records import Report, TrialRecord
from sma_eval.resources import Resources
from sma_eval.sweep import client, cluster


class Remote:
    """A function, or a class and its methods, called as Ray has them called."""

    def __init__(self, what: Any) -> None:
        self._what = what

    def __getattr__(self, method: str) -> "Remote":
        return Remote(getattr(self._what, method))

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        try:
            told = self._what(*args, **kwargs)
        except StudyError as error:
            return RayTaskError(self._what.__name__, "", error)
        return Remote(told) if isinstance(self._what, type) else told


class Ray(SimpleNamespace):
    def __init__(self) -> None:
        self.cancelled: list[Any] = []
        super().__init__(cancel=self.cancelled.append)

    def remote(self, *, num_cpus: int, **options: Any) -> Callable[[Any], Remote]:
        assert num_cpus == 0, "a full cluster would have no place for it"
        return Remote

    def wait(self, calls: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return calls, []

    def get(self, told: Any) -> Any:
        if isinstance(told, Exception):
            raise told
        return told


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    stand_in = Ray()
    monkeypatch.setattr(client, "ray", stand_in)
    return stand_in


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return StudyFolder.create(tmp_path, tiny_study(), tiny_trials(), tmp_path / "d", "abc")


class Heard:
    """An observer that keeps what it is told, and does something at the first."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self.told: list[tuple[TrialRecord, Report | None]] = []
        self._then = then

    def update(self, record: TrialRecord, report: Report | None) -> None:
        self.told.append((record, report))
        if len(self.told) == 1:
            self._then()


Events = Sequence[tuple[TrialRecord, Report | None]]


def sweep_by_client(folder: StudyFolder, *observers: Any) -> None:
    now: Any = None
    rest: Any = {"attempt": "attempt-000"}
    client.sweep_by_client(folder.study, now, [], root=folder.path, observers=observers, **rest)


def sweeping(monkeypatch: pytest.MonkeyPatch, events: Events = ()) -> None:
    """Have the sweep there tell its observers this."""

    def sweep(*told: Any, observers: list[Any], attempt: str, **rest: Any) -> None:
        assert attempt == "attempt-000"
        for event in events:
            for observer in observers:
                observer.update(*event)

    monkeypatch.setattr(client, "sweep", sweep)


def test_the_folder_is_written_there_and_the_others_hear_all_in_order(
    ray: Ray, folder: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = folder.trials[0]
    events: Events = [
        (TrialRecord(trial=one, status="running", step=4), Report(step=4, metrics={})),
        (TrialRecord(trial=one, status="running", step=8), Report(step=8, metrics={})),
        (finished(one), None),
    ]
    sweeping(monkeypatch, events)

    def written_before_it_is_heard() -> None:
        assert folder.read_records()[0] == finished(one)
        (folder.path / "trials" / f"{one.id}.json").unlink()

    heard = Heard(written_before_it_is_heard)
    sweep_by_client(folder, folder, heard)
    assert heard.told == events
    # And not again here, where late news would overwrite younger.
    assert folder.read_records()[0].status == "pending"


def test_a_sweep_ends_only_when_its_last_word_is_in_the_mailbox(
    ray: Ray, folder: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = [TrialRecord(trial=one, status="running") for one in folder.trials]
    sweeping(monkeypatch, [(record, None) for record in sent])
    mailbox = SimpleNamespace(put=SimpleNamespace(remote=lambda record, report: record))
    waited_for: list[Any] = []
    monkeypatch.setattr(ray, "get", waited_for.append)
    rest: Any = {"attempt": "attempt-000"}
    client._sweep_there(mailbox, folder.study, rest, [], root=folder.path, **rest)
    assert waited_for == sent[-1:]


def test_ctrl_c_cancels_the_sweep_there_and_hears_it_out(
    ray: Ray, folder: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: Events = [(TrialRecord(trial=one, status="running"), None) for one in folder.trials]
    sweeping(monkeypatch, events)

    def interrupt() -> None:
        raise KeyboardInterrupt

    heard = Heard(interrupt)
    sweep_by_client(folder, heard)
    assert len(ray.cancelled) == 1
    assert heard.told == events


@pytest.mark.parametrize(
    "end", [TaskCancelledError(), RayTaskError("_sweep_there", "", KeyboardInterrupt())]
)
def test_however_a_cancelled_sweep_ends_it_is_no_failure(
    ray: Ray, folder: StudyFolder, end: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_sweep_there", lambda *told, **rest: end)
    monkeypatch.setattr(client, "_hand_on", lambda *told: True)
    sweep_by_client(folder)
    monkeypatch.setattr(client, "_hand_on", lambda *told: False)
    with pytest.raises(StudyError, match="went away"):
        sweep_by_client(folder)


def test_a_second_ctrl_c_leaves_at_once(
    ray: Ray, folder: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*told: Any, **rest: Any) -> Any:
        raise KeyboardInterrupt

    sweeping(monkeypatch)
    monkeypatch.setattr(ray, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sweep_by_client(folder)
    assert len(ray.cancelled) == 1


def test_what_goes_wrong_there_is_said_here(
    ray: Ray, folder: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder.path / "study.json").write_text("{}")
    with pytest.raises(StudyError, match=r"study\.json: not a frozen study of this version"):
        sweep_by_client(folder)
    monkeypatch.setattr(client, "_sweep_there", lambda *told, **rest: WorkerCrashedError())
    with pytest.raises(
        StudyError, match=f"went away: .*; go on with `sma-eval resume {folder.path}"
    ):
        sweep_by_client(folder)


def test_a_folder_that_the_cluster_does_not_see_is_named(ray: Ray, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"nowhere, as the cluster sees it: .*give --out a folder"):
        client.await_folder(tmp_path / "nowhere")


def test_a_sweep_waits_for_the_one_of_a_driver_that_died(tmp_path: Path) -> None:
    with (tmp_path / ".sweep").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(FolderError, match="another sweep is at work"), client._alone(tmp_path):
            pass
        ended = threading.Event()

        def end() -> None:
            ended.set()
            fcntl.flock(file, fcntl.LOCK_UN)

        ending = threading.Timer(0.3, end)
        ending.start()
        with client._alone(tmp_path, 60.0):
            assert ended.is_set()
        ending.join()


@pytest.mark.parametrize(("address", "waits"), [("ray://head:10001", True), ("auto", False)])
def test_joining_by_the_client_waits_for_the_folder(
    address: str, waits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[Path] = []
    monkeypatch.setattr(cluster, "await_folder", waited.append)
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    with cluster.connected(address, Resources(), tmp_path):
        assert waited == ([tmp_path] if waits else [])


def test_a_servers_traceback_becomes_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**options: Any) -> None:
        raise ConnectionError(
            "Initialization failure from server:\nTraceback\n  x\nError: a zombie\n"
        )

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", refuse)
    monkeypatch.setattr(cluster, "require_answer", lambda *told: None)
    told = pytest.raises(StudyError, match=r"failure from server: \.\.\. Error: a zombie$")
    with told, cluster.connected("ray://head:10001", Resources(), tmp_path):
        pass
