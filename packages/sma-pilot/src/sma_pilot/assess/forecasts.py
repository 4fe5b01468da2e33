"""Cheap forecasts of the next row, fitted in one pass: where they fail, more may be needed."""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from sma_pilot.arms.forecast_error import mean_squared_error
from sma_pilot.assess.stretches import Stretch

DAY_NS = 86_400 * 10**9
_MOST_LAGS = 8
_MOST_FEATURES = 512
_DAY_PARTS = 96
_PENALTY = 1e-3


class Forecast(Protocol):
    """Forecasts each row of a stretch from the rows before it."""

    name: str
    label: str

    def add(self, stretch: Stretch) -> None:
        """Learn from the rows of a stretch, context aside."""
        ...

    def finish(self) -> None:
        """Fit to all that was added."""
        ...

    def predict(self, stretch: Stretch) -> NDArray[np.float64]:
        """Return the forecast of every row [R, C], context too."""
        ...


class Ridge:
    """Linear least squares with a penalty, its sums gathered piece by piece.

    The penalty is `_PENALTY` times the mean square of a feature (Hoerl and Kennard, 1970), so
    that it means the same whatever the scale and number of rows.
    """

    def __init__(self) -> None:
        self._products: NDArray[np.float64] | float = 0.0
        self._targets: NDArray[np.float64] | float = 0.0
        self.weights: NDArray[np.float64] | None = None

    def add(self, features: NDArray[np.float64], targets: NDArray[np.float64]) -> None:
        """Add rows of features [R, F] with their targets [R, K]."""
        self._products = self._products + features.T @ features
        self._targets = self._targets + features.T @ targets

    def finish(self) -> None:
        """Solve for the weights [F, K]."""
        products = np.asarray(self._products)
        penalty = _PENALTY * products.trace() / len(products) + 1e-12
        self.weights = np.linalg.solve(
            products + penalty * np.eye(len(products)), np.asarray(self._targets)
        )

    def predict(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return features [R, F] times weights."""
        assert self.weights is not None  # noqa: S101  (finish was called)
        return features @ self.weights


class LastValue:
    """What was read last stays."""

    name = "last_value"
    label = "last value"

    def add(self, stretch: Stretch) -> None:
        """See `Forecast.add`; there is nothing to learn."""

    def finish(self) -> None:
        """See `Forecast.finish`."""

    def predict(self, stretch: Stretch) -> NDArray[np.float64]:
        """See `Forecast.predict`."""
        return stretch.before(1)


class LinearAutoregression:
    """All channels of the last rows, linearly, by ridge: the change from the row before.

    Eight rows back, or as many as keep the features under 512.
    """

    name = "linear"
    label = "linear autoregression"

    def __init__(self, channels: int) -> None:
        self._lags = lags_of(channels)
        self._ridge = Ridge()

    def add(self, stretch: Stretch) -> None:
        """See `Forecast.add`."""
        used = np.flatnonzero(stretch.age >= 1)
        used = used[used >= stretch.first]
        change = stretch.values - stretch.before(1)
        self._ridge.add(self._features(stretch)[used], change[used])

    def finish(self) -> None:
        """See `Forecast.finish`."""
        self._ridge.finish()

    def predict(self, stretch: Stretch) -> NDArray[np.float64]:
        """See `Forecast.predict`."""
        return stretch.before(1) + self._ridge.predict(self._features(stretch))

    def _features(self, stretch: Stretch) -> NDArray[np.float64]:
        lagged = [stretch.before(lag) for lag in range(1, self._lags + 1)]
        return np.concatenate([np.ones((len(stretch.age), 1)), *lagged], axis=1)


class TimeOfDay:
    """The mean of training rows at this time of day, in quarters of an hour, UTC."""

    name = "time_of_day"
    label = "mean at this time of day"

    def __init__(self, channels: int) -> None:
        self._sums = np.zeros((_DAY_PARTS, channels))
        self._rows = np.zeros(_DAY_PARTS)

    def add(self, stretch: Stretch) -> None:
        """See `Forecast.add`."""
        part = _part_of_day(stretch.time[stretch.first :])
        np.add.at(self._sums, part, stretch.values[stretch.first :])
        np.add.at(self._rows, part, 1)

    def finish(self) -> None:
        """See `Forecast.finish`."""
        self._sums /= np.maximum(self._rows, 1)[:, None]

    def predict(self, stretch: Stretch) -> NDArray[np.float64]:
        """See `Forecast.predict`."""
        return self._sums[_part_of_day(stretch.time)]


def lags_of(channels: int) -> int:
    """Return how many rows back the linear autoregression looks."""
    return max(1, min(_MOST_LAGS, _MOST_FEATURES // channels))


def cheap_forecasts(channels: int, span_ns: int) -> list[Forecast]:
    """Return the forecasts that suit a log: that by time of day only where two days were seen."""
    found: list[Forecast] = [LastValue(), LinearAutoregression(channels)]
    if span_ns >= 2 * DAY_NS:
        found.append(TimeOfDay(channels))
    return found


def errors(stretch: Stretch, predicted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean squared error of each row [R]; NaN for a sequence's first row.

    As in the score of `forecast_anomaly`: over observed channels, an error beyond 10 scales
    counted as 10.
    """
    found = mean_squared_error(
        torch.from_numpy(stretch.observed).double(), torch.from_numpy(predicted)
    ).numpy()
    found[stretch.age < 1] = np.nan
    return found


def _part_of_day(time: NDArray[np.int64]) -> NDArray[np.int64]:
    return time % DAY_NS * _DAY_PARTS // DAY_NS
