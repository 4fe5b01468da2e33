"""Studies as functions: run, resume, look, export. The command line only parses and prints."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

from sma_core.checkpoint import load_checkpoint, save_checkpoint
from sma_core.dataset import PreparedDataset
from sma_core.files import replacing
from sma_eval.analysis import ArmSummary, best_trial, summarize
from sma_eval.conclusion import conclude
from sma_eval.errors import FolderError
from sma_eval.findings import Findings, find
from sma_eval.folder import DATASETS, STUDY_FILE, StudyFolder, claimed, in_use
from sma_eval.records import Observer, TrialRecord
from sma_eval.report import (
    arms_frame,
    effects_frame,
    fronts_frame,
    markdown_table,
    rates_frame,
    text_table,
    trials_frame,
    write_parquet,
)
from sma_eval.rounds import Round, next_round
from sma_eval.search_report import describe_search
from sma_eval.space import Trial, expand
from sma_eval.study import Study

REPORT = "report.html"
REPORT_FILES = (
    REPORT,
    "table.txt",
    *(f"{name}.parquet" for name in ("arms", "trials", "effects", "rates", "fronts")),
)


@dataclass(frozen=True)
class Outcome:
    """A study folder as it stands.

    Parameters
    ----------
    folder
        The folder, with its frozen study.
    records
        One per trial.
    """

    folder: StudyFolder
    records: Sequence[TrialRecord]

    @classmethod
    def read(cls, path: Path) -> "Outcome":
        """Read a study folder; its driver may be at work.

        Raises
        ------
        FolderError
            When it is none, or damaged.
        """
        folder = StudyFolder.open(path)
        return cls(folder, folder.read_records())

    @property
    def rows(self) -> list[ArmSummary]:
        """The table, one row per arm."""
        return summarize(self.records, self.folder.study.objective)

    @property
    def table(self) -> str:
        """The table as text, and what it says in plain words."""
        lines = "\n".join(self.conclusion)
        return f"{text_table(self.rows, self.folder.study)}\n{lines}\n"

    @property
    def findings(self) -> Findings:
        """Noise, effects, rates and fronts."""
        return find(self.records, self.folder.study.objective)

    @property
    def conclusion(self) -> list[str]:
        """What the searches of the arms have spent, then the findings in plain words."""
        study = self.folder.study
        return [
            *describe_search(self.records, study),
            *conclude(self.findings, study.objective),
        ]

    def count(self, *statuses: str) -> int:
        """Count the trials of some statuses."""
        return sum(record.status in statuses for record in self.records)

    @property
    def unknown(self) -> int:
        """Number of trials that a search has yet to ask for."""
        return self.folder.study.trials - len(self.records)

    @property
    def complete(self) -> bool:
        """Whether every trial has ended, and a search has asked for all of them."""
        return not self.unknown and all(record.ended for record in self.records)


def list_trials(study: Study, data: Path) -> tuple[Trial, ...]:
    """List the trials of a study that are known beforehand, without running or writing anything.

    Raises
    ------
    StudyError, SMAError
        As of `run`.
    """
    return expand(study, *study.task.describe(data))


def run(
    study: Study,
    *,
    data: Path,
    out: Path,
    cache: Path | None = None,
    address: str = "local",
    tracking_uri: str | None = None,
    observers: Sequence[Observer] = (),
) -> Outcome:
    """Run a study in a folder, or go on where that very study stopped there.

    Parameters
    ----------
    study
        What to run.
    data
        Folder that prepared data sets are relative to.
    out
        The study folder. On a cluster every node must see it at this path.
    cache
        Folder of generated data that studies share, seen by every node likewise; None: in `out`.
    address
        Of a Ray cluster (``auto``, or ``host:port`` of its head), or ``local``.
    tracking_uri
        Of the MLflow store; None: a database in the study folder.
    observers
        Told of every change of a trial, after the study folder and the tracking store.

    Raises
    ------
    StudyError
        When the study, the folder, the cluster or the tracking store is not as it should be.
    SMAError
        When the data set is absent or damaged.
    """
    trials = list_trials(study, data)
    with claimed(out):
        if (out / STUDY_FILE).exists():
            folder = StudyFolder.open(out).reopened(study)
        else:
            dataset = study.task.prepare(data=data, cache=cache or out / DATASETS)
            folder = StudyFolder.create(out, study, trials, dataset.folder, dataset.card.digest)
        return _carry_out(folder, address, tracking_uri, observers, retry_failed=False)


def resume(
    path: Path,
    *,
    address: str = "local",
    tracking_uri: str | None = None,
    observers: Sequence[Observer] = (),
    retry_failed: bool = False,
) -> Outcome:
    """Go on with a study that stopped; finished trials stay, the others continue.

    Parameters
    ----------
    path
        The study folder.
    address, tracking_uri, observers
        As of `run`.
    retry_failed
        Also try failed trials again.

    Raises
    ------
    StudyError, SMAError
        As of `run`.
    """
    folder = StudyFolder.open(path)
    with claimed(folder.path):
        return _carry_out(folder, address, tracking_uri, observers, retry_failed=retry_failed)


def export_best(path: Path, target: Path, *, arm: str | None = None, force: bool = False) -> Trial:
    """Write the best finished trial's weights as a checkpoint folder of its own.

    Parameters
    ----------
    path
        The study folder.
    target
        Folder to write; its other files stay.
    arm
        Label of the arm to choose from; None: all of them.
    force
        Write into a folder that is not empty.

    Returns
    -------
    Trial
        The one whose objective on validation is best.

    Raises
    ------
    FolderError
        When no trial finished, there is no such arm, or `target` is taken.
    CheckpointError
        When the trial's checkpoint is absent or damaged.
    """
    outcome = Outcome.read(path)
    study = outcome.folder.study
    arms = {record.trial.arm for record in outcome.records}
    if arm is not None and arm not in arms:
        raise FolderError(f"--arm {arm!r}: the study has {', '.join(map(repr, sorted(arms)))}")
    candidates = [record for record in outcome.records if arm in (None, record.trial.arm)]
    best = best_trial(candidates, study.objective)
    if best is None or best.checkpoint is None:
        raise FolderError(f"{path}: no trial has finished; see `sma-eval status {path}`")
    if target.exists() and (not target.is_dir() or any(target.iterdir())) and not force:
        raise FolderError(f"{target}: is not empty; choose another folder, or add --force")
    checkpoint = load_checkpoint(outcome.folder.path / best.checkpoint)
    save_checkpoint(
        target,
        checkpoint.model,
        provenance=checkpoint.card["provenance"],
        dataset_card=checkpoint.card["dataset"],
    )
    return best.trial


def write_report(outcome: Outcome, folder: Path | None = None) -> Path:
    """Write the page of a study, its table, and the parquet files beside them.

    Parameters
    ----------
    outcome
        The study, which may still run.
    folder
        Where to; the study folder unless given. Made if it is not there.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    FolderError
        When `folder` is none.
    """
    from sma_eval.report.page import render  # matplotlib takes a second to import

    study, rows, found = outcome.folder.study, outcome.rows, outcome.findings
    path = outcome.folder.path if folder is None else folder
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FolderError(f"{path}: cannot hold a report: {error.strerror}") from error
    page = render(
        study,
        outcome.records,
        dataset_digest=outcome.folder.dataset_digest,
        active=in_use(outcome.folder.path) and not outcome.complete,
    )
    for name, text in ((REPORT, page), ("table.txt", outcome.table)):
        with replacing(path / name) as partial:
            partial.write_text(text, encoding="utf-8")
    for name, frame in (
        ("arms", arms_frame(rows)),
        ("trials", trials_frame(outcome.records, study)),
        ("effects", effects_frame(found)),
        ("rates", rates_frame(found)),
        ("fronts", fronts_frame(rows, found)),
    ):
        write_parquet(frame, path / f"{name}.parquet")
    return path / REPORT


def _carry_out(
    folder: StudyFolder,
    address: str,
    tracking_uri: str | None,
    observers: Sequence[Observer],
    *,
    retry_failed: bool,
) -> Outcome:
    # Ray and MLflow take seconds to import, which looking at a study should not cost.
    from sma_eval.sweep import CLIENT, connected, sweep, sweep_by_client
    from sma_eval.tracker import Tracker
    from sma_eval.tracking import StudyRuns, default_uri

    study, path = folder.study, folder.path
    folder.require_dataset(PreparedDataset.open(folder.dataset_path, verify=True).card.digest)
    tracker = Tracker(StudyRuns(folder, tracking_uri or default_uri(folder)))
    everyone = [folder, tracker, *observers]
    carry_out = sweep_by_client if address.startswith(CLIENT) else sweep
    try:
        as_restarted = [_restartable(one, path, retry_failed) for one in folder.read_records()]
        needed = next_round(study, as_restarted) is not None
        with connected(address, study.resources, path) if needed else nullcontext():
            # Read again: until here the sweep of a driver that died may have gone on elsewhere.
            for record in folder.read_records():
                if (again := _restartable(record, path, retry_failed)) is not record:
                    folder.write_record(again)
            now = next_round(study, folder.read_records())
            while now is not None:
                folder = folder.extended(now.trials)
                for record in map(folder.adopted, now.changed):
                    for observer in everyone:
                        observer.update(record, None)
                records = folder.read_records()
                if todo := _current(now.todo, records):
                    carry_out(
                        study,
                        replace(now, todo=todo),
                        records,
                        root=path,
                        attempt=folder.new_attempt(),
                        dataset=folder.dataset_path,
                        provenance={"study": study.name, "study_digest": study.digest},
                        observers=everyone,
                    )
                    records = folder.read_records()
                    if any(not _through(one, now) for one in _current(now.todo, records)):
                        break  # stopped by the user
                    folder.prune(records)
                now = next_round(study, records)
    finally:
        outcome = Outcome.read(path)
        write_report(outcome)
        tracker.close(
            outcome.records,
            status="FINISHED" if outcome.complete else "KILLED",
            description="\n\n".join(
                filter(
                    None,
                    [
                        escape(study.description),
                        markdown_table(outcome.rows, study),
                        *map(escape, outcome.conclusion),
                    ],
                )
            ),
            files=[path / name for name in REPORT_FILES],
        )
    folder.prune(outcome.records)
    return outcome


def _restartable(record: TrialRecord, path: Path, retry_failed: bool) -> TrialRecord:
    """Forget a failure that is tried again, and a checkpoint that has gone: it starts afresh."""
    if record.failed and retry_failed:
        record = replace(record, status="pending", reason=None, traceback=None)
    if record.ended or record.checkpoint is None or (path / record.checkpoint).is_dir():
        return record
    return replace(record, checkpoint=None, step=0)


def _current(
    todo: Sequence[TrialRecord], records: Sequence[TrialRecord]
) -> tuple[TrialRecord, ...]:
    """Return the records of some trials as they stand now."""
    wanted = {record.trial.id for record in todo}
    return tuple(record for record in records if record.trial.id in wanted)


def _through(record: TrialRecord, now: Round) -> bool:
    """Whether a trial has come to the end of a round."""
    return record.ended or (now.until is not None and record.step >= now.until)
