"""Layers of the public SeqBoat code on small inputs: how a case is run here, and recorded ones.

The recorded file is written by ``experiments/seqboat_parity.py`` from random numbers.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tests.core.parity import Parity, compare
from tests.tolerances import relative_difference
from torch import Tensor

from sma_core.config import Norm, Position, Score
from sma_core.interop.seqboat import load_layer, translate
from sma_core.layer import SMALayer

RECORDED = Path(__file__).parent / "data" / "seqboat.safetensors"


@dataclass(frozen=True, kw_only=True)
class Case:
    """Settings of a layer and how it is run."""

    bidirectional: bool
    score: Score
    position: Position
    norm: Norm
    prenorm: bool
    window: int
    training: bool  # without dropout: batch norm takes the statistics of the batch
    route: str  # which steps run the attention

    @property
    def name(self) -> str:
        """The settings in words."""
        return ", ".join(
            (
                "bidirectional" if self.bidirectional else "causal",
                self.score,
                self.position,
                self.norm,
                "pre" if self.prenorm else "post",
                "training" if self.training else "evaluation",
                self.route,
            )
        )


@dataclass(frozen=True)
class Problem:
    """Weights by the original's names, and a batch."""

    weights: dict[str, Tensor]
    x: Tensor  # [B, T, D]
    lengths: Tensor | None  # [B]
    seed: Tensor  # [B, T, D]: the gradient of the output

    @property
    def valid(self) -> Tensor | None:
        """Steps that are no padding."""
        if self.lengths is None:
            return None
        return torch.arange(self.x.shape[1]) < self.lengths[:, None]

    def keep(self, y: Tensor) -> Tensor:
        """The valid steps of y [B, T, D], as rows."""
        return y.flatten(0, 1) if self.valid is None else y[self.valid]


@dataclass(frozen=True)
class Results:
    """What a run gave.

    Parameters
    ----------
    output
        Of the valid steps, as rows.
    gradients
        Of every weight by our names, and of the input as ``x``.
    averages
        Of batch norm, after the run.
    """

    output: Tensor
    gradients: dict[str, Tensor]
    averages: dict[str, Tensor]


def load_ours(case: Case, weights: dict[str, Tensor]) -> SMALayer:
    """Read the weights into our layer."""
    layer = load_layer(
        weights,
        window=case.window,
        score=case.score,
        prenorm=case.prenorm,
        local=None if case.position == "rotary" else case.position == "local",
    )
    return layer.train(case.training)


def run_ours(case: Case, problem: Problem) -> Results:
    """Load, run forward and backward."""
    layer = load_ours(case, problem.weights)
    x = problem.x.clone().requires_grad_()
    batch, steps, _ = x.shape
    y = problem.keep(layer(x, torch.arange(steps).expand(batch, -1), problem.valid)[0])
    (y * problem.keep(problem.seed)).sum().backward()
    gradients = {"x": x.grad} | {name: p.grad for name, p in layer.named_parameters()}
    assert all(g is not None for g in gradients.values()), "every weight stays in the graph"
    averages = {k: v for k, v in layer.named_buffers() if k.startswith("norm.running")}
    return Results(y.detach(), gradients, averages)  # type: ignore[arg-type]


def difference(ours: Results, theirs: Results) -> Parity:
    """Largest relative differences; those of batch norm's averages count as outputs."""
    result = compare((ours.output, ours.gradients), (theirs.output, theirs.gradients))
    assert ours.averages.keys() == theirs.averages.keys()
    for name, average in ours.averages.items():
        worst = relative_difference(average, theirs.averages[name])
        result = result.worse(Parity(worst, 0.0))
    return result


def read_recorded() -> list[tuple[Case, Problem, Results]]:
    """Cases that the original computed."""
    with safe_open(RECORDED, "pt") as file:
        cases = [Case(**fields) for fields in json.loads(file.metadata()["cases"])]
        tensors: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return [_recorded(case, _under(tensors, f"{i}.")) for i, case in enumerate(cases)]


def _recorded(case: Case, tensors: dict[str, Tensor]) -> tuple[Case, Problem, Results]:
    weights = _under(tensors, "weights.")
    problem = Problem(weights, tensors["x"], tensors.get("lengths"), tensors["seed"])
    gradients = _under(tensors, "gradients.")
    config = load_ours(case, weights).config
    return (
        case,
        problem,
        Results(
            tensors["output"],
            {"x": gradients.pop("x")} | translate(gradients, config),
            _under(tensors, "averages."),
        ),
    )


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
