"""The two graphs of a model: all steps at once, or one step from a state to the next.

Both really skip: the active rows are taken by `nonzero`, whose size a graph need not know, so that
a sub-module multiplies as many rows as are active and no more.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as shape_config

from sma_core.config import ModelConfig
from sma_core.ema import CHUNK, EXPORTED_DOUBLINGS
from sma_core.errors import ConfigError, ExportError, StreamingError
from sma_core.inputs import Inputs
from sma_core.model import SequenceModel, State, build_model
from sma_core.policy_configs import BudgetConfig, TopKConfig
from sma_core.tracing import as_export

GraphKind = Literal["parallel", "step"]
MAX_STEPS = CHUNK * 2**EXPORTED_DOUBLINGS
MAX_BATCH = 2**20


@dataclass(frozen=True)
class Slot:
    """One tensor that goes in or comes out; a text in `shape` is an axis of any length."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Graph:
    """A graph, ready to be captured and compared.

    Parameters
    ----------
    kind
        ``parallel`` or ``step``.
    model
        A copy of the user's model, float32, on the CPU, in evaluation.
    module
        What is captured: tensors in, tensors out.
    inputs, outputs
        Its tensors in order. Those of a step end in the state.
    initial
        Value that fills each state tensor before the first step, by its name.
    """

    kind: GraphKind
    model: SequenceModel
    module: nn.Module
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    initial: dict[str, float]

    def example(self, batch: int, steps: int, *, seed: int) -> tuple[Tensor, ...]:
        """Draw channels, with lengths from the longest down (parallel) or a fresh state (step)."""
        generator = torch.Generator().manual_seed(seed)
        config, drawn = self.model.config.inputs, []
        if config.numeric:
            numeric = torch.randn(batch, steps, config.numeric, generator=generator)
            gaps = torch.rand(numeric.shape, generator=generator) < 0.05
            drawn.append(numeric.masked_fill(gaps, float("nan")))
        if config.categorical:
            columns = [
                torch.randint(n, (batch, steps), generator=generator) for n in config.categorical
            ]
            drawn.append(torch.stack(columns, dim=-1))
        if self.kind == "step":
            return (*drawn, *self.model.init_state(batch).tensors())
        return (*drawn, (steps - torch.arange(batch) * steps // (2 * batch)))

    def capture(self) -> ExportedProgram:
        """Trace the graph, for any batch and length.

        Raises
        ------
        ExportError
            A part of the model, such as a sub-module of one's own, cannot be traced.
        """
        batch, steps = Dim("batch", min=1, max=MAX_BATCH), Dim("steps", min=1, max=MAX_STEPS)
        axes = {"batch": batch, "steps": steps}
        shapes = tuple(
            {i: axes[size] for i, size in enumerate(slot.shape) if isinstance(size, str)}
            for slot in self.inputs
        )
        with torch.no_grad(), any_size(), as_export():
            try:
                program = torch.export.export(
                    self.module,
                    self.example(3, 1 if self.kind == "step" else CHUNK + 6, seed=0),
                    dynamic_shapes=(shapes,),
                    strict=False,
                    prefer_deferred_runtime_asserts_over_guards=True,
                )
            except Exception as error:  # torch raises a dozen kinds here
                raise ExportError(
                    f"the {self.kind} graph cannot be traced; a policy or sub-module of your own "
                    f"must not read values of tensors: {error}"
                ) from error
        for node in program.graph.nodes:  # paths of this machine have no place in the file
            node.meta.pop("stack_trace", None)
        return program


def any_size() -> AbstractContextManager[Any]:
    """Trace and compile without a special case for sizes of 1."""
    return cast(Any, shape_config).patch(backed_size_oblivious=True)


def build_graph(model: SequenceModel, kind: GraphKind) -> Graph:
    """Make a graph of a copy of `model`.

    Raises
    ------
    ConfigError
        `kind` is unknown, or the model holds what no graph can express; the message names the
        field.
    StreamingError
        The step of a bidirectional model was asked for.
    """
    _check(model, kind)
    with torch.random.fork_rng(devices=[]):
        copy = build_model(model.config)
    copy.load_state_dict({name: t.detach().cpu() for name, t in model.state_dict().items()})
    copy.float().eval()
    config, steps = copy.config, 1 if kind == "step" else "steps"
    channels = []
    if config.inputs.numeric:
        channels.append(Slot("numeric", "float32", ("batch", steps, config.inputs.numeric)))
    if sizes := config.inputs.categorical:
        channels.append(Slot("categorical", "int64", ("batch", steps, len(sizes))))
    pools = config.head.kind == "sequence_classification"
    shape = ("batch", config.head.outputs) if pools else ("batch", steps, config.head.outputs)
    prediction = Slot("prediction", "float32", shape)
    if kind == "parallel":
        lengths = Slot("lengths", "int64", ("batch",))
        inputs = (*channels, lengths)
        return Graph(kind, copy, _Parallel(copy), inputs, (prediction,), {})
    state = copy.init_state(1)
    named = list(state.named_tensors())
    before, after = (_state_slots(named, prefix) for prefix in ("state.", "next."))
    initial = {f"state.{name}": tensor.flatten()[0].item() for name, tensor in named}
    return Graph(
        kind, copy, _Step(copy, state), (*channels, *before), (prediction, *after), initial
    )


def _state_slots(named: list[tuple[str, Tensor]], prefix: str) -> list[Slot]:
    return [
        Slot(prefix + name, str(t.dtype).removeprefix("torch."), ("batch", *t.shape[1:]))
        for name, t in named
    ]


def _check(model: SequenceModel, kind: GraphKind) -> None:
    if kind not in get_args(GraphKind):
        raise ConfigError(f"graph: must be one of {', '.join(get_args(GraphKind))}, not {kind!r}")
    config = model.config
    if not isinstance(config, ModelConfig):
        raise ConfigError(
            f"architecture: only models of ModelConfig are exported, not {config.architecture!r}"
        )
    policy = config.policy
    if kind == "step":
        if not config.causal:
            raise StreamingError(
                "bidirectional: such a model sees the future and has no step graph: export "
                'graph="parallel", or train one with bidirectional = false'
            )
        if isinstance(policy, TopKConfig) and policy.evaluation == "top_k":
            raise ConfigError(
                "policy.evaluation: top_k looks ahead and has no step graph: export "
                'graph="parallel", or set evaluation = "predictor"'
            )
    elif isinstance(policy, BudgetConfig):
        raise ConfigError(
            "policy: budget steers block by block, as many times as the sequence has blocks, "
            'which no graph of any length holds: export graph="step"'
        )


class _Flat(nn.Module):
    """Base of graphs: channels come first, in the order of `Inputs`."""

    def __init__(self, model: SequenceModel) -> None:
        super().__init__()
        self.model = model
        given = model.config.inputs
        self._channels = [bool(given.numeric), bool(given.categorical)]

    def _inputs(self, tensors: tuple[Tensor, ...], lengths: Tensor | None) -> Inputs:
        rest = iter(tensors)
        numeric, categorical = (next(rest) if given else None for given in self._channels)
        return Inputs(numeric, categorical, lengths)


class _Parallel(_Flat):
    """Channels and lengths to predictions."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return (self.model(self._inputs(tensors[:-1], tensors[-1])).prediction,)


class _Step(_Flat):
    """Channels of one step and a state to a prediction and the next state."""

    def __init__(self, model: SequenceModel, state: State) -> None:
        super().__init__(model)
        self._state = state  # for its structure; not one of its tensors is read

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        count = sum(self._channels)
        # Copies: the model updates its state in place, and a graph must not write to its inputs.
        fresh = iter([tensor.clone() for tensor in tensors[count:]])
        state = self._state.map(lambda _: next(fresh))
        # Past the decorator: a graph has no inference mode.
        step: Any = cast(Any, type(self.model).step).__wrapped__
        prediction = step(self.model, self._inputs(tensors[:count], None), state).prediction
        return (prediction, *state.tensors())
