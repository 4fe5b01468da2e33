"""Run trials on Ray Tune. Apart from this folder only `submission` imports ray.

Ray places trials, moves checkpoints to the study folder and starts a trial again from its latest
one when its process or machine dies. What is finished is for the study folder's records to say:
a resumed study hands over its unfinished trials, each with the checkpoint to go on from, and Ray
starts afresh, since its own way to restore a driver would unpickle whatever lies in the folder.
"""

import os

# Under `uv run` Ray would build an environment for every worker; the one that stands is meant.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
# Without these, Ray writes a CSV, a JSON and a TensorBoard file for each trial beside our records,
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
# prints a banner of its own, and every error whole where our one line says it,
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
# and warns of a coming change of what a trial without GPUs sees; this is the coming behaviour.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

# Ray reads them when it is imported.
from .client import CLIENT, sweep_by_client
from .cluster import LOCAL, connected
from .tuning import sweep

__all__ = ["CLIENT", "LOCAL", "connected", "sweep", "sweep_by_client"]
