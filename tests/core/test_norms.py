"""Norms of the residual stream: against the specification, torch's own, and what must not count."""

import pytest
import torch
from tests.core.models import random_inputs, small_config, small_model
from tests.core.parity import (
    LENGTHS,
    compare,
    outputs_and_gradients,
    run_chunks,
    run_fast,
    run_reference,
    run_steps,
)
from tests.tolerances import TOLERANCES, assert_close
from torch import Tensor, nn
from torch.nn import functional

from sma_core import ConfigError, Inputs, ModelConfig, SMAModel, config_from_dict, config_to_dict
from sma_core.config import Norm
from sma_core.norms import BatchNorm, build_norm

KINDS: tuple[Norm, ...] = ("layer", "batch", "scale")
X = torch.randn(3, 9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3 + 1


def model_with_averages(config: ModelConfig) -> SMAModel:
    """A small model whose running averages, where it has any, are not those of a fresh one."""
    model = small_model(config)
    generator = torch.Generator().manual_seed(1)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
        elif name.endswith("running_var"):
            buffer.copy_(0.8 + 0.4 * torch.rand(buffer.shape, generator=generator))
    return model


@pytest.mark.parametrize("norm", ["batch", "scale"])
@pytest.mark.parametrize("prenorm", [False, True])
def test_the_specification(norm: Norm, prenorm: bool) -> None:
    config = small_config(pool=2, norm=norm, prenorm=prenorm, bidirectional=not prenorm)
    model, inputs = model_with_averages(config), random_inputs(config, LENGTHS)
    found = compare(
        outputs_and_gradients(model, inputs, run_fast),
        outputs_and_gradients(model, inputs, run_reference),
    )
    assert max(found.output, found.gradient) <= TOLERANCES["float64"].relative


@pytest.mark.parametrize("norm", ["batch", "scale"])
def test_streaming(norm: Norm) -> None:
    config = small_config(pool=1, norm=norm)
    model, inputs = model_with_averages(config), random_inputs(config, LENGTHS)
    with torch.no_grad():
        whole = run_fast(model, inputs)
        for run in (run_chunks, run_steps):
            for ours, theirs in zip(run(model, inputs), whole, strict=True):
                assert_close(ours, theirs, "float64")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [False, True])
def test_padding_never_counts(kind: Norm, training: bool) -> None:
    """Neither in the output of a valid step, nor in its gradient, nor in the averages."""
    lengths = torch.tensor([9, 4, 0])
    valid = torch.arange(9) < lengths[:, None]
    results: list[list[Tensor]] = []
    for fill in (0.0, 1e3):
        norm = build_norm(kind, 4).double().train(training)
        x = X.where(valid.unsqueeze(-1), fill).requires_grad_()
        y = norm(x, valid)[valid]
        y.square().sum().backward()
        assert x.grad is not None
        assert not x.grad[~valid].any()
        results.append([y.detach(), x.grad[valid], *(b.double() for b in norm.buffers())])
    for first, second in zip(*results, strict=True):
        assert first.equal(second)


@pytest.mark.parametrize("prenorm", [False, True])
def test_more_padding_changes_no_model_in_training(prenorm: bool) -> None:
    """Of batch norm: before each layer and at the end, or behind each layer."""
    config = small_config(norm="batch", prenorm=prenorm)
    model, inputs = small_model(config).train(), random_inputs(config, [9, 4])
    assert inputs.numeric is not None
    assert inputs.categorical is not None
    longer = Inputs(
        functional.pad(inputs.numeric, (0, 0, 0, 5), value=7.0),
        functional.pad(inputs.categorical, (0, 0, 0, 5)),
        inputs.lengths,
    )
    for mine, other in zip(run_fast(model, longer), run_fast(model, inputs), strict=True):
        assert_close(mine, other, "float64")


@pytest.mark.parametrize("masked", [False, True])
def test_batch_norm_is_torch_s_own_over_the_valid_steps(masked: bool) -> None:
    """Outputs, gradients and running averages; three batches, then evaluation."""
    ours, theirs = BatchNorm(4).double(), nn.BatchNorm1d(4).double()
    with torch.no_grad():
        ours.weight.copy_(torch.tensor([1.0, -0.5, 2.0, 0.3]))
        ours.bias.copy_(torch.tensor([0.0, 1.0, -1.0, 0.2]))
    theirs.load_state_dict(ours.state_dict())
    valid = torch.arange(9) < torch.tensor([9, 4, 1])[:, None] if masked else None
    taken = torch.ones(3, 9, dtype=torch.bool) if valid is None else valid
    for batch in range(4):
        if batch == 3:
            ours.eval()
            theirs.eval()
        mine, other = ((X + batch).clone().requires_grad_() for _ in range(2))
        y, expected = ours(mine, valid)[taken], theirs(other[taken])
        assert_close(y, expected, "float64")
        for module, out in ((ours, y), (theirs, expected)):
            module.zero_grad()
            out.pow(3).sum().backward()
        assert mine.grad is not None
        assert other.grad is not None
        assert_close(mine.grad, other.grad, "float64")
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert p.grad is not None
            assert q.grad is not None
            assert_close(p.grad, q.grad, "float64")
        for name, buffer in ours.state_dict().items():
            assert_close(buffer, theirs.state_dict()[name], "float64")


@pytest.mark.parametrize("steps", [0, 1])
def test_batch_norm_of_a_batch_too_small_for_a_variance(steps: int) -> None:
    norm = BatchNorm(4).double()
    valid = torch.arange(9) < torch.tensor([steps, 0, 0])[:, None]
    assert norm(X, valid).isfinite().all()
    assert norm.running_var.equal(torch.ones(4, dtype=torch.float64))
    assert bool(norm.running_mean.any()) == (steps == 1)


def test_a_stream_in_training_mode_leaves_the_averages_alone() -> None:
    norm = BatchNorm(4).double()
    expected = norm.eval()(X[:, 0])
    assert norm.train()(X[:, 0]).equal(expected)
    assert not norm.num_batches_tracked


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_does_not_overflow(kind: Norm) -> None:
    """Squares of 1,000 leave float16."""
    x = 1e3 * X.half()
    found = build_norm(kind, 4).half().train()(x)
    assert found.dtype == torch.float16
    assert_close(found, build_norm(kind, 4).double().train()(x.double()), "float16")


def test_configuration() -> None:
    config = small_config(norm="scale")
    assert config_from_dict(config_to_dict(config)) == config
    assert small_config().norm == "layer"
    with pytest.raises(ConfigError, match=r"^norm: must be one of layer, batch, scale"):
        small_config(norm="group")
