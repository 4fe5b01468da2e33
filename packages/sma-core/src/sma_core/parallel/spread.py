"""One model in several processes: whole in each (DDP), or a share in each (FSDP2)."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sma_core.compiled import compile_training, layers_of, replays
from sma_core.model import SequenceModel
from sma_core.training_config import Compile

from .group import Parallel


class Spread:
    """A model as the processes of a run hold it.

    Parameters
    ----------
    model
        Equal in all processes, on this process's device; with ``fsdp`` it is cut up in place.
    parallel
        The processes.
    recompute
        Keep no activations inside a layer: compute them again in the backward pass.
    how
        What is compiled, see `TrainingConfig.compile`; `compiled.compiling` must be around its use.

    Attributes
    ----------
    model : SequenceModel
        To evaluate, to save and to optimise.
    module : callable
        To train: its backward pass ends with the mean of all processes' gradients.

    Raises
    ------
    ConfigError
        The model has no list of layers to cut by, or a norm that mixes the sequences of a batch.
    """

    def __init__(
        self,
        model: SequenceModel,
        parallel: Parallel,
        *,
        recompute: bool = False,
        how: Compile = "none",
    ) -> None:
        self.model = model
        self._replays = replays(model, how)
        compile_training(model, how)
        self.module: Callable[..., Any] = model
        self._ddp: nn.parallel.DistributedDataParallel | None = None
        if recompute:
            for layer in layers_of(model, "activation_checkpointing"):
                # The layer's own forward: no name of a weight changes.
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        if parallel.size == 1:
            return
        if parallel.sharding == "fsdp":
            _shard(model, parallel)
            return
        self._ddp = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
        self.module = self._ddp

    @contextmanager
    def backward(self, *, last: bool) -> Iterator[None]:
        """Around the forward and backward pass of a part of a batch.

        Whole models exchange gradients once, after the last part. Cut ones do it after each:
        gradients of whole size are what they are cut up to avoid.
        """
        if self._replays:
            torch.compiler.cudagraph_mark_step_begin()
        if self._ddp is None or last:
            yield
        else:
            with self._ddp.no_sync():
                yield
        if self._replays and not last:
            for weight in self.model.parameters():
                if weight.grad is not None:  # it lies where the next part's will
                    weight.grad = weight.grad.clone()


def gathered(named: Iterable[tuple[str, Tensor]], *, keep: bool) -> dict[str, Tensor]:
    """Make whole tensors of shares; all processes must call it, and those that keep get them.

    Whole tensors pass as they are. Gathered ones move to the CPU one by one: together they may be
    more than a device holds.
    """
    found = {}
    for name, tensor in named:
        gathered_one = whole(tensor)
        if keep:
            found[name] = tensor if gathered_one is tensor else gathered_one.cpu()
    return found


def whole(tensor: Tensor) -> Tensor:
    """Gather a tensor of shares on this device; a whole one passes."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def placed_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Take this process's share of a whole tensor, cut as `like` is, on its device."""
    tensor = tensor.to(like.device)
    if not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)  # noqa: S101  (has its method)
    # Every process has read the same file: nothing has to be sent.
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def _shard(model: SequenceModel, parallel: Parallel) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # A layer returns its router's logits, a view, and nobody writes into them.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(parallel.device.type, (parallel.size,))
    for layer in layers_of(model, "sharding"):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


@torch.no_grad()
def load_whole(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load whole weights into a model that may be cut up."""
    present = model.state_dict()
    model.load_state_dict(
        {
            name: placed_like(tensor, present[name]) if name in present else tensor
            for name, tensor in weights.items()
        }
    )
