"""Fast paths against the specification: largest relative differences of outputs and gradients.

``python -m tests.core.parity`` prints the table that the documentation quotes.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from tests.core.models import piece, random_inputs, small_blocks, small_config, small_model
from tests.core.shapes import unchecked_shapes
from tests.tolerances import TOLERANCES, relative_difference
from torch import Tensor

from sma_core import Inputs, ModelConfig, SMAModel
from sma_core.reference import reference_forward

LENGTHS = [14, 9, 1]


@dataclass(frozen=True)
class Parity:
    """Largest relative difference of an output, and of the gradient of any weight or input."""

    output: float
    gradient: float

    def worse(self, other: "Parity") -> "Parity":
        """The larger of each."""
        return Parity(max(self.output, other.output), max(self.gradient, other.gradient))


def reference_cases() -> Iterator[tuple[str, ModelConfig]]:
    """Every way to configure the layer; the pool grows from case to case."""
    grid = itertools.product(
        (False, True),
        ("softmax", "relu2"),
        ("rotary", "simple", "local"),
        (True, False),
        (2, 40),
    )
    for i, (bidirectional, score, position, prenorm, window) in enumerate(grid):
        words = (
            "bidirectional" if bidirectional else "causal",
            score,
            position,
            "pre" if prenorm else "post",
            f"window {window}",
            f"pool {i % 3 + 1}",
        )
        yield (
            ", ".join(words),
            small_config(
                pool=i % 3 + 1,
                attention={"score": score, "position": position, "window": window},
                bidirectional=bidirectional,
                prenorm=prenorm,
            ),
        )


def outputs_and_gradients(
    model: SMAModel, inputs: Inputs, run: Callable[[SMAModel, Inputs], list[Tensor]]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Valid predictions of a run end to end, and the gradient of a weighted sum of them."""
    model.zero_grad()
    if inputs.numeric is not None:
        inputs = replace(inputs, numeric=inputs.numeric.clone().requires_grad_())
    with small_blocks():
        flat = torch.cat([prediction.flatten() for prediction in run(model, inputs)])
    weights = torch.randn(flat.shape, generator=torch.Generator().manual_seed(9)).to(flat)
    (flat * weights).sum().backward()
    leaves: dict[str, Tensor] = dict(model.named_parameters())
    if inputs.numeric is not None:
        leaves["inputs.numeric"] = inputs.numeric
    # The specification never touches a sub-module that has no active row: zero, as None.
    return flat.detach(), {
        name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.clone()
        for name, leaf in leaves.items()
    }


def run_fast(model: SMAModel, inputs: Inputs) -> list[Tensor]:
    """The fast path, valid steps of each sequence."""
    prediction = model(inputs).prediction
    return list(prediction) if prediction.dim() == 2 else _valid(prediction, inputs)


def run_reference(model: SMAModel, inputs: Inputs) -> list[Tensor]:
    """The specification. Tests of decisions compare its shapes, one time step after another."""
    with unchecked_shapes():
        return reference_forward(model, inputs).prediction


def run_chunks(
    model: SMAModel, inputs: Inputs, stops: tuple[int, ...] = (5, 6, 11)
) -> list[Tensor]:
    """The fast path in chunks, with a state in between."""
    state = model.init_state(inputs.batch)
    bounds = (0, *stops, inputs.steps)
    pieces = [piece(inputs, a, b) for a, b in itertools.pairwise(bounds)]
    whole = torch.cat([model(part, state).prediction for part in pieces], dim=1)
    return _valid(whole, inputs)


def run_steps(model: SMAModel, inputs: Inputs) -> list[Tensor]:
    """One step at a time."""
    state = model.init_state(inputs.batch)
    parts = [replace(piece(inputs, t, t + 1), lengths=None) for t in range(inputs.steps)]
    whole = torch.cat([model.step(part, state).prediction for part in parts], dim=1)
    return _valid(whole, inputs)


def _valid(prediction: Tensor, inputs: Inputs) -> list[Tensor]:
    if inputs.lengths is None:
        return list(prediction)
    return [p[:n] for p, n in zip(prediction, inputs.lengths.tolist(), strict=True)]


def compare(
    fast: tuple[Tensor, dict[str, Tensor]], slow: tuple[Tensor, dict[str, Tensor]]
) -> Parity:
    """Relative differences; a gradient's is relative to no less than a share of the largest.

    Some gradients vanish in exact arithmetic (a softmax does not see a shift of all its keys):
    what rounding leaves of them has no relative precision.
    """
    (output, gradients), (expected, slow_gradients) = fast, slow
    assert gradients.keys() == slow_gradients.keys()
    largest = max(gradient.norm().item() for gradient in slow_gradients.values())
    floor = TOLERANCES["vanishing gradient"].relative * largest
    worst = 0.0
    for name, gradient in gradients.items():
        own = slow_gradients[name].norm().item()
        share = own / max(own, floor)
        worst = max(worst, share * relative_difference(gradient, slow_gradients[name]))
    return Parity(relative_difference(output, expected), worst)


def against_reference(
    config: ModelConfig, dtype: torch.dtype, lengths: Sequence[int] = LENGTHS
) -> Parity:
    """The fast path in `dtype` against the specification in float64, on the same weights."""
    model = small_model(config, dtype=dtype)
    inputs = random_inputs(config, list(lengths), dtype=dtype)
    fast = outputs_and_gradients(model, inputs, run_fast)
    wide = replace(inputs, numeric=None if inputs.numeric is None else inputs.numeric.double())
    slow = outputs_and_gradients(model.double(), wide, run_reference)
    return compare(fast, slow)


def against_fast(
    config: ModelConfig, other: Callable[[SMAModel, Inputs], list[Tensor]], dtype: torch.dtype
) -> float:
    """Another way to run a model against the fast path; outputs alone."""
    model, inputs = small_model(config, dtype=dtype), random_inputs(config, LENGTHS, dtype=dtype)
    with torch.no_grad(), small_blocks():
        ours, theirs = (torch.cat(run(model, inputs)) for run in (other, run_fast))
    return relative_difference(ours, theirs)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print("| path | against | dtype | outputs | gradients | allowed |")
    print("|---|---|---|---|---|---|")
    cases = list(reference_cases())
    for dtype in (torch.float64, torch.float32):
        row = str(dtype).removeprefix("torch.")
        limit = f"{TOLERANCES[row].relative:.0e}"
        for word in ("causal", "bidirectional"):
            worst = Parity(0.0, 0.0)
            for name, config in cases:
                if name.startswith(word):
                    worst = worst.worse(against_reference(config, dtype))
            print(
                f"| {word}, packed, chunked EMA | reference.py in float64 | {row} "
                f"| {worst.output:.1e} | {worst.gradient:.1e} | {limit} |"
            )
            for field, value in (("dispatch", "padded"), ("ema", "fft")):
                worst = Parity(0.0, 0.0)
                for name, config in cases:
                    if name.startswith(word):
                        other = replace(config, **{field: value})
                        worst = worst.worse(against_reference(other, dtype))
                print(
                    f"| {word}, {field} {value} | reference.py in float64 | {row} "
                    f"| {worst.output:.1e} | {worst.gradient:.1e} | {limit} |"
                )
        for label, run in (("chunks with a state", run_chunks), ("step by step", run_steps)):
            causal = [config for name, config in cases if name.startswith("causal")]
            difference = max(against_fast(config, run, dtype) for config in causal)
            print(f"| {label} | one pass | {row} | {difference:.1e} | | {limit} |")


if __name__ == "__main__":
    main()
