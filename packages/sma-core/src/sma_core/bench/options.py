"""Options that several benchmarks share."""

import argparse
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from sma_core.bench.sizes import LayerSizes


def numbers_in(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Parse numbers separated by commas."""

    def parse(text: str) -> list[Any]:
        try:
            found = [kind(part) for part in text.split(",") if part]
        except ValueError:
            found = []
        if not found or any(value < 0 for value in found):
            raise argparse.ArgumentTypeError(f"must be numbers separated by commas, not {text!r}")
        return found

    return parse


def names_in(known: Collection[str]) -> Callable[[str], list[str]]:
    """Parse names separated by commas, of those that are known."""

    def parse(text: str) -> list[str]:
        found = [part for part in text.split(",") if part]
        for name in found:
            if name not in known:
                raise argparse.ArgumentTypeError(
                    f"{name!r} is not one of {', '.join(sorted(known))}"
                )
        return found

    return parse


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return value


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add what every benchmark has."""
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--threads", type=positive, help="of the CPU; default: torch's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write everything, raw times too, to this file")
    parser.add_argument(
        "--budget-s", type=float, default=540.0, help="seconds after which nothing new begins"
    )


def add_layer_options(parser: argparse.ArgumentParser) -> None:
    """Add the widths of a layer."""
    default = LayerSizes()
    for name in ("width", "query_width", "value_width", "states", "window"):
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=positive, default=getattr(default, name))


def layer_sizes(options: argparse.Namespace) -> LayerSizes:
    """Read the widths of a layer."""
    return LayerSizes(
        width=options.width,
        query_width=options.query_width,
        value_width=options.value_width,
        states=options.states,
        window=options.window,
    )


def add_timing_options(parser: argparse.ArgumentParser) -> None:
    """Add how often each step is timed."""
    parser.add_argument("--rounds", type=positive, default=3, help="in which peers take turns")
    parser.add_argument("--iterations", type=positive, default=10, help="timed in each round")
    parser.add_argument("--warmup", type=positive, default=3, help="before them, in each round")


def add_compile_options(parser: argparse.ArgumentParser) -> None:
    """Add how steps are computed."""
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        default="bfloat16",
        help="of products; bfloat16 by autocast",
    )
    parser.add_argument("--compile-off", action="store_true", help="run everything eagerly")
