"""Whole models: embed -> layers -> head, in parallel, in chunks with a state, or step by step."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sma_core.config import ArchitectureConfig, ModelConfig
from sma_core.embedding import Embedding, Head, masked_sum
from sma_core.errors import ConfigError, ShapeError, StreamingError
from sma_core.inputs import Inputs
from sma_core.layer import SMALayer
from sma_core.norms import build_norm
from sma_core.routing.decision import RoutingDecision
from sma_core.state import State

__all__ = [
    "Inputs",
    "Outputs",
    "SMAModel",
    "SequenceModel",
    "State",
    "build_model",
    "register_architecture",
]


@dataclass(frozen=True)
class Outputs:
    """What a model returns.

    Parameters
    ----------
    prediction
        One per step, or one per sequence for sequence classification. Padded steps hold values
        without meaning.
    decisions
        One per layer; empty for a model that does not route.
    """

    prediction: Float[Tensor, "B T O"] | Float[Tensor, "B O"]
    decisions: tuple[RoutingDecision, ...]


class SequenceModel(nn.Module):
    """Base of every architecture: embedding, head, padding, state and streaming.

    An architecture defines three methods on the residual stream: `encode` for many steps,
    `encode_step` for one, and `init_layers` for the state that joins them.

    Parameters
    ----------
    config
        What to build.
    """

    def __init__(self, config: ArchitectureConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Embedding(config.inputs, config.width)
        self.head = Head(config.width, config.head.outputs)
        self._pools = config.head.kind == "sequence_classification"

    @abstractmethod
    def encode(
        self,
        x: Float[Tensor, "B T D"],
        position: Int[Tensor, "B T"],
        valid: Bool[Tensor, "B T"] | None,
        layers: list[Any] | None,
    ) -> tuple[Float[Tensor, "B T D"], tuple[RoutingDecision, ...]]:
        """Run the layers over T steps; with `layers`, continue from these states and update them.

        Parameters
        ----------
        x
            Embedded steps.
        position
            Time index of each step, counted from the start of its sequence.
        valid
            Which steps are no padding; None when all are valid.
        layers
            States made by `init_layers`, or None to start afresh and keep nothing.
        """

    @abstractmethod
    def encode_step(
        self, x: Float[Tensor, "B D"], position: Int[Tensor, "B"], layers: list[Any]
    ) -> tuple[Float[Tensor, "B D"], tuple[RoutingDecision, ...]]:
        """Run the layers over one step and update their states in place."""

    @abstractmethod
    def init_layers(self, batch: int, device: torch.device, dtype: torch.dtype) -> list[Any]:
        """Make fresh states of the layers."""

    def forward(self, inputs: Inputs, state: State | None = None) -> Outputs:
        """Predict for all steps at once.

        Parameters
        ----------
        inputs
            A batch of right-padded sequences. Predictions of valid steps do not depend on padding.
        state
            To continue from, updated in place: a sequence of any length may run in chunks, with
            the numbers of one pass. No gradient flows from one chunk to the one before it. In
            sequence classification the prediction is then the one for all steps so far.

        Raises
        ------
        ShapeError
            The inputs do not fit the model or the state.
        StreamingError
            A state was given to a bidirectional model.
        """
        valid = inputs.valid
        position = torch.arange(inputs.steps, device=inputs.device)
        # Not expanded: flattening that would tie an exported graph to more than one sequence.
        position = position + position.new_zeros(inputs.batch, 1)
        if state is not None:
            self._check_state(inputs, state)
            position = position + state.position[:, None]
        x = self.embed(inputs, valid)
        x, decisions = self.encode(x, position, valid, None if state is None else state.layers)
        taken = inputs.lengths
        if taken is None:
            taken = torch.full((inputs.batch,), inputs.steps, device=inputs.device)
        if state is not None:
            state.position = state.position + taken
        if self._pools:
            total, count = masked_sum(x, valid), taken
            if state is not None and state.pooled is not None:
                total, count = state.pooled + total, state.position
                state.pooled = total.detach()
            x = (total / count.clamp_min(1)[:, None]).to(x.dtype)
        return Outputs(self.head(x), decisions)

    def init_state(
        self,
        batch: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> State:
        """Make the state of `batch` sequences before their first step.

        Parameters
        ----------
        batch
            Number of sequences.
        device, dtype
            Of the state; those of the model's weights by default. Recurrent sums stay in float32
            at least.

        Raises
        ------
        StreamingError
            The model is bidirectional.
        """
        self._check_causal()
        weight = self.head.weight
        device = weight.device if device is None else torch.device(device)
        # Normal tensors even when made under inference_mode, so that they outlive it.
        with torch.inference_mode(False):
            pooled = None
            if self._pools:
                wide = torch.promote_types(dtype or weight.dtype, torch.float32)
                pooled = torch.zeros(batch, self.config.width, device=device, dtype=wide)
            return State(
                position=torch.zeros(batch, dtype=torch.int64, device=device),
                layers=self.init_layers(batch, device, dtype or weight.dtype),
                pooled=pooled,
            )

    @torch.inference_mode()
    def step(self, inputs: Inputs, state: State) -> Outputs:
        """Predict for one more step of each sequence, in constant time, without gradient.

        Parameters
        ----------
        inputs
            T = 1, no lengths.
        state
            Updated in place.

        Returns
        -------
        Outputs
            As of `forward`: prediction [B, 1, O], or [B, O] for sequence classification.

        Raises
        ------
        ShapeError
            The inputs do not fit the model or the state, or hold more than one step.
        StreamingError
            The model is bidirectional.
        """
        self._check_state(inputs, state)
        if inputs.steps != 1 or inputs.lengths is not None:
            raise ShapeError(
                f"inputs: step takes one time step and no lengths, not {inputs.steps} steps"
            )
        x = self.embed(inputs)[:, 0]
        x, decisions = self.encode_step(x, state.position, state.layers)
        state.position.add_(1)
        if not self._pools:
            return Outputs(self.head(x).unsqueeze(1), decisions)
        assert state.pooled is not None  # noqa: S101  (held by init_state)
        state.pooled.add_(x)
        return Outputs(self.head((state.pooled / state.position[:, None]).to(x.dtype)), decisions)

    def _check_causal(self) -> None:
        if not self.config.causal:
            raise StreamingError(
                "a bidirectional model sees the future and cannot stream: "
                "train one with bidirectional = false"
            )

    def _check_state(self, inputs: Inputs, state: State) -> None:
        self._check_causal()
        if state.batch != inputs.batch or state.position.device != inputs.device:
            raise ShapeError(
                f"state: made for {state.batch} sequences on {state.position.device}, the inputs "
                f"hold {inputs.batch} on {inputs.device}"
            )


_ARCHITECTURES: dict[type[ArchitectureConfig], type[SequenceModel]] = {}


def register_architecture(config: type[ArchitectureConfig], model: type[SequenceModel]) -> None:
    """Make `build_model` answer configurations of the class `config` with `model`."""
    _ARCHITECTURES[config] = model


def build_model(config: ArchitectureConfig) -> SequenceModel:
    """Make a freshly initialised model of any registered architecture.

    Raises
    ------
    ConfigError
        No model is registered for this class of configuration.
    """
    try:
        model = _ARCHITECTURES[type(config)]
    except KeyError:
        known = ", ".join(sorted(c.__name__ for c in _ARCHITECTURES))
        raise ConfigError(
            f"architecture: no model for {type(config).__name__}; the known ones are {known}"
        ) from None
    return model(config)


class SMAModel(SequenceModel):
    """A stack of `SMALayer` (Ren et al., arXiv 2306.11197), with any pool of sub-modules."""

    config: ModelConfig

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(SMALayer(config, index) for index in range(config.layers))
        # Post-norm layers leave a normalised stream already.
        self.norm = build_norm(config.norm, config.width) if config.prenorm else None

    def encode(
        self,
        x: Float[Tensor, "B T D"],
        position: Int[Tensor, "B T"],
        valid: Bool[Tensor, "B T"] | None,
        layers: list[Any] | None,
    ) -> tuple[Float[Tensor, "B T D"], tuple[RoutingDecision, ...]]:
        """See `SequenceModel.encode`."""
        decisions = []
        for i, layer in enumerate(self.layers):
            x, decision = layer(x, position, valid, None if layers is None else layers[i])
            decisions.append(decision)
        return x if self.norm is None else self.norm(x, valid), tuple(decisions)

    def encode_step(
        self, x: Float[Tensor, "B D"], position: Int[Tensor, "B"], layers: list[Any]
    ) -> tuple[Float[Tensor, "B D"], tuple[RoutingDecision, ...]]:
        """See `SequenceModel.encode_step`."""
        decisions = []
        for layer, state in zip(self.layers, layers, strict=True):
            x, decision = cast(SMALayer, layer).step(x, position, state)
            decisions.append(decision)
        return x if self.norm is None else self.norm(x), tuple(decisions)

    def init_layers(self, batch: int, device: torch.device, dtype: torch.dtype) -> list[Any]:
        """See `SequenceModel.init_layers`."""
        return [cast(SMALayer, layer).init_state(batch, device, dtype) for layer in self.layers]


register_architecture(ModelConfig, SMAModel)
