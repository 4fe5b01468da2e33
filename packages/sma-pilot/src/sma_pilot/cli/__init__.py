"""The command line: parses, calls `sma_pilot.pilot`, prints. No work is done here.

Results go to stdout, everything else to stderr. Exit codes: 0 finished, 1 a signed run was changed
(`verify`), 2 bad input, 130 stopped; with ``--exit-code`` 0 go, 10 no-go, 20 inconclusive, and of
`monitor` 0 keep, 20 re-pilot, 10 fall back.
"""

import os
import sys

# In the order in which `--help` lists what they define.
from sma_pilot.cli import assess, plans, steps, verdicts, watch  # noqa: F401
from sma_pilot.cli.base import app, say
from sma_pilot.errors import PilotError

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line; bad input ends in one message and exit code 2."""
    from sma_core.errors import SMAError

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        app()
    except (PilotError, SMAError) as error:
        say(f"error: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        say("stopped; the same command goes on from here")
        sys.exit(130)
