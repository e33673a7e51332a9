"""A step is a frozen value that points at a plain function; building one runs nothing.

The function is `(config, inputs, context) -> StepOutput`. It writes its files into `context.output` and returns
what is to be known about them. It is named by a string, so that planning imports none of what it needs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.errors import FromzeroError
from infra.journal.config import FrozenConfig
from infra.storage.mirror import Mirror
from infra.storage.raw import RawFile
from infra.tracking.client import StepTracker
from infra.tracking.records import Record

STOP_NAME = "stop"
"""The file in a work folder that asks its step to save what it has and end."""
Scalar = float | int | str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """The finished, verified output of a step: a folder with a manifest."""

    step: str
    key: str
    path: Path
    metrics: Mapping[str, Scalar]
    """What the step returned as `metrics`: deterministic."""
    measured: Mapping[str, Scalar] = field(default_factory=dict)
    """What the machine did when it was made: seconds, rates, memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepContext:
    """What a step function gets beside its config and inputs."""

    step: str
    key: str
    output: Path
    """A new empty folder on local disk. What it holds when the function returns becomes the artifact."""
    work: Path
    """A folder that outlives a kill: checkpoints, finished rungs. The same for every attempt at this key; removed
    after the commit, but for the checkpoints that the step has put on record."""
    raw: Mapping[str, tuple[RawFile, ...]]
    """The raw input files by source name, resolved and digested when the run was planned."""
    tracker: StepTracker
    """Metrics and progress; never blocks, never raises, can be pickled into workers."""
    units: Path = Path("units")
    """Where units of work are kept by content; see `infra.storage.units`."""
    mirror: Mirror = Mirror(Path("/"))
    """Brings inputs to the machine of a worker, and what is in `work` to the machine that goes on after a kill; does
    nothing for a root on a file system."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepOutput:
    """What a step function returns."""

    metrics: Mapping[str, Scalar]
    """Deterministic: a reused step prints the same again."""
    measured: Mapping[str, Scalar] = field(default_factory=dict)
    """What the machine did: seconds, rates, memory, restarts."""
    records: tuple[Record, ...] = ()
    """What MLflow is to show beside metrics: files, models, prompts, trials."""
    num_rows: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Rows read of each raw file, rejects included: by source name, in the order of `context.raw`."""
    units: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Keys of the units that it was made from, by kind: while the artifact stays, they stay."""


StepFunction = Callable[[Any, Mapping[str, Artifact], StepContext], StepOutput]


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What a step holds while it runs, workers included; steps run at the same time while their sum fits."""

    num_cpus: float = 1
    num_gpus: float = 0
    max_cpus: float | None = None
    """Of a step that takes what the cluster has, up to this; it runs from `num_cpus` on."""
    max_gpus: float | None = None

    def held(self, cluster: Mapping[str, float]) -> dict[str, float]:
        """What it holds on a cluster that has `cluster` when it starts."""
        wishes = {"CPU": (self.num_cpus, self.max_cpus), "GPU": (self.num_gpus, self.max_gpus)}
        return {
            name: fewest if most is None else max(fewest, min(most, cluster.get(name, 0.0)))
            for name, (fewest, most) in wishes.items()
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One node of the DAG."""

    name: str
    function: str
    """`package.module:function`."""
    config: FrozenConfig
    inputs: Mapping[str, Step] = field(default_factory=dict)
    raw: Mapping[str, tuple[RawFile, ...]] = field(default_factory=dict)
    version: int = 1
    """Raised by hand when the meaning of the result changes and the code digest does not show it."""
    resources: Resources = field(default_factory=Resources)
    max_retries: int = 1
    """How often it is tried again after an infrastructure error."""
    stop_seconds: float = 0.0
    """How long it is given to end in order when the run is stopped: it looks for the file STOP_NAME in its work folder.
    Without it, it is ended at once."""
    frozen: bool = False
    """Once made it stays while what it is made from grows; see `infra.journal.freezing`. In no key."""

    @property
    def module(self) -> str:
        """The module of the step's function."""
        return self.function.partition(":")[0]

    def load(self) -> StepFunction:
        """Imports the function.

        Raises:
            FromzeroError: `function` names nothing.
        """
        module_name, _, name = self.function.partition(":")
        function: StepFunction | None = getattr(importlib.import_module(module_name), name, None)
        if function is None:
            raise FromzeroError(f"step {self.name}: {self.function} does not exist")
        return function
