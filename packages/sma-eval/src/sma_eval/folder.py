"""The study folder: the frozen study, a record per trial, and the tables made of them.

::

    study.json          the study, its digest and the data set's, the environment
    trials/<id>.json    one record per trial that has started
    ray/attempt-N/<id>/ checkpoints; a resumed study starts a new attempt
    datasets/           generated data
    mlflow.db           the default tracking store, its files in artifacts/
    report.html  table.txt  arms.parquet  trials.parquet  effects.parquet  rates.parquet
    fronts.parquet      what the trials say

The records, not Ray's driver state, say what is finished. They are plain JSON, replaced whole, so
that a killed driver leaves each of them old or new, a later version of Ray can resume the study,
and a folder from elsewhere can be opened without running code of its own.
"""

import fcntl
import json
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from sma_core.files import write_json
from sma_eval.errors import FolderError
from sma_eval.records import Report, TrialRecord
from sma_eval.space import Trial
from sma_eval.study import Study

FORMAT = "sma.study"
VERSION = 1
STUDY_FILE = "study.json"
LOCK_FILE = ".lock"
DATASETS = "datasets"
RAY = "ray"
TRIALS = "trials"


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Keep every other driver out of a study folder, made if it is not there.

    Raises
    ------
    FolderError
        When another process runs a study there, or the folder is for something else.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        names = {entry.name for entry in path.iterdir()}
        if STUDY_FILE not in names and (foreign := names - {LOCK_FILE, DATASETS, TRIALS}):
            raise FolderError(
                f"{path}: is no study folder and not empty (it holds {min(foreign)!r}); "
                "choose another --out"
            )
        file = (path / LOCK_FILE).open("w")
    except OSError as error:
        raise FolderError(f"{path}: cannot be used as a study folder: {error.strerror}") from error
    with file:
        try:
            # The kernel drops the lock with the process, however it dies.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FolderError(
                f"{path}: another process runs this study; watch it with `sma-eval status {path}`"
            ) from error
        yield


def in_use(path: Path) -> bool:
    """Tell whether a driver runs the study in a folder."""
    try:
        with (path / LOCK_FILE).open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


@dataclass(frozen=True)
class StudyFolder:
    """A study folder with its frozen study.

    Parameters
    ----------
    path
        The folder, absolute.
    study
        The study frozen in it.
    trials
        Its trials, frozen too: a later version of the library may expand the study otherwise. Those
        that a search asks for while the study runs are added.
    key
        Names this execution of the study, wherever the folder is moved.
    dataset
        Folder of the data set, relative to `path` where it lies inside.
    dataset_digest
        Of the data set's content.
    """

    path: Path
    study: Study
    trials: tuple[Trial, ...]
    key: str
    dataset: Path
    dataset_digest: str

    @classmethod
    def create(
        cls,
        path: Path,
        study: Study,
        trials: tuple[Trial, ...],
        dataset: Path,
        dataset_digest: str,
    ) -> Self:
        """Freeze a study in an empty folder."""
        path, dataset = path.resolve(), dataset.resolve()
        folder = cls(
            path=path,
            study=study,
            trials=trials,
            key=uuid.uuid4().hex,
            dataset=dataset.relative_to(path) if dataset.is_relative_to(path) else dataset,
            dataset_digest=dataset_digest,
        )
        (path / TRIALS).mkdir(exist_ok=True)
        write_json(path / STUDY_FILE, folder._to_dict())
        return folder

    def reopened(self, study: Study) -> Self:
        """Return the folder to go on in, with the resources and description of `study`.

        Raises
        ------
        FolderError
            When `study` is another one than that of the folder.
        """
        if self.study.digest != study.digest:
            raise FolderError(
                f"{self.path}: holds study {self.study.name!r} with digest "
                f"{self.study.digest[:12]}, and the one to run has {study.digest[:12]}; "
                "give the changed study a folder of its own with --out"
            )
        folder = replace(self, study=study)
        write_json(self.path / STUDY_FILE, folder._to_dict())
        return folder

    def extended(self, trials: Sequence[Trial]) -> Self:
        """Return the folder with more trials frozen in it."""
        if not trials:
            return self
        folder = replace(self, trials=(*self.trials, *trials))
        write_json(self.path / STUDY_FILE, folder._to_dict())
        return folder

    def adopted(self, record: TrialRecord) -> TrialRecord:
        """Give a trial that takes over another's checkpoint a copy of its own.

        The donor goes on and leaves its checkpoint behind, to be deleted.
        """
        if not record.moves or record.ended or record.checkpoint is None:
            return record
        source = self.path / record.checkpoint
        move = record.moves[-1]
        name = f"after-{move.step:07d}-of-{move.donor}"
        copy = source.parents[1] / record.trial.id / name
        if not copy.exists():
            partial = copy.with_name(f".{name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(source, partial)
            partial.rename(copy)
        return replace(record, checkpoint=str(copy.relative_to(self.path)))

    def _to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "key": self.key,
            "digest": self.study.digest,
            "dataset": {"folder": str(self.dataset), "digest": self.dataset_digest},
            "study": self.study.model_dump(mode="json"),
            "trials": [trial.to_dict() for trial in self.trials],
        }

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a study folder.

        Raises
        ------
        FolderError
            When `path` is no study folder, or its study was changed by hand.
        """
        path = path.resolve()
        file = path / STUDY_FILE
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if (content["format"], content["version"]) != (FORMAT, VERSION):
                raise ValueError(f"its format is not {FORMAT} version {VERSION}")
            folder = cls(
                path=path,
                study=Study.model_validate_json(json.dumps(content["study"])),
                trials=tuple(Trial.from_dict(trial) for trial in content["trials"]),
                key=str(content["key"]),
                dataset=Path(content["dataset"]["folder"]),
                dataset_digest=str(content["dataset"]["digest"]),
            )
            digest = content["digest"]
        except OSError as error:
            raise FolderError(
                f"{path}: no study folder (no readable {STUDY_FILE}); give the folder that "
                "`sma-eval run` printed"
            ) from error
        except (ValidationError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise FolderError(f"{file}: not a frozen study of this version: {error}") from error
        if folder.study.digest != digest:
            raise FolderError(
                f"{file}: the study was changed after it was frozen; run the changed study in a "
                "folder of its own"
            )
        return folder

    @property
    def dataset_path(self) -> Path:
        """The data set's folder, absolute."""
        return self.path / self.dataset

    def require_dataset(self, digest: str) -> None:
        """Raise FolderError unless the data set is the one that the finished trials saw."""
        if digest != self.dataset_digest:
            raise FolderError(
                f"{self.path}: the data set {self.dataset_path} has changed since the study began "
                f"(digest {digest[:12]}, was {self.dataset_digest[:12]}); start again with "
                "another --out"
            )

    def read_records(self) -> list[TrialRecord]:
        """Return the record of each trial, ``pending`` where it never started.

        Raises
        ------
        FolderError
            When a record is damaged.
        """
        return [self._read_record(trial) for trial in self.trials]

    def _read_record(self, trial: Trial) -> TrialRecord:
        file = self._record_file(trial)
        try:
            record = TrialRecord.from_dict(json.loads(file.read_text(encoding="utf-8")))
            if record.trial.id != trial.id:
                raise ValueError(f"it is of trial {record.trial.id}")
        except FileNotFoundError:
            return TrialRecord(trial=trial)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise FolderError(
                f"{file}: damaged record ({error}); delete the file to run the trial again"
            ) from error
        return record

    def write_record(self, record: TrialRecord) -> None:
        """Replace a trial's record."""
        write_json(self._record_file(record.trial), record.to_dict())

    def _record_file(self, trial: Trial) -> Path:
        return self.path / TRIALS / f"{trial.id}.json"

    def update(self, record: TrialRecord, report: Report | None) -> None:
        """Observe a trial: its record is what a resumed study goes by."""
        self.write_record(record)

    def new_attempt(self) -> str:
        """Name the next attempt at the unfinished trials."""
        taken = [entry.name for entry in (self.path / RAY).glob("attempt-*")]
        return next(name for i in count() if (name := f"attempt-{i:03d}") not in taken)

    def prune(self, records: Sequence[TrialRecord]) -> None:
        """Delete what no record needs: overtaken checkpoints, and Ray's own driver state."""
        kept = {self.path / record.checkpoint for record in records if record.checkpoint}
        parents = {checkpoint.parent for checkpoint in kept}
        for entry in (self.path / RAY).glob("attempt-*/*"):
            for old in entry.iterdir() if entry in parents else [entry]:
                if old.is_file():
                    old.unlink()
                elif old not in kept:
                    shutil.rmtree(old)
