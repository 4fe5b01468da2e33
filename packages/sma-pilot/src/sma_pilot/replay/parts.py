"""Measurements on disk: Parquet files, each of them whole or absent."""

from pathlib import Path
from types import TracebackType
from typing import Self

import polars as pl

from sma_core.files import replacing

_ROWS_PER_PART = 500_000


def write_parquet(frame: pl.DataFrame, path: Path) -> None:
    """Write `frame` at `path` whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        frame.write_parquet(partial, compression="zstd", statistics=True)


class PartWriter:
    """Collects frames and writes them as parts of bounded size, ``part-<stem>-00000.parquet``.

    All parts but the last have the same number of rows, so the same rows in the same order make the
    same files, whatever frames they came in.

    Parts of the same stem that an earlier, unfinished attempt left are deleted first.

    Parameters
    ----------
    folder : Path
        Where the parts go.
    stem : str
        What tells this writer's parts from those of others in the folder.
    """

    def __init__(self, folder: Path, stem: str) -> None:
        self._folder = folder
        self._stem = stem
        self._frames: list[pl.DataFrame] = []
        self._rows = 0
        self._parts = 0
        # The number is matched too: "incumbent" must not catch the parts of "incumbent_again".
        for stale in folder.glob(f"*part-{stem}-[0-9]*.parquet*"):
            stale.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self._frames and (self._rows or not self._parts):
            self._write(self._rows)

    def add(self, frame: pl.DataFrame) -> None:
        """Take the rows of `frame`; they are on disk at the latest when the block ends."""
        self._frames.append(frame)
        self._rows += frame.height
        while self._rows >= _ROWS_PER_PART:
            self._write(_ROWS_PER_PART)

    def _write(self, rows: int) -> None:
        """Write the first `rows` rows as the next part, and keep the others."""
        collected = pl.concat(self._frames, rechunk=True)
        path = self._folder / f"part-{self._stem}-{self._parts:05d}.parquet"
        write_parquet(collected[:rows], path)
        rest = collected[rows:]
        self._frames = [rest] if rest.height else []
        self._rows, self._parts = rest.height, self._parts + 1
