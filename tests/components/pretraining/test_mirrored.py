"""Checkpoints of a root on an object store, as two machines see them."""

from __future__ import annotations

from pathlib import Path

from components.pretraining.checkpoint import HISTORY_NAME, CheckpointStore, Progress
from components.pretraining.retention import Retention
from infra.storage import manifest
from infra.storage.mirror import Mirror
from infra.storage.objects import ObjectStore

FACTS = {"num_samples": 8, "world_size": 1, "zero_stage": 1, "precision": "fp32", "config_digest": "digest"}


def store(mirror: Mirror) -> CheckpointStore:
    return CheckpointStore(
        mirror.root / "work" / "pretrain_mlm" / "key" / "checkpoints", "digest", Retention(newest=2), mirror
    )


def saved(mirror: Mirror, step: int) -> Path:
    """A checkpoint as `CheckpointStore.save` leaves it, without an engine."""
    folder = store(mirror).folder / f"step_{step:07d}.0badbeef"
    folder.mkdir(parents=True)
    (folder / HISTORY_NAME).write_text('{"step": 1}\n')
    (folder / "state").write_bytes(bytes(100))
    manifest.write(folder, {"progress": Progress(step=step).model_dump(), **FACTS})
    mirror.push(folder, last=manifest.NAME)
    return folder


def step_of(mirror: Mirror) -> int | None:
    found = store(mirror).newest()
    return found.manifest.progress.step if found else None


def test_another_machine_goes_on_from_the_newest_that_is_whole(s3_uri: str, tmp_path: Path) -> None:
    objects = ObjectStore.open(s3_uri)
    one, other = Mirror(tmp_path / "a", objects), Mirror(tmp_path / "b", objects)
    assert step_of(other) is None
    saved(one, 2)
    newest = saved(one, 4)
    half = saved(one, 6)
    objects.delete(f"{half.relative_to(one.root)}/{manifest.NAME}")  # killed before its manifest went up
    assert step_of(other) == 4
    copy = other.root / newest.relative_to(one.root)
    (copy / "state").write_bytes(b"damaged")
    assert step_of(other) == 4  # fetched again
    objects.write(f"{newest.relative_to(one.root)}/state", bytes([1] * 100))
    (copy / "state").write_bytes(b"damaged")
    assert step_of(other) == 2
    assert not [name for name in objects.sizes("work") if "step_0000004" in name]
