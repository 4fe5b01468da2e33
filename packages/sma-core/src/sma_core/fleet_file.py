"""A fleet on disk: one safetensors file with the states, and a JSON card in its header.

One file, not a folder: streams are saved over and over, and what is replaced in one move can never
hold the states of one moment and the entities of another.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sma_core.config import config_to_dict
from sma_core.errors import FleetError
from sma_core.files import digest_of, write_tensors
from sma_core.model import SequenceModel
from sma_core.state import State

FORMAT = "sma.fleet"
VERSION = 1

EntityId = str | int


@dataclass(frozen=True)
class SavedFleet:
    """What a file holds: who, their states by name, and the dtype they were made in."""

    entities: list[EntityId]
    tensors: dict[str, Tensor]
    dtype: torch.dtype


def write_fleet(
    path: Path,
    model: SequenceModel,
    entities: Sequence[EntityId],
    state: State,
    dtype: torch.dtype,
) -> None:
    """Write a fleet in one move.

    Parameters
    ----------
    path
        Replaced when there; its folder is made when absent.
    model
        Whose states they are: the card holds digests of its configuration and of its weights.
    entities
        Who, in the order of the state's rows.
    state
        Their states.
    dtype
        That the states were made in.
    """
    tensors = dict(state.named_tensors())
    card = {
        "format": FORMAT,
        "version": VERSION,
        "config_sha256": digest_of(config_to_dict(model.config)),
        "weights_sha256": digest_of_tensors(model.state_dict().items()),
        "states_sha256": digest_of_tensors(tensors.items()),
        "dtype": str(dtype).removeprefix("torch."),
        "entities": list(entities),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors, {"card": json.dumps(card)})


def read_fleet(path: Path, model: SequenceModel) -> SavedFleet:
    """Read a fleet of this very model.

    Parameters
    ----------
    path
        Written by `write_fleet`.
    model
        That is to go on with the states.

    Raises
    ------
    FleetError
        The file is absent, damaged, of another version, or of another model or other weights.
    """
    if not path.is_file():
        raise FleetError(f"{path}: there is no such file; save a fleet first, or name another")
    again = "restore it from a copy, or let the entities start afresh"
    try:
        with safe_open(path, "pt") as file:
            card = json.loads((file.metadata() or {}).get("card", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise FleetError(f"{path}: is damaged ({error}): {again}") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise FleetError(f"{path}: is no saved fleet: its format is not {FORMAT!r}")
    if card.get("version") != VERSION:
        raise FleetError(
            f"{path}: is version {card.get('version')!r} and this library reads version {VERSION}: "
            "load it with the library that wrote it"
        )
    if card.get("config_sha256") != digest_of(config_to_dict(model.config)):
        raise FleetError(
            f"{path}: config: these are states of another model: load the checkpoint they came from"
        )
    if card.get("weights_sha256") != digest_of_tensors(model.state_dict().items()):
        raise FleetError(
            f"{path}: weights: these are states of a model with other weights: load the checkpoint "
            "they came from"
        )
    entities, dtype = card.get("entities"), getattr(torch, str(card.get("dtype")), None)
    whole = card.get("states_sha256") == digest_of_tensors(tensors.items())
    named = isinstance(entities, list) and all(isinstance(e, str | int) for e in entities)
    if whole and named and isinstance(dtype, torch.dtype):
        return SavedFleet(list(entities or ()), tensors, dtype)
    raise FleetError(f"{path}: is damaged (its states are not those of its card): {again}")


def digest_of_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of tensors, in hex: names, types, shapes and bits, whatever order and device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {list(plain.shape)}\n".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
