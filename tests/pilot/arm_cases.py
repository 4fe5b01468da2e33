"""Rows for arms, and the ways to send them: whole, in chunks, one by one."""

import torch
from tests.tolerances import assert_close
from torch import Tensor

from sma_core.model import Inputs

NAN = float("nan")


def some_rows(batch: int, steps: int, seed: int = 3) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    numeric = torch.randn(batch, steps, 3, generator=generator)
    numeric[torch.rand(numeric.shape, generator=generator) < 0.1] = NAN
    numeric[:, 4] = NAN
    categorical = torch.randint(0, 3, (batch, steps, 1), generator=generator)
    return Inputs(numeric, categorical)


@torch.inference_mode()
def scores_of(scorer, inputs: Inputs, cuts: list[int]) -> Tensor:
    state = scorer.start(inputs.batch)
    parts = []
    for begin, end in zip([0, *cuts], [*cuts, inputs.steps], strict=True):
        chunk = inputs.map(lambda rows, begin=begin, end=end: rows[:, begin:end])
        parts.append(scorer.score(chunk, state).score)
    return torch.cat(parts, 1)


def same(a: Tensor, b: Tensor, row: str = "float32") -> None:
    assert a.isnan().equal(b.isnan())
    assert_close(a[~a.isnan()], b[~b.isnan()], row)


@torch.inference_mode()
def steps_of(scorer, inputs: Inputs) -> Tensor:
    """Scores of one sequence [T], event by event."""
    state = scorer.start(1)
    steps = range(inputs.steps)
    each = [inputs.map(lambda rows, t=t: rows[:, t : t + 1]) for t in steps]
    return torch.tensor([scorer.step(one, state)[0] for one in each])
