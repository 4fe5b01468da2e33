"""The candidate as an MLflow model: a copy of this file travels with the checkpoint and loads it.

MLflow imports the copy by its bare name, and calls `_load_pyfunc`. It needs sma-core and not this
package, and nothing is unpickled.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sma_core import Inputs, SequenceModel, load_checkpoint


class SequencePredictor:
    """Predicts for whole sequences, as `sma_core.SequenceModel.forward` does."""

    def __init__(self, model: SequenceModel) -> None:
        self._model = model

    def predict(
        self, model_input: Mapping[str, np.ndarray], params: Any = None
    ) -> dict[str, np.ndarray]:
        """Predict for B sequences of T steps each.

        Parameters
        ----------
        model_input : mapping
            ``numeric`` f32 [B, T, C], scaled as in the prepared data set, NaN = missing;
            ``categorical`` i64 [B, T, K]. Each only where the model has such channels.
        params
            Part of MLflow's protocol; there are none.

        Returns
        -------
        dict
            ``prediction`` f32: [B, T, O], or [B, O] where the model classifies whole sequences.
        """
        given = {name: torch.from_numpy(np.array(rows)) for name, rows in model_input.items()}
        with torch.inference_mode():
            return {"prediction": self._model(Inputs(**given)).prediction.numpy()}


def _load_pyfunc(path: str) -> SequencePredictor:
    """Read the checkpoint, after comparing its weights with their hash; MLflow's protocol."""
    return SequencePredictor(load_checkpoint(Path(path)).model)
