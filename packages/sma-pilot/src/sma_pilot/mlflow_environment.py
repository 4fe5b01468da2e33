"""How this package meets MLflow: importing this comes before importing that."""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Or the lock file of whatever project the command runs in would go into a model.
os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")
# Stdout is for results: a server's addresses of every run would stand amid them.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# A server that restarts is waited for, half a minute; one that went away is not, for four.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
