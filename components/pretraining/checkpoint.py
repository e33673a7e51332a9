"""Training checkpoints: one folder each, complete when its manifest is there and agrees with its files.

Every rank writes its part with DeepSpeed into `step_0000100.<attempt>/`; then `history.jsonl`, and `manifest.json` by
a rename as the last thing. A folder without manifest is the trace of a kill and goes away; one whose files do not
match is named, set aside and never loaded (DeepSpeed's shards are pickles). Digests cost about a second for 2 GB a
rank, and the ranks share the files among themselves. No random state is in it: dropout is 0, and masks and order are
functions of (seed, epoch, sequence).
"""

from __future__ import annotations

import hashlib
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

from infra.errors import DamagedArtifactError

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
HISTORY_NAME = "history.jsonl"
TAG = "state"
"""DeepSpeed's name of the folder with its files, inside ours."""


class FileEntry(BaseModel):
    """Size and content of one file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_bytes: int
    sha256: str


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


class Manifest(BaseModel):
    """`manifest.json` of a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    progress: Progress
    num_samples: int
    """Sequences consumed: where the data goes on."""
    world_size: int
    zero_stage: int
    precision: str
    config_digest: str
    files: dict[str, FileEntry]


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A complete checkpoint."""

    folder: Path
    manifest: Manifest
    history: tuple[dict[str, Any], ...]


def write_atomically(path: Path, text: str) -> None:
    """Writes a file under a temporary name, syncs, renames."""
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(path: Path) -> FileEntry:
    """Syncs a file and tells its size and SHA-256."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        return FileEntry(num_bytes=path.stat().st_size, sha256=hashlib.file_digest(stream, "sha256").hexdigest())


def verify(folder: Path, config_digest: str) -> Checkpoint:
    """Reads a checkpoint's manifest and compares all files with it.

    Raises:
        DamagedArtifactError: anything is missing or different.
    """
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST_NAME).read_bytes())
        if manifest.format_version != FORMAT_VERSION:
            raise DamagedArtifactError(f"{folder}: format {manifest.format_version}, this code reads {FORMAT_VERSION}")
        if manifest.config_digest != config_digest:
            raise DamagedArtifactError(f"{folder}: of another config ({manifest.config_digest}, not {config_digest})")
        for name, entry in manifest.files.items():
            if digest(folder / name) != entry:
                raise DamagedArtifactError(f"{folder}: {name} is not what its manifest says")
        lines = (folder / HISTORY_NAME).read_text(encoding="utf-8").splitlines()
        history = tuple(json.loads(line) for line in lines)
    except (OSError, ValueError) as error:
        if isinstance(error, DamagedArtifactError):
            raise
        raise DamagedArtifactError(f"{folder}: cannot be read: {error}") from error
    return Checkpoint(folder=folder, manifest=manifest, history=history)


class CheckpointStore:
    """The checkpoints of one training, in a folder that all ranks see.

    Args:
        folder: made if it is not there.
        config_digest: what the checkpoints belong to.
        keep: how many complete ones stay.
    """

    def __init__(self, folder: Path, config_digest: str, keep: int) -> None:
        self.folder = folder
        self.config_digest = config_digest
        self.keep = keep

    def newest(self) -> Checkpoint | None:
        """The newest complete checkpoint; damaged ones are set aside, unfinished ones removed. Rank 0 only."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for folder in sorted(self.folder.glob("step_*"), reverse=True):
            if not (folder / MANIFEST_NAME).exists():
                logger.info("removing the unfinished checkpoint %s", folder)
                shutil.rmtree(folder)
                continue
            try:
                return verify(folder, self.config_digest)
            except DamagedArtifactError as error:
                aside = folder.with_name("damaged_" + folder.name)
                logger.warning("damaged checkpoint: %s; set aside as %s, the one before it is used", error, aside.name)
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
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
        if rank == 0:
            folder.mkdir(parents=True)
        dist.barrier()
        engine.save_checkpoint(str(folder), tag=TAG, client_state={})
        if rank == 0:
            lines = "".join(json.dumps(row) + "\n" for row in history)
            (folder / HISTORY_NAME).write_text(lines, encoding="utf-8")
        dist.barrier()
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        mine = {str(path.relative_to(folder)): digest(path).model_dump() for path in paths[rank::world_size]}
        parts: list[dict[str, Any]] = [{}] * world_size
        dist.all_gather_object(parts, mine)
        if rank == 0:
            files = {name: FileEntry(**entry) for part in parts for name, entry in part.items()}
            full = Manifest(
                progress=progress,
                world_size=world_size,
                config_digest=self.config_digest,
                files=dict(sorted(files.items())),
                **manifest,
            )
            for inner in (path for path in folder.rglob("*") if path.is_dir()):
                sync_folder(inner)
            write_atomically(folder / MANIFEST_NAME, full.model_dump_json(indent=1) + "\n")
            sync_folder(self.folder)
            self._prune()
        dist.barrier()

    def _prune(self) -> None:
        complete = sorted(path.parent for path in self.folder.glob(f"step_*/{MANIFEST_NAME}"))
        for folder in complete[: -self.keep]:
            (folder / MANIFEST_NAME).unlink()  # first, so that a kill in between leaves an unfinished one
            shutil.rmtree(folder)
