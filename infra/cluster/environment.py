"""The environment variables that every process of a run gets: no telemetry, no hubs, few threads, quiet logs.

They are set before Ray, MLflow or Hugging Face are imported, because those read them at import.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

OFFLINE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_OFFLINE": "1",
}
QUIET = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DEDUP_LOGS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "PYTHONWARNINGS": "ignore",
    "GLOG_minloglevel": "2",
}
RAY = {
    # The controller polls its workers at this pace; 2 s by default, which each start and end would wait for.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Workers stay where the driver is, so that a relative path means the same everywhere.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
}
MLFLOW = {
    # Long enough for a server that stores a model's file behind the call; the spool does the patience.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
}
THREADS = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "2"}


def run_environment(gpus: bool = False) -> dict[str, str]:
    """What the driver sets for itself and hands to every worker; `gpus`: whether workers have any."""
    common = OFFLINE | QUIET | RAY | MLFLOW | THREADS
    return common if gpus else common | {"DS_ACCELERATOR": "cpu"}


def apply(values: Mapping[str, str]) -> None:
    """Sets `values` in this process, where the user has not set them."""
    for name, value in values.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Sets `values` for the block, whatever the user has set, and puts back what was there."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
