"""The plain baseline of remaining life: ridge regression on a row and the short past behind it."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from sma_core.dataset import PreparedDataset
from sma_pilot.arms.base import Scores
from sma_pilot.arms.linear import LinearScorer, train_chunks, where_known
from sma_pilot.arms.weights import is_fitted, load_fit, save_fit
from sma_pilot.plan import Plan
from sma_pilot.progress import OnProgress
from sma_pilot.targets import class_scores

_KIND = "ridge"
_PENALTY = 1e-3
# Each value of a categorical channel is a column: a smaller chunk keeps a wide one in memory.
_CHUNK_ROWS = 4096


class RidgeArm:
    """The score, 1 less the remaining life, from the features of `sma_pilot.arms.linear`.

    Least squares with a penalty of a thousandth of a feature's variance [1]_, from sums over all
    training rows in one pass. A row is taught the middle of its class of life (`targets`), a 40th
    of the horizon from its life at most.

    References
    ----------
    .. [1] A. E. Hoerl, R. W. Kennard, "Ridge regression: biased estimation for nonorthogonal
       problems", Technometrics 12, 1970.
    """

    def __init__(self, plan: Plan, role: str, data: Path) -> None:
        self.role = role
        self._task = plan.task

    def check(self, dataset: PreparedDataset) -> None:
        """Whatever the channels, a regression can be built on them."""

    def fit(self, dataset: PreparedDataset, folder: Path, on_progress: OnProgress) -> None:
        """See `Arm.fit`."""
        wanted = {"dataset": dataset.card.digest}
        if is_fitted(folder, _KIND, wanted):
            return
        train = dataset.split("train")
        vocabularies = [len(channel.vocabulary) for channel in dataset.card.categorical]
        dense = 3 * len(dataset.card.numeric)
        taught = torch.tensor(class_scores(self._task), dtype=torch.float64)
        width = dense + sum(vocabularies) + 1
        sums = torch.zeros(width, width, dtype=torch.float64)
        done = count = 0
        for numeric, categorical, target in train_chunks(train, _CHUNK_ROWS):
            on_progress(f"fit {self.role}", done, train.rows)
            done += len(target)
            known = target >= 0
            columns = [numeric[known].double()]
            if categorical is not None:
                columns += [
                    one_hot(values.long(), size).double()
                    for values, size in zip(categorical[known].T, vocabularies, strict=True)
                ]
            rows = torch.cat([*columns, taught[target[known].long(), None]], 1)
            sums[-1, :-1] += rows[:, :-1].sum(0)
            sums[:-1, :-1] += rows[:, :-1].T @ rows[:, :-1]
            sums[:-1, -1] += rows[:, :-1].T @ rows[:, -1]
            sums[-1, -1] += rows[:, -1].sum()
            count += len(rows)
        weights, bias = _solve(sums / max(count, 1), dense)
        tensors = {
            "numeric": weights[:dense, None].float(),
            "categorical": weights[dense:, None].float(),
            "vocabularies": torch.tensor(vocabularies, dtype=torch.int64),
            "bias": bias.float().reshape(1),
        }
        save_fit(folder, _KIND, {"fitted": wanted, "rows": count}, tensors)
        on_progress(f"fit {self.role}", train.rows, train.rows)

    def open(self, folder: Path) -> "RidgeScorer":
        """See `Arm.open`."""
        _, tensors = load_fit(folder, _KIND)
        return RidgeScorer(**tensors)


def _solve(means: Tensor, dense: int) -> tuple[Tensor, Tensor]:
    """Return weights [F] and bias of the regression.

    Parameters
    ----------
    means : Tensor, float64 [F + 1, F + 1]
        Mean products of the features, their products with the target in the last column, and in
        the last row the means of features and target.
    dense : int
        How many features, the first ones, are measured and scaled here; the others are 0 or 1.
    """
    mean, target_mean = means[-1, :-1], means[-1, -1]
    covariance = means[:-1, :-1] - torch.outer(mean, mean)
    scale = covariance.diagonal().clamp_min(0).sqrt()
    # A constant feature has nothing to say, and a scale of nearly 0 would have it shout.
    scale = torch.where(scale > 1e-6, scale, 1.0)
    scale[dense:] = 1.0
    penalised = covariance / torch.outer(scale, scale) + _PENALTY * torch.eye(len(scale))
    shared = (means[:-1, -1] - mean * target_mean) / scale
    weights = torch.linalg.solve(penalised, shared) / scale
    return weights, target_mean - (weights * mean).sum()


class RidgeScorer(LinearScorer):
    """Scores a row by 1 less its predicted life in shares of the horizon, within 0 and 1."""

    def _scores(self, outputs: Tensor, known: Tensor | None) -> Scores:
        return Scores(where_known(outputs[..., 0].clamp(0.0, 1.0), known))
