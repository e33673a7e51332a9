"""What a step hands to MLflow beside its metrics. Plain values: they live in the artifact's manifest, so that a lost
or new tracking server can be filled again from storage alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileRecord(_Record):
    """A small file or folder of the artifact, shown as an artifact of the step's run."""

    type: Literal["file"] = "file"
    path: str
    """Relative to the artifact's folder."""
    folder: str = ""
    """Folder under the run's artifacts."""


class TableRecord(_Record):
    """A small file of the artifact `{"columns": [...], "data": [[...], ...]}`, shown as a table of the step's run."""

    type: Literal["table"] = "table"
    path: str
    """Relative to the artifact's folder."""


class ModelRecord(_Record):
    """A Hugging Face folder, shown as a LoggedModel."""

    type: Literal["model"] = "model"
    path: str
    """Relative to the artifact's folder."""
    name: str
    task: str
    """The transformers pipeline task: `text-classification`, `text-generation`, `fill-mask`."""
    metrics: Mapping[str, float] = {}
    parameters: Mapping[str, str] = {}
    registered_name: str | None = None
    """If given, a version of this registered model is made; its files are uploaded, not only linked."""
    alias: str | None = None


class CheckpointRecord(_Record):
    """A training checkpoint that stays in the step's work folder for as long as its artifact is needed, shown as a
    LoggedModel that is linked, not uploaded."""

    type: Literal["checkpoint"] = "checkpoint"
    path: str
    """Relative to the step's work folder."""
    name: str
    metrics: Mapping[str, float] = {}


class PromptRecord(_Record):
    """A prompt template, shown as a version of a registered prompt."""

    type: Literal["prompt"] = "prompt"
    name: str
    template: str
    tags: Mapping[str, str] = {}


class TrialRecord(_Record):
    """One trial of a sweep or one final fit, shown as a child run of the step's run."""

    type: Literal["trial"] = "trial"
    trial_id: str
    parameters: Mapping[str, str | float | int | bool | None]
    history: tuple[tuple[int, Mapping[str, float]], ...] = ()
    """(training step, metrics) in order."""
    status: Literal["finished", "stopped", "failed"] = "finished"


Record = Annotated[
    FileRecord | TableRecord | ModelRecord | CheckpointRecord | PromptRecord | TrialRecord, Field(discriminator="type")
]
RECORDS: TypeAdapter[tuple[Record, ...]] = TypeAdapter(tuple[Record, ...])
