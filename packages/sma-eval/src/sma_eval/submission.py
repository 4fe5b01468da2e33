"""Hand a study over to a Ray cluster as a job, and follow what the job says.

This process joins no cluster: it talks to the job server of the cluster's head over HTTP. What
travels is the study file alone; everything else that the study names must lie on the cluster.
"""

import logging
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

# Under `uv run` Ray would have the job build an environment; the one of the cluster is meant.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from sma_eval.errors import StudyError, first_line
from sma_eval.reach import require_answer

_POLL_SECONDS = 1.0
_PATIENCE_SECONDS = 60.0
_DEFAULT_PORTS = {"http": 80, "https": 443}
# Both tell of each package that goes to the server, where our one line does.
for _noisy in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
    logging.getLogger(_noisy).setLevel(logging.WARNING)
# Ray lets either of them win over the address that it is given.
_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


@dataclass(frozen=True)
class Job:
    """A job as its server describes it.

    Parameters
    ----------
    id
        Its submission id.
    status
        ``PENDING``, ``RUNNING``, or how it ended: ``SUCCEEDED``, ``FAILED``, ``STOPPED``.
    message
        What the server says about it.
    exit_code
        Of the command, once it has ended by itself.
    """

    id: str
    status: str
    message: str = ""
    exit_code: int | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return JobStatus(self.status).is_terminal()


def study_command(study: str, places: Mapping[str, str | None], *, smoke: bool = False) -> str:
    """Return the job's command line.

    Parameters
    ----------
    study
        Name of the study file in the job's working folder.
    places
        Values of the options ``out``, ``data``, ``cache`` and ``tracking-uri``, as the cluster sees
        them; None: not given.
    smoke
        Whether the job is but a smoke test.

    Raises
    ------
    StudyError
        When a folder is relative: the job has another working folder, which goes with it.
    """
    arguments = ["sma-eval", "run", study, "--address", "auto"]
    for name, value in places.items():
        if value is None:
            continue
        if name != "tracking-uri" and not PurePosixPath(value).is_absolute():
            raise StudyError(
                f"--{name} {value}: give the absolute path that every node of the cluster sees"
            )
        arguments += [f"--{name}", value]
    return shlex.join([*arguments, *(["--smoke-test"] if smoke else [])])


class JobServer:
    """The job server of a Ray cluster.

    Parameters
    ----------
    address
        ``http://HOST:8265``: where the cluster's dashboard is.

    Raises
    ------
    StudyError
        When no job server answers there, or it wants a token that this process has not.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        try:
            url = urlsplit(address)
            default = _DEFAULT_PORTS[url.scheme]
            host, port = url.hostname, url.port or default
            if not host:
                raise ValueError("no host")
        except (ValueError, KeyError) as error:
            raise StudyError(
                f"--address {address}: write http://HOST:8265, where the dashboard of the "
                "cluster's head is"
            ) from error
        require_answer(address, host, port)
        with self._answered("no Ray job server answers there"), _addresses_unset():
            self._client = JobSubmissionClient(address)

    def submit(self, study: Path, command: str, metadata: Mapping[str, str]) -> Job:
        """Start a job whose working folder holds the study file and nothing else.

        Parameters
        ----------
        study
            The study file.
        command
            What the job runs, from `study_command`.
        metadata
            Shown with the job.
        """
        with self._answered(), tempfile.TemporaryDirectory(prefix="sma-eval-") as folder:
            shutil.copyfile(study, Path(folder) / study.name)
            job_id = self._client.submit_job(
                entrypoint=command,
                runtime_env={"working_dir": folder},
                metadata=dict(metadata),
            )
        return Job(job_id, str(JobStatus.PENDING))

    def look(self, job_id: str) -> Job:
        """Ask how a job stands."""
        with self._answered():
            info = self._client.get_job_info(job_id)
        return Job(job_id, str(info.status), info.message or "", info.driver_exit_code)

    def follow(self, job_id: str, write: Callable[[str], object]) -> Job:
        """Hand on what a job prints until it ends; a server that is away for a while is waited for.

        Parameters
        ----------
        job_id
            The job.
        write
            Takes the next piece of its output.

        Raises
        ------
        StudyError
            When the server stays away for a minute. The job may well go on.
        """
        written = 0
        heard = time.monotonic()
        while True:
            try:
                # In this order: what a job said before it ended is then in its log.
                job = self.look(job_id)
                with self._answered():
                    text = self._client.get_job_logs(job_id)
            except StudyError:
                if time.monotonic() - heard > _PATIENCE_SECONDS:
                    raise
            else:
                heard = time.monotonic()
                write(text[written:])
                written = len(text)
                if job.ended:
                    return job
            time.sleep(_POLL_SECONDS)

    @contextmanager
    def _answered(self, failure: str = "the job server failed") -> Iterator[None]:
        where = f"--address {self._address}"
        try:
            yield
        except AuthenticationError as error:
            raise StudyError(
                f"{where}: {first_line(error)}: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to "
                "the token of the cluster"
            ) from error
        # Those of the connection are OSErrors; an answer that is no JSON is a ValueError.
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise StudyError(f"{where}: {failure}: {first_line(error)}") from error


@contextmanager
def _addresses_unset() -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in _ADDRESS_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
