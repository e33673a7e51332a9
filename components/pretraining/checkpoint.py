"""Training checkpoints: one folder each, complete when its manifest is there and agrees with its files.

Every rank writes its part with DeepSpeed into `step_0000100.<attempt>/`; then `history.jsonl`, and `manifest.json` by
a rename as the last thing. A folder without manifest is the trace of a kill and goes away; one whose files do not
match is named, set aside and never loaded (DeepSpeed's shards are pickles). Digests cost about a second for 2 GB a
rank, and the ranks share the files among themselves. No random state is in it: dropout is 0, and masks and order are
functions of (seed, epoch, sequence).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from pydantic import BaseModel, ConfigDict

from components.pretraining.health import Incident
from infra.errors import DamagedArtifactError
from infra.storage import manifest as folder_manifest
from infra.storage.files import fsync
from infra.storage.mirror import Mirror

logger = logging.getLogger(__name__)

HISTORY_NAME = "history.jsonl"
TAG = "state"
"""DeepSpeed's name of the folder with its files, inside ours."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A complete checkpoint."""

    folder: Path
    manifest: Manifest
    history: tuple[dict[str, Any], ...]


def verify(folder: Path, config_digest: str) -> Checkpoint:
    """Reads a checkpoint's manifest and compares all files with it.

    Raises:
        DamagedArtifactError: anything is missing, different, or not signed as it must be.
    """
    content = folder_manifest.verify(folder)
    try:
        found = Manifest.model_validate({name: content[name] for name in Manifest.model_fields if name in content})
        lines = (folder / HISTORY_NAME).read_text(encoding="utf-8").splitlines()
        history = tuple(json.loads(line) for line in lines)
    except (OSError, ValueError) as error:
        raise DamagedArtifactError(f"{folder}: cannot be read: {error}") from error
    if found.config_digest != config_digest:
        raise DamagedArtifactError(f"{folder}: of another config ({found.config_digest}, not {config_digest})")
    return Checkpoint(folder=folder, manifest=found, history=history)


class CheckpointStore:
    """The checkpoints of one training, in a folder that all ranks see, or that each machine mirrors.

    Args:
        folder: made if it is not there.
        config_digest: what the checkpoints belong to.
        keep: how many complete ones stay.
        mirror: of the root that the folder lies in.
    """

    def __init__(self, folder: Path, config_digest: str, keep: int, mirror: Mirror = Mirror(Path("/"))) -> None:
        self.folder = folder
        self.config_digest = config_digest
        self.keep = keep
        self.mirror = mirror

    def newest(self) -> Checkpoint | None:
        """The newest complete checkpoint; damaged ones are set aside, unfinished ones removed. Rank 0 only."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for folder in self.folder.glob("step_*"):
            if not (folder / folder_manifest.NAME).exists():
                logger.info("removing the unfinished checkpoint %s", folder)
                shutil.rmtree(folder)
        for name in reversed(self.mirror.names(self.folder, folder_manifest.NAME)):
            folder = self.folder / name
            if not name.startswith("step_"):
                continue
            self.mirror.pull(folder)
            try:
                try:
                    return verify(folder, self.config_digest)
                except DamagedArtifactError:
                    if not self.mirror.objects:
                        raise
                    shutil.rmtree(folder, ignore_errors=True)  # perhaps this machine's copy alone
                    self.mirror.pull(folder)
                    return verify(folder, self.config_digest)
            except DamagedArtifactError as error:
                aside = folder.with_name("damaged_" + folder.name)
                logger.warning("damaged checkpoint: %s; set aside as %s, the one before it is used", error, aside.name)
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
                self.mirror.drop(folder, folder_manifest.NAME)
        return None

    def save(
        self,
        engine: Any,
        *,
        attempt: str,
        progress: Progress,
        history: Sequence[dict[str, Any]],
        manifest: dict[str, Any],
    ) -> None:
        """Writes a checkpoint. All ranks call it.

        Args:
            engine: DeepSpeed's.
            attempt: a word that no other attempt has, so that nothing of theirs is in the folder.
            progress: how far the training is.
            history: its metrics so far.
            manifest: the other fields of the manifest.
        """
        rank, world_size = dist.get_rank(), dist.get_world_size()
        folder = self.folder / f"step_{progress.step:07d}.{attempt}"
        folder.mkdir(parents=True, exist_ok=True)
        dist.barrier()
        engine.save_checkpoint(str(folder), tag=TAG, client_state={})
        if rank == 0:
            lines = "".join(json.dumps(row) + "\n" for row in history)
            (folder / HISTORY_NAME).write_text(lines, encoding="utf-8")
        dist.barrier()
        paths = sorted(path for path in folder.rglob("*") if path.is_file())[self._share(rank, world_size)]
        for path in paths:
            fsync(path)
        mine = {path.relative_to(folder).as_posix(): folder_manifest.entry(path) for path in paths}
        self.mirror.push(folder, only=list(mine))
        parts: list[dict[str, Any]] = [{}] * world_size
        dist.all_gather_object(parts, mine)
        if rank == 0:
            full = Manifest(progress=progress, world_size=world_size, config_digest=self.config_digest, **manifest)
            for inner in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
                fsync(inner)
            files = {name: entry for part in parts for name, entry in part.items()}
            folder_manifest.write(folder, full.model_dump(mode="json"), dict(sorted(files.items())))
            fsync(self.folder)
            self.mirror.push(folder, only=[folder_manifest.NAME])
            self._prune()
        dist.barrier()
        if self.mirror.objects:  # on the machines of the other ranks
            for old in sorted(self.folder.glob("step_*"))[: -self.keep]:
                shutil.rmtree(old, ignore_errors=True)

    def drop_after(self, step: int) -> None:
        """Removes the checkpoints of later steps: a rollback has undone them. All ranks call it."""
        names = self.mirror.names(self.folder, folder_manifest.NAME) if dist.get_rank() == 0 else []
        for name in names:
            if name.startswith("step_") and int(name[5:12]) > step:
                self._remove(self.folder / name)
        dist.barrier()
        if self.mirror.objects:  # on the machines of the other ranks
            for folder in self.folder.glob("step_*"):
                if int(folder.name[5:12]) > step:
                    shutil.rmtree(folder, ignore_errors=True)

    def _share(self, rank: int, world_size: int) -> slice:
        """This rank's share of the files that it sees: of all, or of those of its machine."""
        if self.mirror.objects:
            rank = int(os.environ.get("LOCAL_RANK", rank))
            world_size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
        return slice(rank, None, world_size)

    def _prune(self) -> None:
        complete = sorted(path.parent for path in self.folder.glob(f"step_*/{folder_manifest.NAME}"))
        for folder in complete[: -self.keep]:
            self._remove(folder)

    def _remove(self, folder: Path) -> None:
        (folder / folder_manifest.NAME).unlink(missing_ok=True)  # first: a kill in between leaves an unfinished one
        shutil.rmtree(folder, ignore_errors=True)
        self.mirror.drop(folder, folder_manifest.NAME)
