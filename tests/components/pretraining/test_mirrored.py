"""Checkpoints of a root on an object store, as two machines see them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from components.pretraining.checkpoints.checkpoint import HISTORY_NAME, CheckpointStore, Progress
from components.pretraining.checkpoints.retention import Retention
from components.pretraining.health.failures import FAILURE_NAME, forget_old_copies, is_there
from infra.journal.step import STOP_NAME
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


def test_a_copy_that_has_the_files_of_one_machine_alone_is_fetched_whole(s3_uri: str, tmp_path: Path) -> None:
    objects = ObjectStore.open(s3_uri)
    one, other = Mirror(tmp_path / "a", objects), Mirror(tmp_path / "b", objects)
    newest = saved(one, 2)
    copy = other.root / newest.relative_to(one.root)
    copy.mkdir(parents=True)
    (copy / "state").write_bytes(bytes(100))  # what its own ranks wrote
    assert store(other).fetch(copy).manifest.progress.step == 2
    (copy / HISTORY_NAME).unlink()  # when rank 0 was here the manifest was too
    assert store(other).fetch(copy).history == ({"step": 1},)


def test_what_an_earlier_run_was_told_does_not_count(s3_uri: str, tmp_path: Path) -> None:
    """The driver has removed it from its own disk and the object store, not from the disk of another machine."""
    mirror = Mirror(tmp_path / "a", ObjectStore.open(s3_uri))
    job = SimpleNamespace(mirror=mirror, work=mirror.root / "work" / "pretrain_mlm" / "key")
    job.work.mkdir(parents=True)
    for name in (STOP_NAME, FAILURE_NAME):
        (job.work / name).write_text("{}")
    forget_old_copies(job)
    assert not is_there(job, STOP_NAME) and not is_there(job, FAILURE_NAME)
    mirror.objects.write(f"work/pretrain_mlm/key/{STOP_NAME}", b"{}")  # type: ignore[union-attr]
    assert is_there(job, STOP_NAME)


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
