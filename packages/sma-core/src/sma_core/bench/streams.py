"""Streams of a whole model: one event of each entity at a time, eagerly or as a captured graph."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from sma_core.bench.equality import MismatchError, relative_difference
from sma_core.bench.routing import draw_input, draw_routing, fix_model_routing
from sma_core.captured import CapturedStep
from sma_core.config import GatedAttentionConfig, HeadConfig, InputConfig, ModelConfig
from sma_core.inputs import Inputs
from sma_core.model import SequenceModel, SMAModel
from sma_core.state import State
from sma_core.tracing import as_recording

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


class RecordedStep:
    """The step that CUDA graphs record: replayed on CUDA, computed eagerly elsewhere.

    Parameters
    ----------
    model
        In evaluation.
    state
        To go on from.
    channels
        C.
    """

    def __init__(self, model: SequenceModel, state: State, channels: int = CHANNELS) -> None:
        self._model, self._state = model, state
        event = torch.zeros(state.batch, 1, channels, device=state.position.device)
        self._captured = CapturedStep(model, Inputs(event), state) if event.is_cuda else None

    def __call__(self, event: Float[Tensor, "B 1 C"]) -> Tensor:
        """Take one event of each entity; returns the prediction, which the next call overwrites."""
        if self._captured is not None:
            return self._captured(Inputs(event)).prediction
        with as_recording():
            return self._model.step(Inputs(event), self._state).prediction


def check_stream(
    name: str, model: SMAModel, make: Callable[[SMAModel, State], EagerStep | RecordedStep]
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
