"""A model with some of its parts exchanged, which shares all others and leaves it as it is."""

import copy
from collections.abc import Iterator, Sequence
from typing import TypeVar

from torch import nn

from sma_core.errors import ShapeError
from sma_core.inputs import Inputs
from sma_core.model import SMAModel
from sma_core.trace import DecisionIndex

Module = TypeVar("Module", bound=nn.Module)


def exchanged(module: Module, **parts: nn.Module) -> Module:
    """Make a shallow copy of a module in which the named parts are others.

    Weights are shared, nothing is copied, and the module itself does not change: no call of it
    from elsewhere can see the exchange.
    """
    view = copy.copy(module)
    view._modules = {**module._modules, **parts}
    return view


def by_layer(
    decisions: Sequence[DecisionIndex], rows: int
) -> Iterator[tuple[int, list[int], list[DecisionIndex]]]:
    """Cut decisions into batches of up to `rows` of one layer, with their places in the list."""
    for layer in sorted({decision.layer for decision in decisions}):
        places = [i for i, decision in enumerate(decisions) if decision.layer == layer]
        for start in range(0, len(places), rows):
            some = places[start : start + rows]
            yield layer, some, [decisions[i] for i in some]


def check_decisions(
    model: SMAModel, inputs: Inputs, decisions: Sequence[DecisionIndex], rows: int
) -> None:
    """Raise `ShapeError` unless the model takes each of these decisions at a valid step."""
    if rows < 1:
        raise ShapeError(f"rows: a batch holds at least 1 row, not {rows}")
    lengths = [inputs.steps] * inputs.batch if inputs.lengths is None else inputs.lengths.tolist()
    for i, decision in enumerate(decisions):
        bounds = {
            "layer": len(model.layers),
            "submodule": len(model.config.pool),
            "sequence": inputs.batch,
        }
        if 0 <= decision.sequence < inputs.batch:
            bounds["step"] = lengths[decision.sequence]
        for field, bound in bounds.items():
            if not 0 <= getattr(decision, field) < bound:
                raise ShapeError(
                    f"decisions[{i}].{field}: must lie in 0..{bound - 1}, not "
                    f"{getattr(decision, field)}"
                )
