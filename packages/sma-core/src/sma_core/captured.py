"""The step of a stream as one CUDA graph: no work of the host between its kernels."""

import torch

from sma_core.ema import MultiHeadEMA
from sma_core.errors import StreamingError
from sma_core.inputs import Inputs
from sma_core.model import Outputs, SequenceModel
from sma_core.state import State
from sma_core.tracing import as_recording


class CapturedStep:
    """A model's step for a fixed number of sequences, captured once and replayed.

    Every replay computes every sub-module for every sequence, whatever the router decides, and
    gives the predictions of `SequenceModel.step`. It pays where the host, which launches one small
    kernel after another, takes longer than the device.

    Parameters
    ----------
    model : SequenceModel
        On a CUDA device, in evaluation mode. Its weights may change in place afterwards only if the
        step is captured anew.
    example : Inputs
        One step of each sequence: its shapes, not its values, are what counts.
    state : State, optional
        To start from; it is copied. A fresh one by default.

    Attributes
    ----------
    state : State
        Of the sequences, updated in place by every call. To put other sequences in, copy into its
        tensors; they stay where they are.

    Raises
    ------
    StreamingError
        The model is not on a CUDA device, or is bidirectional.
    """

    def __init__(self, model: SequenceModel, example: Inputs, state: State | None = None) -> None:
        if example.device.type != "cuda":
            raise StreamingError(
                f"example: a step is captured on a CUDA device, not on {example.device}; call "
                "model.step instead"
            )
        fresh = model.init_state(example.batch, device=example.device)
        self.state = fresh if state is None else state.clone()
        self._inputs = example.map(torch.Tensor.clone)
        start = self.state.clone()
        # Warm-up, on a stream of its own as capture asks: libraries allocate what they need.
        side = torch.cuda.Stream(example.device)
        side.wait_stream(torch.cuda.current_stream(example.device))
        with torch.cuda.stream(side), as_recording():
            for _ in range(3):
                model.step(self._inputs, self.state)
        torch.cuda.current_stream(example.device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph), as_recording():
            self._outputs = model.step(self._inputs, self.state)
        # The graph reads memory by its address: what it reads lives as long as it does.
        self._read = model, [ema.prepared() for ema in _emas(model)]
        for tensor, before in zip(self.state.tensors(), start.tensors(), strict=True):
            tensor.copy_(before)

    def __call__(self, inputs: Inputs) -> Outputs:
        """Predict for one more step of each sequence.

        The outputs are overwritten by the next call: clone what is to last.

        Parameters
        ----------
        inputs : Inputs
            T = 1, of the example's shapes.
        """
        for place, given in zip(_tensors(self._inputs), _tensors(inputs), strict=True):
            place.copy_(given)
        self._graph.replay()
        return self._outputs


def _emas(model: SequenceModel) -> list[MultiHeadEMA]:
    return [module for module in model.modules() if isinstance(module, MultiHeadEMA)]


def _tensors(inputs: Inputs) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    inputs.map(lambda tensor: found.append(tensor) or tensor)
    return found
