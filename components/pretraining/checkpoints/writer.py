"""Writes checkpoints in the background: the training stops for a copy in host memory, and a thread does the rest.

A thread of each rank writes its files, syncs them, takes their digests and pushes them to the mirror; when all ranks
are done, rank 0 writes the manifest, which makes the checkpoint count, and removes what need not stay. The ranks meet
in a process group of the thread's own (gloo), so that nothing gets between the collectives of the training. One
checkpoint is under way at a time: the next save waits for it, and so does the end. What goes wrong on any rank is told
to all, and raised in the training at its next step.

On two busy cores a checkpoint of 59 MiB stops the training for 0.04 s in place of 0.27, and steps beside the writing
are as fast as others (`tests/benchmarks/LOG.md`). The price is one copy of the state in host memory (`snapshot.py`).
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from components.pretraining.checkpoints.checkpoint import HISTORY_NAME, CheckpointStore, Manifest
from components.pretraining.checkpoints.snapshot import take_snapshot
from infra.errors import FromzeroError, InfrastructureError
from infra.storage import manifest as folder_manifest
from infra.storage.files import fsync, storage_error

logger = logging.getLogger(__name__)

NICENESS = 10
"""Of the thread, above that of the training: about a tenth of a core that both want."""
LOOK_SECONDS = 1.0
"""How often a training that waits looks whether the writing goes on, and tells the watchdog."""
SETTLE_SECONDS = 30.0
"""How long a training that failed waits for the checkpoint that is under way."""


class CheckpointWriter:
    """The checkpoints of one rank on their way to the disk. All ranks make one, at the same time.

    Args:
        store: where they go.
    """

    def __init__(self, store: CheckpointStore) -> None:
        self.store = store
        self.stall_seconds = 0.0
        """What the training has waited: for copies, and for a checkpoint before the next."""
        self.write_seconds = 0.0
        """What the thread has worked."""
        self.saved_step: int | None = None
        """Of the newest checkpoint that was begun."""
        self._group = dist.new_group(backend="gloo")
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._moves = 0
        """Of the thread, each a write or a whole file."""

    @property
    def has_failed(self) -> bool:
        """Whether the checkpoint under way has failed; `wait` raises why."""
        return self._error is not None

    def save(self, engine: Any, *, attempt: str, made: Manifest, history: Sequence[dict[str, Any]]) -> None:
        """Takes a snapshot and begins to write it. All ranks call it.

        Args:
            engine: DeepSpeed's.
            attempt: a word that no other attempt has.
            made: what the manifest says.
            history: metrics so far.

        Raises:
            StorageError: the checkpoint before this one could not be written.
        """
        self.wait()
        started = time.monotonic()
        folder = self.store.folder_of(made.progress.step, attempt)
        lines = "".join(json.dumps(row) + "\n" for row in history) if dist.get_rank() == 0 else None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            files = take_snapshot(engine, folder)
        except OSError as error:
            raise storage_error(error, folder) from error
        self.saved_step = made.progress.step
        self._thread = threading.Thread(
            target=self._run, args=(folder, files, made, lines), name="checkpoint-writer", daemon=True
        )
        self._thread.start()
        self.stall_seconds += time.monotonic() - started

    def wait(self) -> None:
        """Waits for the checkpoint under way. All ranks call it, and raise the same.

        Raises:
            StorageError: it could not be written.
        """
        started = time.monotonic()
        if self._thread is not None:
            moves = self._moves
            while self._thread.is_alive():
                self._thread.join(LOOK_SECONDS)
                if moves != self._moves:
                    moves = self._moves
                    self.store.mark()
            self._thread = None
        self.stall_seconds += time.monotonic() - started
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def settle(self) -> None:
        """After an error of the training: waits a while for the checkpoint under way, which may be whole yet."""
        if self._thread is not None:
            self._thread.join(SETTLE_SECONDS)
        if self._error is not None:
            logger.warning("the last checkpoint was not written: %s", self._error)

    def _run(self, folder: Path, files: dict[Path, Any], made: Manifest, lines: str | None) -> None:
        started = time.monotonic()
        if sys.platform == "linux":  # where a thread has a priority of its own: the cores are the training's
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        try:
            self._write(folder, files, made, lines)
        except Exception as error:  # thread boundary: the training raises it
            self._error = error if isinstance(error, FromzeroError) else _told(error, folder)
        self.write_seconds += time.monotonic() - started

    def _write(self, folder: Path, files: dict[Path, Any], made: Manifest, lines: str | None) -> None:
        mine: dict[str, Any] = {}
        error: Exception | None = None
        try:
            mine = self._write_files(folder, files, lines)
        except Exception as raised:  # told to the other ranks, who wait
            error = _told(raised, folder)
        parts: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(parts, (mine, error), group=self._group)
        error = next((one for _, one in parts if one is not None), None)
        kept: set[str] = set()
        if error is None and dist.get_rank() == 0:
            try:
                self.store.publish(folder, made, {name: entry for part, _ in parts for name, entry in part.items()})
                kept = self.store.prune()
            except Exception as raised:
                error = _told(raised, folder)
        told: list[Any] = [(error, kept)]
        dist.broadcast_object_list(told, src=0, group=self._group)
        error, kept = told[0]
        if error is not None:
            raise error
        self.store.forget(sorted(kept))

    def _write_files(self, folder: Path, files: dict[Path, Any], lines: str | None) -> dict[str, Any]:
        """Writes this rank's files; size and digest of each by name."""
        paths = list(files)
        for path in paths:
            _save(files.pop(path), path, self._move)
        if lines is not None:  # rank 0, which also answers for what DeepSpeed leaves beside the state
            (folder / HISTORY_NAME).write_text(lines, encoding="utf-8")
            paths += [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pt"]
        for path in paths:
            fsync(path)
            self._move()
        mine = {}
        for path in paths:
            mine[path.relative_to(folder).as_posix()] = folder_manifest.entry(path)
            self._move()
        self.store.mirror.push(folder, only=list(mine))
        return mine

    def _move(self) -> None:
        self._moves += 1


def _told(error: Exception, folder: Path) -> Exception:
    """The error as one clear line that other ranks can read."""
    if isinstance(error, FromzeroError):
        return error
    if isinstance(error, OSError):
        return storage_error(error, folder)
    return InfrastructureError(f"{folder}: the checkpoint could not be written: {type(error).__name__}: {error}")


class _Stream(io.BufferedWriter):
    """Remembers what the operating system said: torch.save makes "unexpected pos" of it (2.13)."""

    error: OSError | None = None

    def __init__(self, path: Path, on_write: Callable[[], None]) -> None:
        super().__init__(io.FileIO(path, "wb"))
        self._on_write = on_write

    def write(self, data: Any) -> int:
        self._on_write()
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


def _save(content: Any, path: Path, on_write: Callable[[], None]) -> None:
    """`torch.save` that raises OSError where the disk does."""
    with _Stream(path, on_write) as stream:
        try:
            torch.save(content, stream)
        except RuntimeError:
            if stream.error is not None:
                raise stream.error from None
            raise
