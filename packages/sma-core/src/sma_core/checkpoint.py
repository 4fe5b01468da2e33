"""A trained model on disk: ``model.json`` says what it is, ``weights.safetensors`` holds it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from sma_core.config import ArchitectureConfig, config_from_dict, config_to_dict
from sma_core.errors import CheckpointError, ConfigError
from sma_core.files import sha256_of, write_json, write_tensors
from sma_core.model import SequenceModel, build_model

FORMAT = "sma.checkpoint"
VERSION = 1
CARD_FILE = "model.json"
WEIGHTS_FILE = "weights.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A model read from disk, in evaluation mode, with its configuration and card."""

    model: SequenceModel
    config: ArchitectureConfig
    card: dict[str, Any]


def save_checkpoint(
    folder: Path,
    model: SequenceModel,
    *,
    provenance: Mapping[str, Any],
    dataset_card: Mapping[str, Any] | None = None,
) -> None:
    """Write a model into a folder, over a checkpoint that may be there.

    Parameters
    ----------
    folder : Path
        Created when absent; other files in it stay.
    model : SequenceModel
        What to save.
    provenance : mapping
        JSON-ready record of how the weights came to be.
    dataset_card : mapping, optional
        Card of the data set it was trained on (`DatasetCard.to_dict`): names and scales of the
        channels, without which predictions cannot be read.

    Raises
    ------
    CheckpointError
        When `provenance` or `dataset_card` holds what JSON cannot.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # The card goes first and comes last: a folder with a card always has that card's weights.
    (folder / CARD_FILE).unlink(missing_ok=True)
    write_tensors(folder / WEIGHTS_FILE, model.state_dict())
    try:
        write_json(
            folder / CARD_FILE,
            {
                "format": FORMAT,
                "version": VERSION,
                "architecture": model.config.architecture,
                "config": config_to_dict(model.config),
                "provenance": dict(provenance),
                "dataset": None if dataset_card is None else dict(dataset_card),
                "weights_sha256": sha256_of(folder / WEIGHTS_FILE),
            },
        )
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"provenance or data set card is not JSON: {error}") from error


def read_card(folder: Path) -> dict[str, Any]:
    """Read and check ``model.json`` alone.

    Raises
    ------
    CheckpointError
        When it is absent, damaged or of another version.
    """
    path = Path(folder) / CARD_FILE
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} is no checkpoint: it has no {CARD_FILE}; name another folder, or train"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is no JSON ({error}): copy the checkpoint again, or train again"
        ) from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint's card: its format is not {FORMAT!r}")
    if card.get("version") != VERSION:
        raise CheckpointError(
            f"{path} is version {card.get('version')!r} and this library reads version {VERSION}: "
            "load it with the library that wrote it"
        )
    return card


def load_checkpoint(folder: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a model back, after comparing its weights with their hash.

    Parameters
    ----------
    folder : Path
        Written by `save_checkpoint` or `fit`.
    device : torch.device or str
        Where the model goes.

    Raises
    ------
    CheckpointError
        When a file is missing, damaged, of another version, or does not fit its configuration.
    """
    folder = Path(folder)
    card = read_card(folder)
    weights = folder / WEIGHTS_FILE
    described = card.get("config")
    try:
        config = config_from_dict(described if isinstance(described, dict) else {})
    except ConfigError as error:
        raise CheckpointError(f"{folder / CARD_FILE}: config: {error}") from error
    if not weights.is_file():
        raise CheckpointError(f"{weights} is missing: copy the checkpoint again, or train again")
    if sha256_of(weights) != card.get("weights_sha256"):
        raise CheckpointError(
            f"{weights} is not what the hash in {CARD_FILE} says: copy the checkpoint again, or "
            "train again"
        )
    # Loading a model must not move the caller's random numbers.
    with torch.random.fork_rng(devices=[]):
        model = build_model(config)
    try:
        model.load_state_dict(load_file(weights))
    except (RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{weights} does not fit its configuration: {error}") from error
    return Checkpoint(model.to(device).eval(), config, card)
