"""ROOT: where artifacts lie, how one is begun, and how it becomes visible with one rename.

ROOT/artifacts/<step>/<key>/   finished, with manifest.json
ROOT/work/<step>/<key>/        checkpoints and finished units of a step that is not finished
ROOT/temporary/                outputs of attempts; rubbish after a kill, removed by the next attempt or `gc`
ROOT/locks/ runs/ spool/       one file each
"""

from __future__ import annotations

import logging
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.errors import DamagedArtifactError, UserError
from infra.storage import manifest
from infra.storage.files import fsync, storage_error

DAMAGED, REMOVED = "damaged-", "removed-"
"""How the names begin, under temporary/, of what cannot be trusted and of what is being deleted."""
logger = logging.getLogger(__name__)
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_KEY = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Store:
    """Artifacts under one root folder on a local or shared file system."""

    root: Path

    @classmethod
    def open(cls, root: str) -> Store:
        """The store at `root`, its folders made.

        Raises:
            UserError: `root` is not a folder that can be written.
        """
        if "://" in root:
            raise UserError(f"storage.root: {root} is not a local or mounted folder; object stores are not written yet")
        path = Path(root).expanduser().absolute()
        store = cls(root=path)
        try:
            for name in ("artifacts", "work", "temporary", "locks", "runs", "spool"):
                (path / name).mkdir(parents=True, exist_ok=True)
            probe = path / "temporary" / f".probe-{uuid.uuid4().hex[:8]}"
            probe.write_bytes(b"fromzero")
            probe.unlink()
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(f"storage.root: {path} is not a folder, or lies below a file") from error
        except OSError as error:
            raise storage_error(error, path) from error
        return store

    def artifact_folder(self, step: str, key: str) -> Path:
        """Where the finished artifact is or will be."""
        return self.root / "artifacts" / _checked(step, _NAME) / _checked(key, _KEY)

    def work_folder(self, step: str, key: str) -> Path:
        """What outlives a kill, made if it is not there."""
        folder = self.root / "work" / _checked(step, _NAME) / _checked(key, _KEY)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def find(self, step: str, key: str) -> dict[str, Any] | None:
        """The verified manifest of a finished artifact, or None where there is none.

        Raises:
            DamagedArtifactError: there is one, and its files do not match.
        """
        folder = self.artifact_folder(step, key)
        return manifest.verify(folder) if folder.exists() else None

    def manifest(self, step: str, key: str) -> dict[str, Any] | None:
        """The manifest of one artifact, its files not checked; None where there is none that can be read."""
        try:
            return manifest.read(self.artifact_folder(step, key))
        except DamagedArtifactError:
            return None

    def with_ancestors(self, manifests: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """`manifests` and those of all that they were made from, each once, as far as they are here.

        A run's own steps are not enough: what a frozen or accepted step was made from is no part of the run.
        """
        found: dict[tuple[str, str], Mapping[str, Any]] = {}
        waiting = list(manifests)
        while waiting:
            one = waiting.pop(0)
            if (one["step"], one["key"]) in found:
                continue
            found[one["step"], one["key"]] = one
            parents = (self.manifest(parent["step"], parent["key"]) for parent in one["inputs"].values())
            waiting += [parent for parent in parents if parent is not None]
        return list(found.values())

    def manifests(self, step: str) -> Iterator[dict[str, Any]]:
        """Readable manifests of all artifacts of `step`, newest first; damaged ones are passed over with a warning."""
        found = []
        for folder in (self.root / "artifacts" / step).glob("*"):
            try:
                found.append(manifest.read(folder))
            except DamagedArtifactError as error:
                logger.warning("%s", error)
        yield from sorted(found, key=lambda content: str(content.get("finished_at")), reverse=True)

    def begin(self, step: str, key: str) -> Path:
        """A new empty folder for one attempt; rubbish of earlier attempts at this key goes."""
        prefix = f"{_checked(step, _NAME)}-{_checked(key, _KEY)}-"
        for old in (self.root / "temporary").glob(prefix + "*"):
            shutil.rmtree(old, ignore_errors=True)
        folder = self.root / "temporary" / f"{prefix}{uuid.uuid4().hex[:8]}"
        folder.mkdir()
        return folder

    def commit(self, temporary: Path, step: str, key: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the manifest last, syncs, and makes the artifact visible with one rename. Returns the manifest.

        A damaged folder in its place is set aside under `temporary/`.
        """
        target = self.artifact_folder(step, key)
        written = manifest.write(temporary, content)
        for path in temporary.rglob("*"):
            fsync(path)
        fsync(temporary)
        target.parent.mkdir(parents=True, exist_ok=True)
        self.set_aside(step, key)
        temporary.rename(target)
        fsync(target.parent)
        shutil.rmtree(self.root / "work" / step / key, ignore_errors=True)
        return written

    def set_aside(self, step: str, key: str) -> Path | None:
        """Moves an artifact that cannot be trusted out of the way; returns its new place."""
        folder = self.artifact_folder(step, key)
        if not folder.exists():
            return None
        aside = self.root / "temporary" / f"{DAMAGED}{step}-{key}-{uuid.uuid4().hex[:8]}"
        folder.rename(aside)
        return aside

    def remove(self, path: Path) -> None:
        """Deletes a folder or file under the root; one that is half deleted never lies where a whole one is looked for.

        Raises:
            StorageError: it cannot be deleted.
        """
        temporary = self.root / "temporary"
        try:
            if path.parent != temporary:
                aside = temporary / f"{REMOVED}{path.parent.name}-{path.name}-{uuid.uuid4().hex[:8]}"
                path.rename(aside)
                fsync(path.parent)
                path = aside
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        except OSError as error:
            raise storage_error(error, path) from error


def _checked(name: str, pattern: re.Pattern[str]) -> str:
    """`name`, which becomes a path.

    Raises:
        UserError: it is not of the allowed form.
    """
    if not pattern.fullmatch(name):
        raise UserError(f"{name!r} is not a valid name here; allowed: {pattern.pattern}")
    return name
