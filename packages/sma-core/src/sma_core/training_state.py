"""What a training run needs to go on after a stop at any moment, in one file.

The file is a safetensors file with the plain values as JSON in its header, so that weights, moments
and counters can never be of different steps. It is replaced in one move. Random numbers need no
state: every step seeds its own.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sma_core.errors import TrainingError
from sma_core.files import write_tensors
from sma_core.parallel import gathered, placed_like
from sma_core.parallel.spread import load_whole

STATE_FILE = "state.safetensors"
_ADAM_KEYS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a training run stands.

    Parameters
    ----------
    step, max_steps : int
        Optimiser steps done, and their limit.
    train_loss : float
        Mean over the steps since the last evaluation, without the rate term.
    validation_loss : float or None
        None at steps without an evaluation.
    activation_rate : float or None
        Share of steps at which a sub-module ran: over the validation batches when they were
        evaluated, else over the training batch. None when the model does not route.
    tokens_per_second : float
        Training time steps a second since this process began, over all processes of the run.
    validation_accuracy : float or None
        Measured with the loss, in classification.
    """

    step: int
    max_steps: int
    train_loss: float
    validation_loss: float | None
    activation_rate: float | None
    tokens_per_second: float
    validation_accuracy: float | None = None


@dataclass
class TrainingState:
    """Counters of a run, and the best weights so far.

    Parameters
    ----------
    step : int
        Optimiser steps done.
    loss_sum, loss_count
        Training loss since the last evaluation.
    stale : int
        Evaluations since the best one.
    best_step : int
        Step of the best evaluation; 0 before the first.
    best_metrics : dict
        What was measured there.
    best_weights : dict
        Weights there.
    history : list of Progress
        Every evaluation.
    seconds : float
        Time spent, over all processes.
    """

    step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    stale: int = 0
    best_step: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    history: list[Progress] = field(default_factory=list)
    seconds: float = 0.0

    def save(
        self,
        folder: Path,
        digest: str,
        model: nn.Module,
        optimizer: torch.optim.AdamW,
        *,
        write: bool = True,
    ) -> None:
        """Write everything, whole; `digest` names the run that may take it up again.

        Of several processes all must call it, and one writes.
        """
        live = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        for name, parameter in model.named_parameters():
            # A parameter that never had a gradient has no moments, and steps of its own later.
            for key, tensor in optimizer.state.get(parameter, {}).items():
                live[f"adam.{key}.{name}"] = tensor
        tensors = gathered(live.items(), keep=write)
        if not write:
            return
        folder.mkdir(parents=True, exist_ok=True)
        tensors |= {f"best.{name}": tensor for name, tensor in self.best_weights.items()}
        values = vars(self) | {"history": [asdict(progress) for progress in self.history]}
        del values["best_weights"]
        metadata = {"format": "sma.training", "digest": digest, "values": json.dumps(values)}
        write_tensors(folder / STATE_FILE, tensors, metadata)

    @classmethod
    def load(
        cls, folder: Path, digest: str, model: nn.Module, optimizer: torch.optim.AdamW
    ) -> "TrainingState":
        """Read everything back into `model` and `optimizer`; a fresh state when there is none.

        Raises
        ------
        TrainingError
            When the file belongs to another run or is damaged.
        """
        path = folder / STATE_FILE
        if not path.is_file():
            return cls()
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise TrainingError(
                f"{path} is damaged ({error}): remove it to train from the start"
            ) from error
        if metadata.get("digest") != digest:
            raise TrainingError(
                f"{path} is the unfinished training of another model, data set or training "
                f"configuration: remove {folder.parent} or name another folder"
            )
        try:
            values = json.loads(metadata["values"])
            values["history"] = [Progress(**progress) for progress in values["history"]]
            state = cls(**values, best_weights=_under(tensors, "best."))
            load_whole(model, _under(tensors, "model."))
            for name, parameter in model.named_parameters():
                if f"adam.step.{name}" in tensors:
                    moments = {key: tensors[f"adam.{key}.{name}"] for key in _ADAM_KEYS}
                    optimizer.state[parameter] = {
                        key: placed_like(tensor, parameter)
                        if tensor.shape == parameter.shape
                        else tensor.to(parameter.device)
                        for key, tensor in moments.items()
                    }
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise TrainingError(
                f"{path} is damaged ({error}): remove it to train from the start"
            ) from error
        return state


def rename(folder: Path, digest: str) -> None:
    """Let another run take up the state in `folder`: the one that `digest` names.

    Raises
    ------
    TrainingError
        When there is no state, or it is damaged.
    """
    path = folder / STATE_FILE
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise TrainingError(f"{path} is absent or damaged ({error})") from error
    write_tensors(path, tensors, {**metadata, "digest": digest})


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
