"""Tiny steps for tests of the journal."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from pydantic import Field

from infra.errors import InfrastructureError, UserError
from infra.journal.config import FrozenConfig, execution_field
from infra.journal.step import Artifact, Resources, Step, StepContext, StepOutput
from infra.tracking.records import FileRecord, TrialRecord


class ToyConfig(FrozenConfig):
    """Config of every toy step."""

    value: int = 1
    rate: float = 0.5
    fail: str | None = execution_field(None, description="how to fail")
    seconds: float = execution_field(0.0, description="how long to take, seconds")
    labels: tuple[str, ...] = Field((), description="any words")


def add(config: ToyConfig, inputs: Mapping[str, Artifact], context: StepContext) -> StepOutput:
    """The sum of its own value and its inputs'."""
    attempts = context.work / "attempts"
    attempts.write_text(str(int(attempts.read_text() if attempts.exists() else 0) + 1))
    time.sleep(config.seconds)
    if config.fail == "user":
        raise UserError("toy.value: 1 is not allowed; use 2")
    if config.fail == "once" and attempts.read_text() == "1":
        raise InfrastructureError("the network blinked")
    if config.fail == "bug":
        raise ZeroDivisionError("toy bug")
    if config.fail == "away":
        os.environ["AWS_ENDPOINT_URL"] = "http://127.0.0.1:9"
    if config.fail == "die":
        os._exit(7)
    total = config.value + sum(int(str(artifact.metrics["total"])) for artifact in inputs.values())
    (context.output / "total.txt").write_text(str(total))
    context.tracker.log_metrics({"train_loss": 1.0 / total}, 1)
    context.tracker.log_trial(
        TrialRecord(trial_id="t0", parameters={"value": config.value}, history=((1, {"accuracy": 0.5}),))
    )
    return StepOutput(
        metrics={"total": total, "steps": 1},
        measured={"attempts": int(attempts.read_text())},
        records=(FileRecord(path="total.txt"),),
    )


def step(name: str, config: ToyConfig | None = None, cpus: float = 1, **inputs: Step) -> Step:
    """A step named `name`."""
    return Step(
        name=name,
        function="tests.infra.toy_steps:add",
        config=config or ToyConfig(),
        inputs=inputs,
        resources=Resources(num_cpus=cpus),
    )
