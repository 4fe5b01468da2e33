"""A sweep by the Ray client (``ray://``): carried out on the cluster, heard of here.

The client calls functions on a cluster that it is no part of, and no tuner. So the whole sweep is
one such call. The study folder, which every node sees, is written there, before Tune does anything
that relies on it; what else observes the study lives here and hears of it by mail.
"""

import fcntl
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from sma_eval.errors import FolderError, StudyError, first_line
from sma_eval.folder import StudyFolder
from sma_eval.records import Observer, Report, TrialRecord
from sma_eval.rounds import Round
from sma_eval.study import Study

from .tuning import sweep

CLIENT = "ray://"
_POLL_SECONDS = 0.5
# Ray waits half a minute for a client that is gone before it ends what the client began.
_PATIENCE_SECONDS = 90.0
_LOCK_FILE = ".sweep"

Event = tuple[TrialRecord, Report | None]


def await_folder(root: Path) -> None:
    """Wait until no sweep is at work in a study folder: that of a driver that died goes on a while.

    Raises
    ------
    StudyError
        When the cluster does not see the folder, or another sweep stays at work in it.
    """
    with _told(root):
        ray.get(_remote()(_settle).remote(root))


def sweep_by_client(
    study: Study,
    now: Round,
    records: Sequence[TrialRecord],
    *,
    root: Path,
    observers: Sequence[Observer],
    **rest: Any,
) -> None:
    """Run the trials of a round as `sweep` does, on the cluster that the client has joined.

    Parameters
    ----------
    study, now, records, root, observers, **rest
        As of `sweep`.

    Raises
    ------
    StudyError
        When the cluster goes away, or the sweep there fails.
    """
    mailbox = _remote()(_Mailbox).remote()
    task = _remote(max_retries=0)(_sweep_there)
    # What is written there must not be written again, later, here.
    heard_by = [one for one in observers if not isinstance(one, StudyFolder)]
    with _told(root):
        call = task.remote(mailbox, study, now, records, root=root, **rest)
        stopped = _hand_on(mailbox, call, heard_by)
        # However a sweep ends that was cancelled, the folder says from where to go on.
        with suppress(RayError) if stopped else nullcontext():
            ray.get(call)


def _remote(**options: Any) -> Any:
    """Return what makes a function or class one of the cluster's."""
    # No share of a CPU: it mostly waits, and must find a place on a full cluster.
    return ray.remote(num_cpus=0, **options)


@contextmanager
def _told(root: Path) -> Iterator[None]:
    """Say in our own words what goes wrong on the cluster."""
    try:
        yield
    except (RayError, ConnectionError) as error:
        if isinstance(cause := getattr(error, "cause", None), StudyError):
            raise StudyError(str(cause)) from error
        raise StudyError(
            f"the cluster, or the sweep on it, went away: {first_line(error)}; "
            f"go on with `sma-eval resume {root}`"
        ) from error


class _Mailbox:
    """Keeps what the sweep tells until it is fetched."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def put(self, record: TrialRecord, report: Report | None) -> None:
        self._events.append((record, report))

    def take(self) -> list[Event]:
        events, self._events = self._events, []
        return events


class _Sender:
    """Observes trials on the cluster, for observers that are elsewhere."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox
        self._sent: Any = None

    def update(self, record: TrialRecord, report: Report | None) -> None:
        self._sent = self._mailbox.put.remote(record, report)

    def flush(self) -> None:
        """Wait until all is in the mailbox, which takes it in the order in which it was sent."""
        if self._sent is not None:
            ray.get(self._sent)


def _hand_on(mailbox: Any, call: Any, observers: Sequence[Observer]) -> bool:
    """Tell the observers what comes until the sweep has ended; return whether it was stopped."""
    stopped = False
    came: deque[Event] = deque()
    while True:
        try:
            ended = bool(ray.wait([call], timeout=_POLL_SECONDS)[0])
            came.extend(ray.get(mailbox.take.remote()))
            while came:
                record, report = came.popleft()
                for observer in observers:
                    observer.update(record, report)
            if ended:
                return stopped
        except KeyboardInterrupt:
            if stopped:
                raise
            # As on this machine: Tune lets the trials come to rest, and the sweep returns.
            ray.cancel(call)
            stopped = True


def _sweep_there(
    mailbox: Any,
    study: Study,
    now: Round,
    records: Sequence[TrialRecord],
    *,
    root: Path,
    **rest: Any,
) -> None:
    sender = _Sender(mailbox)
    with _alone(root):
        sweep(study, now, records, root=root, observers=[StudyFolder.open(root), sender], **rest)
    sender.flush()


@contextmanager
def _alone(root: Path, patience_seconds: float = 0.0) -> Iterator[None]:
    """Hold the folder's lock, which the kernel drops with the process that holds it."""
    where = f"{root}, as the cluster sees it"
    try:
        file = os.open(root / _LOCK_FILE, os.O_CREAT | os.O_RDWR)
    except OSError as error:
        raise FolderError(
            f"{where}: {error.strerror}; give --out a folder that every node sees at the same path"
        ) from error
    try:
        deadline = time.monotonic() + patience_seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise FolderError(f"{where}: another sweep is at work in it") from error
                time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(file)


def _settle(root: Path) -> None:
    with _alone(root, _PATIENCE_SECONDS):
        pass
