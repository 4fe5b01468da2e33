"""``python -m sma_core.bench``: measure, print tables, write JSON.

Exit code 0: measured, whether or not goals are met. 1: a layer is wrong, nothing was timed.
2: an option is wrong.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch

from sma_core.bench import cpu, floor, layer, model, profile, scaling, stream
from sma_core.bench.equality import MismatchError
from sma_core.bench.options import add_common_options
from sma_core.bench.tables import Report
from sma_core.errors import ConfigError, SMAError
from sma_core.threads import compute_threads

BENCHMARKS: dict[str, ModuleType] = {
    "layer": layer,
    "model": model,
    "stream": stream,
    "floor": floor,
    "profile": profile,
    "cpu": cpu,
    "scaling": scaling,
}


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    root = argparse.ArgumentParser(
        prog="python -m sma_core.bench",
        description="Measure the model against its peers on this machine.",
    )
    commands = root.add_subparsers(dest="benchmark", required=True)
    for name, module in BENCHMARKS.items():
        text = (module.__doc__ or "").partition(": ")[2].partition("\n")[0]
        command = commands.add_parser(
            name,
            help=text,
            description=text,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        add_common_options(command)
        module.add_arguments(command)
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark; returns the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    options = parser().parse_args(words)
    try:
        device = _device(options.device)
        if options.json is not None and not options.json.parent.is_dir():
            raise ConfigError(f"json: there is no folder {options.json.parent}")
        settings = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in vars(options).items()
            if name != "benchmark" and value is not None
        }
        with compute_threads(options.threads or torch.get_num_threads()):
            report = Report(
                options.benchmark,
                command=f"python -m sma_core.bench {shlex.join(words)}",
                settings=settings,
                device=device,
                path=options.json,
            )
            BENCHMARKS[options.benchmark].run(options, report, device)
        report.save()
    except MismatchError as error:
        print(f"not equal: {error}", file=sys.stderr)
        return 1
    except SMAError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device: {name!r} is no device") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device: must be cpu or cuda, not {name}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: there is no CUDA device here")
    return device


if __name__ == "__main__":
    sys.exit(main())
