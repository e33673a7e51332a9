"""Training checkpoints: one folder each, complete when its manifest is there and agrees with its files.

Every rank writes its part into `step_0000100.<attempt>/` (`writer.py`); then `history.jsonl`, and `manifest.json` by
a rename as the last thing. A folder without manifest is the trace of a kill and goes away; one whose files do not
match is named, set aside and never loaded (DeepSpeed's shards are pickles). No random state is in it: masks, dropout
and order are functions of (seed, epoch, sequence).
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from components.pretraining.checkpoints.retention import Retention, Standing
from components.pretraining.health.judge import Incident
from infra.errors import DamagedArtifactError
from infra.storage import manifest as folder_manifest
from infra.storage.files import fsync
from infra.storage.mirror import Mirror

logger = logging.getLogger(__name__)

HISTORY_NAME = "history.jsonl"
FOLDER_NAME = "checkpoints"
"""Where they lie in the work folder of a training."""


class Progress(BaseModel):
    """How far a training is: all that is not in the weights and the optimizer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int = 0
    """Optimizer steps done."""
    num_tokens: int = 0
    """Tokens without padding, so far."""
    num_targets: int = 0
    recent_losses: tuple[float, ...] = ()
    """Training losses of the last steps."""
    incidents: tuple[Incident, ...] = ()
    """Batches that were skipped or rolled back: with `step`, they say where the data goes on."""
    sample_hash: int = 0
    """52 bits of what was trained on so far, in order; see `sampler.chain_hash`."""


class Manifest(BaseModel):
    """What `manifest.json` of a checkpoint says beside its files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    progress: Progress
    num_samples: int
    """Sequences consumed: where the data goes on."""
    world_size: int
    zero_stage: int
    precision: str
    config_digest: str
    validation_loss: float | None = None
    """Of the newest validation at or before its step, nats a target."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A complete checkpoint."""

    folder: Path
    manifest: Manifest
    history: tuple[dict[str, Any], ...]


def verify(folder: Path, config_digest: str, mark: Callable[[], None] = lambda: None) -> Checkpoint:
    """Reads a checkpoint's manifest and compares all files with it.

    Args:
        folder: of the checkpoint.
        config_digest: of the training.
        mark: told of each file.

    Raises:
        DamagedArtifactError: anything is missing, different, or not signed as it must be.
    """
    content = folder_manifest.read(folder)
    for _, damage in folder_manifest.check(folder, content):
        if damage:
            raise DamagedArtifactError(damage)
        mark()
    try:
        found = _parsed(content)
        lines = (folder / HISTORY_NAME).read_text(encoding="utf-8").splitlines()
        history = tuple(json.loads(line) for line in lines)
    except (OSError, ValueError) as error:
        raise DamagedArtifactError(f"{folder}: cannot be read: {error}") from error
    if found.config_digest != config_digest:
        raise DamagedArtifactError(f"{folder}: of another config ({found.config_digest}, not {config_digest})")
    return Checkpoint(folder=folder, manifest=found, history=history)


def _parsed(content: Mapping[str, Any]) -> Manifest:
    return Manifest.model_validate({name: content[name] for name in Manifest.model_fields if name in content})


class CheckpointStore:
    """The checkpoints of one training, in a folder that all ranks see, or that each machine mirrors.

    Args:
        folder: made if it is not there.
        config_digest: what the checkpoints belong to.
        retention: which complete ones stay.
        mirror: of the root that the folder lies in.
        mark: told, in the training's thread, that reading or writing goes on: of the watchdog.
    """

    def __init__(
        self,
        folder: Path,
        config_digest: str,
        retention: Retention,
        mirror: Mirror = Mirror(Path("/")),
        mark: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder = folder
        self.config_digest = config_digest
        self.retention = retention
        self.mirror = mirror
        self.mark = mark

    def newest(self, until: int | None = None) -> Checkpoint | None:
        """The newest complete checkpoint; damaged ones are set aside, unfinished ones removed. Rank 0 only.

        Args:
            until: the last step that it may be of.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for folder in self.folder.glob("step_*"):
            if not (folder / folder_manifest.NAME).exists():
                logger.info("removing the unfinished checkpoint %s", folder)
                shutil.rmtree(folder)
        for name in reversed(self._names()):
            if until is not None and _step_of(name) > until:
                continue
            folder = self.folder / name
            try:
                return self.fetch(folder)
            except DamagedArtifactError as error:
                aside = folder.with_name("damaged_" + folder.name)
                logger.warning("damaged checkpoint: %s; set aside as %s, the one before it is used", error, aside.name)
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
                self.mirror.drop(folder, folder_manifest.NAME)
        return None

    def fetch(self, folder: Path) -> Checkpoint:
        """A complete checkpoint, whole on this machine: what it wrote itself are the files of its own ranks.

        Raises:
            DamagedArtifactError: it differs from its manifest, and in the object store too.
        """
        self.mirror.pull(folder)
        try:
            return verify(folder, self.config_digest, self.mark)
        except DamagedArtifactError:
            if not self.mirror.objects:
                raise
        shutil.rmtree(folder, ignore_errors=True)
        self.mirror.pull(folder)
        return verify(folder, self.config_digest, self.mark)

    def folder_of(self, step: int, attempt: str) -> Path:
        """Where a checkpoint is to be written.

        Args:
            step: of the training.
            attempt: a word that no other attempt has, so that nothing of theirs is in the folder.
        """
        return self.folder / f"step_{step:07d}.{attempt}"

    def drop_after(self, step: int) -> None:
        """Removes the checkpoints of later steps: a rollback has undone them. Rank 0 only."""
        for name in self._names():
            if _step_of(name) > step:
                self._remove(self.folder / name)

    def forget_after(self, step: int) -> None:
        """Removes this machine's copies of them, where each machine has its own."""
        if self.mirror.objects:
            for folder in self.folder.glob("step_*"):
                if _step_of(folder.name) > step:
                    shutil.rmtree(folder, ignore_errors=True)

    def complete(self) -> dict[str, Manifest]:
        """The complete checkpoints by name, their files not checked; what cannot be read is passed over."""
        folders = [self.folder / name for name in self._names()]
        if self.mirror.objects:
            contents = self.mirror.manifests(folders)
        else:
            contents = {folder: _read(folder) for folder in folders}
        found = {}
        for folder, content in contents.items():
            try:
                if not isinstance(content, DamagedArtifactError):
                    found[folder.name] = _parsed(content)
            except ValueError:
                continue  # resuming from it will set it aside
        return found

    def lasting(self) -> dict[str, Manifest]:
        """The complete checkpoints that stay after the training too."""
        complete = self.complete()
        names = self.retention.lasting(_standings(complete))
        return {name: one for name, one in complete.items() if name in names}

    def publish(self, folder: Path, made: Manifest, files: Mapping[str, Any]) -> None:
        """Makes a checkpoint count: its manifest, as the last thing.

        Args:
            folder: all its files are there, and synced.
            made: what the manifest says.
            files: size and digest of each file by name.
        """
        for inner in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
            fsync(inner)
        folder_manifest.write(folder, made.model_dump(mode="json"), dict(sorted(files.items())))
        fsync(self.folder)
        self.mirror.push(folder, only=[folder_manifest.NAME])

    def prune(self) -> set[str]:
        """Removes the complete checkpoints that do not stay; returns the names of those that do. Rank 0 only."""
        complete = self.complete()
        kept = self.retention.kept(_standings(complete))
        for name in sorted(set(complete) - kept):
            self._remove(self.folder / name)
        return kept

    def _remove(self, folder: Path) -> None:
        (folder / folder_manifest.NAME).unlink(missing_ok=True)  # first: a kill in between leaves an unfinished one
        shutil.rmtree(folder, ignore_errors=True)
        self.mirror.drop(folder, folder_manifest.NAME)

    def forget(self, kept: Sequence[str]) -> None:
        """Removes this machine's copies of all but `kept`, where each machine has its own."""
        if self.mirror.objects:
            for folder in self.folder.glob("step_*"):
                if folder.name not in kept:
                    shutil.rmtree(folder, ignore_errors=True)

    def _names(self) -> list[str]:
        """Of the complete ones, by step."""
        return [name for name in self.mirror.names(self.folder, folder_manifest.NAME) if name.startswith("step_")]


def _step_of(name: str) -> int:
    """Of a checkpoint's folder."""
    return int(name[5:12])


def _read(folder: Path) -> dict[str, Any] | DamagedArtifactError:
    try:
        return folder_manifest.read(folder)
    except DamagedArtifactError as error:
        return error


def _standings(complete: Mapping[str, Manifest]) -> dict[str, Standing]:
    return {
        name: Standing(step=one.progress.step, validation_loss=one.validation_loss) for name, one in complete.items()
    }
