"""Streams of a whole model: one event of each entity at a time, eagerly or as a captured graph."""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from sma_core.bench.equality import MismatchError, relative_difference
from sma_core.bench.routing import draw_input, draw_routing, fix_model_routing
from sma_core.config import GatedAttentionConfig, HeadConfig, InputConfig, ModelConfig
from sma_core.inputs import Inputs
from sma_core.model import SequenceModel, SMAModel
from sma_core.state import State

CHANNELS = 8
# Worst of a stream against one pass in float32: other order of sums, at every step.
_TOLERANCE = 1e-4


def stream_config(*, width: int, layers: int, states: int = 16, window: int = 64) -> ModelConfig:
    """Describe a forecasting model with one gated attention a layer."""
    return ModelConfig(
        inputs=InputConfig(numeric=CHANNELS),
        head=HeadConfig(kind="forecast", outputs=CHANNELS),
        width=width,
        layers=layers,
        states=states,
        pool=(
            GatedAttentionConfig(
                query_width=max(2, width // 2), value_width=2 * width, window=window
            ),
        ),
    )


def routed_model(config: ModelConfig, device: torch.device, *, seed: int) -> SMAModel:
    """Make a model that runs its pool exactly at the marked events of `draw_events`."""
    torch.manual_seed(seed)
    model = SMAModel(config).to(device).eval()
    generator = torch.Generator(device).manual_seed(seed)
    active = draw_routing(4, 128, 0.5, generator=generator)
    numeric = draw_input(active, config.inputs.numeric, generator=generator)
    fix_model_routing(model, Inputs(numeric), active)
    return model


def draw_events(
    steps: int, batch: int, density: float, device: torch.device, *, seed: int
) -> list[Float[Tensor, "B 1 C"]]:
    """Events of `batch` entities, of which exactly the given share is to run."""
    generator = torch.Generator(device).manual_seed(seed)
    active = draw_routing(batch, steps, density, generator=generator)
    numeric = draw_input(active, CHANNELS, generator=generator)
    return [numeric[:, t : t + 1].contiguous() for t in range(steps)]


class EagerStep:
    """`SequenceModel.step` as it is.

    Parameters
    ----------
    model
        In evaluation.
    state
        To go on from.
    """

    def __init__(self, model: SequenceModel, state: State) -> None:
        self._model, self._state = model, state

    def __call__(self, event: Float[Tensor, "B 1 C"]) -> Tensor:
        """Take one event of each entity; returns the prediction."""
        return self._model.step(Inputs(event), self._state).prediction


class CapturedStep:
    """A step of static shape: replayed as one CUDA graph, computed eagerly off CUDA.

    It is the pass over a chunk of one step, in the layout ``capacity`` with a slot for every
    event: nothing is read by the host, and every row of the pool is computed.

    Parameters
    ----------
    model
        In evaluation; its layout is ``capacity`` with a share of 1.
    state
        To go on from; its tensors are updated in place.
    channels
        C.
    """

    def __init__(self, model: SequenceModel, state: State, channels: int = CHANNELS) -> None:
        self._model, self._state = model, state
        self._event = torch.zeros(state.batch, 1, channels, device=state.position.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._prediction: Tensor | None = None
        if self._event.is_cuda:
            self._capture()

    def __call__(self, event: Float[Tensor, "B 1 C"]) -> Tensor:
        """Take one event of each entity; returns the prediction, which the next call overwrites."""
        self._event.copy_(event)
        if self._graph is None:
            return self._advance()
        self._graph.replay()
        assert self._prediction is not None  # noqa: S101  (made by the capture)
        return self._prediction

    @torch.no_grad()
    def _advance(self) -> Tensor:
        working = self._state.clone()  # a chunk puts new tensors into its state
        prediction = self._model(Inputs(self._event), working).prediction
        for old, new in zip(self._state.tensors(), working.tensors(), strict=True):
            old.copy_(new)
        return prediction

    def _capture(self) -> None:
        before = self._state.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._advance()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._prediction = self._advance()
        self._graph = graph
        for old, new in zip(self._state.tensors(), before.tensors(), strict=True):
            old.copy_(new)


def static_twin(model: SMAModel) -> SMAModel:
    """Make the same model in the layout that `CapturedStep` needs."""
    twin = SMAModel(replace(model.config, dispatch="capacity", capacity=1.0))
    twin.load_state_dict(model.state_dict())
    return twin.to(model.head.weight.device).eval()


def check_stream(
    name: str, model: SMAModel, make: Callable[[SMAModel, State], EagerStep | CapturedStep]
) -> None:
    """Compare a stream longer than its window with one pass.

    Raises
    ------
    MismatchError
        They differ.
    """
    device = model.head.weight.device
    window = max(getattr(member, "window", 1) for member in model.config.pool)
    events = draw_events(2 * window + 3, 2, 0.7, device, seed=1)
    step = make(model, model.init_state(2))
    found = torch.cat([step(event).clone() for event in events], 1)
    with torch.no_grad():
        expected = model(Inputs(torch.cat(events, 1))).prediction
    difference = relative_difference(found, expected)
    if not difference <= _TOLERANCE:
        raise MismatchError(
            f"{name} stream against one pass: differs by {difference:.3g}, allowed is "
            f"{_TOLERANCE:g}; nothing is timed"
        )
