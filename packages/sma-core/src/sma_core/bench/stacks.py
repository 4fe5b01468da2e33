"""Whole models to compare: ours, and stacks of the peers' blocks with the same edges."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sma_core.baselines import dense_twin
from sma_core.bench.cases import VARIANTS
from sma_core.bench.equality import TimeFirst, exact_products
from sma_core.bench.peers import BLOCKS, build_peer
from sma_core.bench.routing import draw_input, draw_routing, fix_model_routing
from sma_core.bench.sizes import LayerSizes
from sma_core.config import HeadConfig, HeadKind, InputConfig, ModelConfig, TransformerConfig
from sma_core.inputs import Inputs
from sma_core.model import SequenceModel, SMAModel, build_model

CHANNELS, CLASSES = 8, 10
_ROWS = 32  # slots of a sequence come in multiples of this


class Bare(nn.Module):
    """A model as a function of its numeric channels; what ran is kept in `decisions`."""

    def __init__(self, model: SequenceModel) -> None:
        super().__init__()
        self.model = model
        self.decisions: tuple[Any, ...] = ()

    def forward(self, numeric: Float[Tensor, "B T C"]) -> Tensor:
        """Predict."""
        outputs = self.model(Inputs(numeric))
        self.decisions = outputs.decisions
        return outputs.prediction


class Stack(nn.Module):
    """Blocks between the embedding, norm and head of a model of ours."""

    def __init__(self, model: SMAModel, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.embed, self.norm = copy.deepcopy(model.embed), copy.deepcopy(model.norm)
        self.head = copy.deepcopy(model.head)
        self.blocks = nn.ModuleList(blocks)
        self._pools = model.config.head.kind == "sequence_classification"

    def forward(self, numeric: Float[Tensor, "B T C"]) -> Tensor:
        """Predict."""
        x = self.embed(Inputs(numeric))
        for block in self.blocks:
            x = block(x)
        x = x if self.norm is None else self.norm(x)
        return self.head(x.mean(1) if self._pools else x)


@dataclass
class ModelCase:
    """One model, ready: a train step with loss and optimiser, and an inference step.

    The learning rate is 0, so that what runs stays what was asked for.
    """

    name: str
    module: nn.Module
    run: Callable[[Tensor], Tensor]
    numeric: Float[Tensor, "B T C"]
    target: Tensor
    rounded: bool
    optimiser: torch.optim.Optimizer
    graphs: bool = False

    def loss(self) -> Tensor:
        """Cross-entropy of a class, or mean squared error of every step."""
        with torch.autocast(self.numeric.device.type, torch.bfloat16, enabled=self.rounded):
            prediction = self.run(self.numeric)
        if self.target.is_floating_point():
            return F.mse_loss(prediction.float(), self.target)
        return F.cross_entropy(prediction.float(), self.target)

    def train_step(self) -> None:
        """Forward, backward, and a step of the optimiser."""
        self._begin()
        self.optimiser.zero_grad(set_to_none=True)
        self.loss().backward()
        self.optimiser.step()
        self._end()

    def infer_step(self) -> None:
        """Forward without gradient."""
        self.predict()
        self._end()

    def predict(self) -> Tensor:
        """Prediction without gradient; what ran can be asked for afterwards."""
        self._begin()
        with (
            torch.no_grad(),
            torch.autocast(self.numeric.device.type, torch.bfloat16, enabled=self.rounded),
        ):
            return self.run(self.numeric)

    def ran(self) -> tuple[float, int] | None:
        """Share of steps that ran in the last prediction, and how many found no slot."""
        if not isinstance(self.module, Bare) or not self.module.decisions:
            return None
        decisions = self.module.decisions
        shares = [d.active.double().mean().item() for d in decisions]
        dropped = sum(int(d.dropped.sum()) for d in decisions if d.dropped is not None)
        return sum(shares) / len(shares), dropped

    def release(self) -> None:
        """Give up gradients."""
        self.optimiser.zero_grad(set_to_none=True)
        self._end()

    def _begin(self) -> None:
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()

    def _end(self) -> None:
        if isinstance(self.module, Bare):
            self.module.decisions = ()


class ModelProblem:
    """Weights and data of one task and one length, and the cases made of them.

    Parameters
    ----------
    sizes
        Widths of each layer.
    layers
        Number of layers.
    kind
        ``sequence_classification`` or ``forecast``.
    batch, steps
        B and T.
    density
        Share of steps that each layer runs, exactly.
    device
        Where all lies.
    rounded
        Whether products are rounded to bfloat16.
    compiles
        Whether to use `torch.compile`.
    seed
        Of weights and data.
    """

    def __init__(
        self,
        sizes: LayerSizes,
        *,
        layers: int,
        kind: HeadKind,
        batch: int,
        steps: int,
        density: float,
        device: torch.device,
        rounded: bool,
        compiles: bool,
        seed: int,
    ) -> None:
        self.sizes, self.device, self.steps = sizes, device, steps
        self.rounded, self.compiles = rounded, compiles
        torch.manual_seed(seed)
        generator = torch.Generator(device).manual_seed(seed)
        active: Bool[Tensor, "B T"] = draw_routing(batch, steps, density, generator=generator)
        self.numeric = draw_input(active, CHANNELS, generator=generator)
        if kind == "forecast":
            self.target = torch.randn(self.numeric.shape, generator=generator, device=device)
        else:
            self.target = torch.randint(CLASSES, (batch,), generator=generator, device=device)
        self.config = ModelConfig(
            inputs=InputConfig(numeric=CHANNELS),
            head=HeadConfig(kind=kind, outputs=CHANNELS if kind == "forecast" else CLASSES),
            width=sizes.width,
            layers=layers,
            **sizes.fields(),
        )
        self.model = SMAModel(self.config).to(device)
        with exact_products():
            fix_model_routing(self.model, Inputs(self.numeric[:, :4096]), active[:, :4096])
        slots = -(-int(active.sum(1).max()) // _ROWS) * _ROWS + _ROWS * (steps > 10**6)
        self.capacity = min(steps, max(1, slots)) / steps

    def truth(self) -> Tensor:
        """Prediction of the plain path: packed, eager, float32."""
        with exact_products(), torch.no_grad():
            return self.model(Inputs(self.numeric)).prediction

    def ours(self, name: str) -> ModelCase:
        """Make a case of `cases.VARIANTS`."""
        variant = VARIANTS[name]
        config = replace(self.config, dispatch=variant.dispatch, capacity=self.capacity)
        model = build_model(dense_twin(config) if variant.dense else config)
        known = model.state_dict()
        model.load_state_dict({n: w for n, w in self.model.state_dict().items() if n in known})
        mode = variant.mode if self.compiles else None
        return self._case(name, Bare(model), mode)

    def peer(self, name: str) -> ModelCase:
        """Make a stack of a block of `peers.BLOCKS`."""
        blocks = [BLOCKS[name](self.sizes) for _ in range(self.config.layers)]
        return self._case(
            name,
            Stack(self.model, blocks),
            "default" if self.compiles and name not in ("gla", "retnet") else None,
        )

    def baseline(self) -> ModelCase:
        """Make the library's own Transformer, whose attention slides, with rotary positions."""
        config = TransformerConfig(
            inputs=self.config.inputs,
            head=self.config.head,
            width=self.sizes.width,
            layers=self.config.layers,
            heads=max(1, self.sizes.width // 64),
            hidden_width=4 * self.sizes.width,
            window=self.sizes.window,
        )
        return self._case(
            "baseline", Bare(build_model(config)), "default" if self.compiles else None
        )

    def file_peer(self, layer: type[nn.Module]) -> ModelCase:
        """Make a stack of a layer with the published interface and our weights, eager."""
        blocks: list[nn.Module] = [
            TimeFirst(build_peer(layer, self.sizes, ours.state_dict(), steps=self.steps))
            for ours in self.model.layers
        ]
        return self._case("reference", Stack(self.model, blocks), None)

    def _case(self, name: str, module: nn.Module, mode: str | None) -> ModelCase:
        module = module.to(self.device)
        cuda = self.device.type == "cuda"
        with torch.no_grad():  # tables move to the device in the first pass: see `Problem.ours`
            module(self.numeric[:, :_ROWS])
        return ModelCase(
            name=name,
            module=module,
            run=module if mode is None else torch.compile(module, mode=mode),
            numeric=self.numeric,
            target=self.target,
            rounded=self.rounded,
            optimiser=torch.optim.AdamW(
                module.parameters(), lr=0.0, weight_decay=0.0, fused=True if cuda else None
            ),
            graphs=cuda and mode == "reduce-overhead",
        )
