"""How hard each held-out step is to forecast, and how hard the rows before it said it would be.

Three passes: the cheap forecasts are fitted on training rows, their errors are taken there and a
foresight is fitted on them, and both are applied to validation rows. Judged rows are not touched:
what is to judge a pilot must not have been looked at when it was planned.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sma_core.dataset import PreparedDataset
from sma_core.dataset.reader import Split
from sma_pilot.assess.forecasts import Forecast, Ridge, cheap_forecasts, errors, lags_of
from sma_pilot.assess.stretches import Stretch, stretches
from sma_pilot.errors import LogError
from sma_pilot.progress import OnProgress

_CELLS = 4_000_000
"""Features of a stretch, about: what bounds memory."""
_FIT_ROWS = 300_000
_HELD_OUT_ROWS = 2_000_000
_FAST, _SLOW = 0.3, 0.03
_MOST_CHANNELS = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class Difficulty:
    """Held-out steps, in the order of the data set.

    Attributes
    ----------
    error : float64 [N]
        Squared error of the best cheap forecast, in squares of a channel's scale.
    foreseen : float64 [N]
        What the rows before the step let expect of it; for ordering alone.
    run : int64 [N]
        Steps of the same number follow each other without a break.
    entity : int64 [N]
    time : int64 [N]
    mean_errors : mapping name -> float
        Held-out mean error of each cheap forecast, and of the channels' centre as ``centre``.
    labels : mapping name -> str
        The forecasts in words.
    best : str
        The forecast with the smallest error on training rows.
    fit_rows, held_out_rows : int
        Rows that the splits hold; of large ones, some 300,000 and 2,000,000 are read, in stretches
        evenly spread.
    rows_read : int
        Of the held-out rows.
    """

    error: NDArray[np.float64]
    foreseen: NDArray[np.float64]
    run: NDArray[np.int64]
    entity: NDArray[np.int64]
    time: NDArray[np.int64]
    mean_errors: Mapping[str, float]
    labels: Mapping[str, str]
    best: str
    fit_rows: int
    held_out_rows: int
    rows_read: int

    @property
    def explained(self) -> float | None:
        """Share of the variance that the best forecast explains; None for a constant log."""
        whole = self.mean_errors["centre"]
        return 1 - self.mean_errors[self.best] / whole if whole > 0 else None


def measure_difficulty(dataset: PreparedDataset, on_progress: OnProgress) -> Difficulty:
    """Fit cheap forecasts on the train slice and take their errors on the validation slice.

    Raises
    ------
    LogError
        When a slice has no row with one before it.
    """
    channels = len(dataset.card.numeric)
    card = dataset.card.splits["train"]
    span = (card.last_time_ns or 0) - (card.first_time_ns or 0)
    forecasts = cheap_forecasts(channels, span)
    train, held_out = dataset.split("train"), dataset.split("validation")
    for stretch in _read(train, channels, _FIT_ROWS, "fit cheap forecasts", on_progress):
        for forecast in forecasts:
            forecast.add(stretch)
    for forecast in forecasts:
        forecast.finish()
    foresights = {forecast.name: Foresight(channels) for forecast in forecasts}
    sums = dict.fromkeys(foresights, 0.0)
    for stretch in _read(train, channels, _FIT_ROWS, "fit foresight", on_progress):
        for forecast in forecasts:
            error = errors(stretch, forecast.predict(stretch))
            sums[forecast.name] += float(np.nansum(error[stretch.first :]))
            foresights[forecast.name].add(stretch, error)
    best = min(sums, key=sums.__getitem__)
    return _apply(dataset, held_out, forecasts, best, foresights[best], train.rows, on_progress)


def _apply(
    dataset: PreparedDataset,
    held_out: Split,
    forecasts: list[Forecast],
    best: str,
    foresight: "Foresight",
    fit_rows: int,
    on_progress: OnProgress,
) -> Difficulty:
    foresight.finish()
    entity_of = held_out.entity.numpy().astype(np.int64)
    columns: list[tuple[NDArray, ...]] = []
    sums: dict[str, float] = {}
    pieces = rows_read = 0
    channels = len(dataset.card.numeric)
    for stretch in _read(held_out, channels, _HELD_OUT_ROWS, "held-out error", on_progress):
        predicted = {forecast.name: forecast.predict(stretch) for forecast in forecasts}
        predicted["centre"] = np.zeros_like(stretch.values)
        found = {name: errors(stretch, own) for name, own in predicted.items()}
        for name, error in found.items():
            sums[name] = sums.get(name, 0.0) + float(np.nansum(error[stretch.first :]))
        rows_read += len(stretch.time) - stretch.first
        error = found[best]
        kept = np.flatnonzero(np.isfinite(error))
        kept = kept[kept >= stretch.first]
        breaks = np.diff(kept, prepend=-2) > 1
        breaks |= np.diff(stretch.sequence[kept], prepend=-1) != 0
        run = pieces + np.cumsum(breaks)
        pieces = int(run[-1]) if run.size else pieces
        columns.append(
            (
                error[kept],
                foresight.foresee(stretch, error)[kept],
                run,
                entity_of[stretch.sequence[kept]],
                stretch.time[kept],
            )
        )
    error, foreseen, run, entity, time = map(np.concatenate, zip(*columns, strict=True))
    if not error.size:
        raise LogError(
            "slices: no row of validation has a row before it within log.max_gap, so nothing can "
            "be forecast; check log.period and log.max_gap"
        )
    return Difficulty(
        error=error,
        foreseen=foreseen,
        run=run,
        entity=entity,
        time=time,
        mean_errors={name: total / error.size for name, total in sums.items()},
        labels={forecast.name: forecast.label for forecast in forecasts},
        best=best,
        fit_rows=fit_rows,
        held_out_rows=held_out.rows,
        rows_read=rows_read,
    )


class Foresight:
    """How large the next error will be, linearly, from what is known before it.

    It stands for the router, which sees rows as they come and has to decide before the outcome:
    the last error, its fast and slow exponential means, and the last row with its magnitudes.
    """

    def __init__(self, channels: int) -> None:
        self._ridge = Ridge()
        self._sees_rows = channels <= _MOST_CHANNELS

    def add(self, stretch: Stretch, error: NDArray[np.float64]) -> None:
        """Learn from errors [R] of a stretch, context aside."""
        known = np.isfinite(error)
        known[: stretch.first] = False
        self._ridge.add(self._features(stretch, error)[known], np.sqrt(error[known])[:, None])

    def finish(self) -> None:
        """Fit to all that was added."""
        self._ridge.finish()

    def foresee(self, stretch: Stretch, error: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what lets itself be expected of each row [R] from rows and errors before it."""
        return self._ridge.predict(self._features(stretch, error))[:, 0]

    def _features(self, stretch: Stretch, error: NDArray[np.float64]) -> NDArray[np.float64]:
        # Roots of squared errors are sizes: a step a hundred times as hard does not outweigh all.
        size = pl.col("size").fill_nan(None)
        means = (
            pl.DataFrame({"sequence": stretch.sequence, "size": np.sqrt(error)})
            .select(
                own.shift(1).over("sequence").fill_null(0.0).alias(name)
                for name, own in (
                    ("last", size),
                    ("fast", size.ewm_mean(alpha=_FAST, ignore_nulls=True)),
                    ("slow", size.ewm_mean(alpha=_SLOW, ignore_nulls=True)),
                )
            )
            .to_numpy()
        )
        columns = [np.ones((len(means), 1)), means]
        if self._sees_rows:
            last = stretch.before(1)
            columns += [last, np.abs(last)]
        return np.concatenate(columns, axis=1)


def _read(
    split: Split, channels: int, most_rows: int, stage: str, on_progress: OnProgress
) -> Iterator[Stretch]:
    rows = max(1024, _CELLS // (channels * lags_of(channels)))
    wanted = min(split.rows, most_rows)
    done = 0
    for stretch in stretches(split, rows, most_rows):
        yield stretch
        done += len(stretch.time) - stretch.first
        on_progress(stage, min(done, wanted), wanted)
