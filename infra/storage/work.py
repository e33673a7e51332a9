"""What stays of the work folder of a finished step: the checkpoints that it has put on record, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from infra.storage.mirror import Mirror


def spent(mirror: Mirror, work: Path, records: Iterable[Mapping[str, Any]]) -> tuple[Path, ...]:
    """The folders and files that go, the largest whole ones; of a root on an object store, where they are or would be
    on this machine.

    Args:
        mirror: of the root.
        work: the work folder.
        records: of the step's artifact; see `CheckpointRecord`.
    """
    kept = [work / record["path"] for record in records if record["type"] == "checkpoint"]
    if not kept:
        return (work,)
    files = {path for path in work.rglob("*") if path.is_file()}
    if mirror.objects:
        files |= {work / name for name in mirror.objects.sizes(work.relative_to(mirror.root).as_posix())}
    found = set()
    for path in files:
        if not any(path.is_relative_to(one) for one in kept):
            while path.parent != work and not any(one.is_relative_to(path.parent) for one in kept):
                path = path.parent
            found.add(path)
    return tuple(sorted(found))


def clear(mirror: Mirror, work: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Removes what is spent."""
    for path in spent(mirror, work, records):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        mirror.drop(path)
