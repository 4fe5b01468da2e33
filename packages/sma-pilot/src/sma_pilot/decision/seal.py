"""The seal of a run folder: the hash of each of its files."""

import os
from collections.abc import Iterator
from pathlib import Path

from sma_core.files import sha256_of
from sma_pilot.errors import RunError
from sma_pilot.progress import OnProgress
from sma_pilot.run_folder import RunFolder


def seal(run: RunFolder, on_progress: OnProgress) -> dict[str, str]:
    """Return the SHA-256 of each file of the run folder by its path in it.

    Its own records of decisions are left out, and the looks of a monitor: they have chains of their
    own. So are hidden files, which nothing reads. Linked folders are followed. Of a stage it is
    what its decision rests on.

    Raises
    ------
    RunError
        When a file cannot be read.
    """
    paths = sorted(_files(run))
    hashes = {}
    for done, path in enumerate(paths):
        on_progress("hash", done, len(paths))
        # A name need not be text; JSON has to be.
        name = run.name_of(path).encode(errors="backslashreplace").decode()
        try:
            hashes[name] = sha256_of(path)
        except OSError as error:
            raise RunError(f"{path}: cannot be read: {error.strerror}") from error
    on_progress("hash", len(paths), len(paths))
    return hashes


def _files(run: RunFolder) -> Iterator[Path]:
    for part in run.parts:
        if part.is_file():
            yield part
        yield from _within(part, run)


def _within(part: Path, run: RunFolder) -> Iterator[Path]:
    chained = (run.decisions, run.monitor)
    for place, folders, names in os.walk(part, followlinks=True):
        folder = Path(place)
        folders[:] = [
            name for name in folders if not name.startswith(".") and folder / name not in chained
        ]
        yield from (
            folder / name
            for name in names
            if not name.startswith(".") and (folder / name).is_file()
        )
