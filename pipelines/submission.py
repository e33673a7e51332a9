"""What a submission is known by, and what its job runs.

The submission id is the pipeline's name and the run key: 32 hex characters over the key of the last step, the root, and
nothing else. So it covers what a key covers, config and code of every step, and no execution setting: a submission with
other workers joins the run that goes on.

The submitter need not see the raw files. Those it sees, under the same absolute path, count by path, size and time of
modification; those it does not, by their path alone. They are not read: the key says "the same run as before", and the
keys of the steps, which the job makes from their contents, say what is made. Where new data comes while a run goes on
and its submitter does not see it, the submission joins that run, and the next one makes what follows from the data.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from infra.cluster.jobs import Request
from infra.errors import ConfigError
from infra.journal.key import digest, identity
from infra.journal.plan import order
from pipelines.compose import load_config
from pipelines.config import PipelineConfig, StorageConfig
from pipelines.llm import build

CLOSING_SECONDS = 120
"""What a run may take to close itself after it was told to stop, beside its wait for MLflow."""


def make_request(pipeline: str, overrides: Sequence[str], until: str | None) -> Request:
    """The job that runs `pipeline`, its config checked.

    Raises:
        ConfigError: every problem that can be seen from here, a line each.
    """
    problems = []
    if any(override.partition("=")[0] == "cluster.address" for override in overrides):
        problems.append("cluster.address: a job joins the cluster that it is submitted to; leave it out")
    try:
        config = load_config(pipeline, list(overrides))
    except ConfigError as error:
        raise ConfigError(*problems, *error.problems) from error
    root = config.storage.root
    given = root != StorageConfig.model_fields["root"].default
    if given and "://" not in root and not Path(root).is_absolute():
        problems.append(
            f"storage.root: {root} is relative; on a cluster write an absolute path that all its nodes share"
        )
    try:
        steps = {step.name: step for step in order([build(config, elsewhere=True)])}
        if until is not None and until not in steps:
            problems.append(f"--until {until}: {pipeline} has no such step; its steps are {', '.join(steps)}")
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(*problems)
    keys: dict[str, str] = {}
    for name, step in steps.items():
        keys[name] = digest(identity(step, {role: keys[parent.name] for role, parent in step.inputs.items()}))
    run_key = digest({"target": keys[until or next(reversed(steps))], "root": root if given else None})
    words = [*overrides, "cluster.address=auto", *([f"--until={until}"] if until else [])]
    if given and f"storage.root={root}" not in overrides:  # it comes from the environment
        words.append(f"storage.root={root}")
    return Request(
        pipeline=pipeline,
        run=f"{pipeline}-{run_key}",
        root=root if given else None,
        entrypoint=f"exec python -m pipelines.cli run {shlex.join([pipeline, *words])}",
        variables={"RAY_JOB_STOP_WAIT_TIME_S": str(stop_seconds(config))},
    )


def stop_seconds(config: PipelineConfig) -> int:
    """How long Ray waits after SIGTERM before it kills a run's driver; 3 s by itself (2.60)."""
    return int(config.tracking.flush_timeout_seconds) + CLOSING_SECONDS
