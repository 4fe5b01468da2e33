"""The folder of a fitted baseline: a JSON card, and a file of weights that it vouches for."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sma_core.files import sha256_of, write_tensors
from sma_pilot.errors import RunError
from sma_pilot.run_folder import write_json

WEIGHTS = "weights.safetensors"
_VERSION = 1


def write_card(folder: Path, kind: str, card: dict[str, Any], weights: str = WEIGHTS) -> None:
    """Write the card of a fit of `kind`, last, so that a folder with a card is whole."""
    head = {"format": f"sma.{kind}", "version": _VERSION}
    digest = {"weights_sha256": sha256_of(folder / weights)}
    write_json(folder / f"{kind}.json", head | digest | card)


def read_card(folder: Path, kind: str, weights: str = WEIGHTS) -> dict[str, Any]:
    """Read the card of a fit of `kind`, and hold the weights against it.

    Raises
    ------
    RunError
        The folder is absent, incomplete, damaged or of another version.
    """
    path = folder / f"{kind}.json"
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        digest = sha256_of(folder / weights)
    except FileNotFoundError as error:
        raise RunError(f"{folder}: no finished fit of kind {kind!r} here; fit it first") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{folder}: cannot be read ({error}); delete it and fit again") from error
    if (card.get("format"), card.get("version")) != (f"sma.{kind}", _VERSION):
        raise RunError(f"{path}: not a fit of kind {kind!r}, version {_VERSION}; fit again")
    if card.get("weights_sha256") != digest:
        raise RunError(f"{folder}: the weights are not those of the card; delete it and fit again")
    return card


def save_fit(folder: Path, kind: str, card: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a fit whose weights are tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, tensors)
    write_card(folder, kind, card)


def load_fit(folder: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the card and the tensors of a fit of `kind`; see `read_card` for the errors."""
    card = read_card(folder, kind)
    try:
        return card, load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{folder}: cannot be read ({error}); delete it and fit again") from error


def is_fitted(folder: Path, kind: str, wanted: dict[str, Any], weights: str = WEIGHTS) -> bool:
    """Tell whether `folder` holds a whole fit whose card says `wanted` under ``fitted``."""
    try:
        return read_card(folder, kind, weights).get("fitted") == wanted
    except RunError:
        return False
