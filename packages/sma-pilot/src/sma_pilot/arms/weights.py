"""The folder of a fitted baseline: a JSON card and a safetensors file that the card vouches for."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sma_core.files import sha256_of, write_tensors
from sma_pilot.errors import RunError
from sma_pilot.run_folder import write_json

_VERSION = 1


def save_fit(folder: Path, kind: str, card: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a fit of `kind`; the card comes last, so a folder with a card is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "weights.safetensors"
    write_tensors(weights, tensors)
    head = {"format": f"sma.{kind}", "version": _VERSION, "weights_sha256": sha256_of(weights)}
    write_json(folder / f"{kind}.json", head | card)


def load_fit(folder: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the card and the tensors of a fit of `kind`.

    Raises
    ------
    RunError
        The folder is absent, incomplete, damaged or of another version.
    """
    path = folder / f"{kind}.json"
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        weights = folder / "weights.safetensors"
        digest = sha256_of(weights)
        tensors = load_file(weights)
    except FileNotFoundError as error:
        raise RunError(f"{folder}: no finished fit of kind {kind!r} here; fit it first") from error
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(f"{folder}: cannot be read ({error}); delete it and fit again") from error
    if (card.get("format"), card.get("version")) != (f"sma.{kind}", _VERSION):
        raise RunError(f"{path}: not a fit of kind {kind!r}, version {_VERSION}; fit again")
    if card.get("weights_sha256") != digest:
        raise RunError(f"{folder}: the weights are not those of the card; delete it and fit again")
    return card, tensors


def is_fitted(folder: Path, kind: str, wanted: dict[str, Any]) -> bool:
    """Tell whether `folder` holds a whole fit whose card says `wanted` under ``fitted``."""
    try:
        return load_fit(folder, kind)[0].get("fitted") == wanted
    except RunError:
        return False
