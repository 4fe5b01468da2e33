"""How this package meets MLflow: importing this comes before importing that."""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Or the lock file of whatever project the command runs in would go into a model.
os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")
