"""Logistic regression over classes: the fit by scikit-learn, and what its sums mean."""

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor


def regress(design: Any, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Fit a logistic regression.

    Parameters
    ----------
    design : array or sparse matrix [N, F]
        Features.
    target : Tensor, int [N]
        Class of each row, each class at least once.
    weight : Tensor, float [N]
        Of each row.

    Returns
    -------
    weights : Tensor, float64 [F, K]
        Of K classes; of two classes there is one column, that of the second.
    bias : Tensor, float64 [K]
    converged : bool
    """
    # Importing scikit-learn takes a second, and only fitting needs it.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=500)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(design, target.numpy(), sample_weight=(weight / weight.mean()).numpy())
    converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    weights, bias = np.asarray(model.coef_), np.asarray(model.intercept_)
    return torch.from_numpy(weights.T.copy()), torch.from_numpy(bias), converged


def probabilities(sums: Tensor) -> Tensor:
    """Return the probability of each class [..., K] from the sums of `regress`."""
    if sums.shape[-1] > 1:
        return sums.softmax(-1)
    second = sums.sigmoid()
    return torch.cat([1.0 - second, second], -1)
