"""Run a step graph of `sma_core.export` with ONNX Runtime and NumPy alone; copy this file.

Neither torch nor sma_core is imported: this is what a small device needs.

    stepper = OnnxStepper("step.onnx")
    stepper.reset(batch=1)
    prediction = stepper.step(numeric=numpy.array([[0.1, 0.2]], dtype=numpy.float32))
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


class OnnxStepper:
    """A stream of B sequences under ONNX Runtime.

    Parameters
    ----------
    path : Path or str
        The ``.onnx`` file; its manifest lies beside it.
    threads : int
        Cores of one step.

    Raises
    ------
    ValueError
        The manifest is of another format or graph, or the file is not the one it describes.
    """

    def __init__(self, path: Path | str, *, threads: int = 1) -> None:
        path = Path(path)
        manifest = json.loads(path.with_name(path.name + ".json").read_text(encoding="utf-8"))
        said = [manifest.get(key) for key in ("format", "version", "runtime", "graph")]
        if said != ["sma.export", 1, "onnx", "step"]:
            raise ValueError(f"{path}: the manifest is not that of an ONNX step graph: {said}")
        if hashlib.sha256(path.read_bytes()).hexdigest() != manifest["sha256"]:
            raise ValueError(f"{path}: not the file that its manifest describes: copy both again")
        self.manifest: dict[str, Any] = manifest
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session: Any = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self._initial: dict[str, float] = manifest["initial_state"]
        self._slots = {slot["name"]: slot for slot in manifest["inputs"]}
        self._state: dict[str, np.ndarray] = {}
        self.reset(1)

    def reset(self, batch: int) -> None:
        """Start `batch` sequences afresh."""
        self._state = {
            name: np.full((batch, *self._slots[name]["shape"][1:]), value, self._dtype(name))
            for name, value in self._initial.items()
        }

    def step(
        self, numeric: np.ndarray | None = None, categorical: np.ndarray | None = None
    ) -> np.ndarray:
        """Take one event of each sequence.

        Parameters
        ----------
        numeric, categorical : array
            Channels [B, C] of this step, where the model has such; NaN = missing.

        Returns
        -------
        array
            Predictions [B, O].
        """
        feed = dict(self._state)
        for name, given in (("numeric", numeric), ("categorical", categorical)):
            if (given is not None) != (name in self._slots):
                wanted = "takes" if name in self._slots else "has no"
                raise ValueError(f"{name}: the model {wanted} such channels")
            if given is not None:
                feed[name] = np.asarray(given, self._dtype(name))[:, None]
        prediction, *state = self._session.run(None, feed)
        self._state = dict(zip(self._initial, state, strict=True))
        return prediction.reshape(len(prediction), -1)

    def _dtype(self, name: str) -> np.dtype:
        return np.dtype(self._slots[name]["dtype"])
