"""ROOT: where artifacts lie, how one is begun, and how it becomes visible with one rename.

ROOT/artifacts/<step>/<key>/   finished, with manifest.json
ROOT/units/<kind>/             units of work inside steps, kept by content; see `units.py`
ROOT/work/<step>/<key>/        checkpoints and finished units of a step that is not finished; later those on record
ROOT/temporary/                outputs of attempts; rubbish after a kill, removed by the next attempt or `gc`
ROOT/accepted/ runs/           one file each
ROOT/locks/ spool/ tracking/   one file each

A root on an object store has the first three and `accepted/` and `runs/` there, and a folder of this machine stands for
it that has all of them: what was fetched or is to be uploaded, and what is of this machine alone.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from infra.errors import DamagedArtifactError, UserError
from infra.storage import manifest
from infra.storage.files import fsync, storage_error, write_atomic, write_json
from infra.storage.mirror import MARK, PREFIX, Mirror
from infra.storage.objects import SCHEMES, ObjectStore
from infra.storage.work import clear

DAMAGED, REMOVED = MARK, "removed-"
"""How the names begin, under temporary/, of what cannot be trusted and of what is being deleted."""
logger = logging.getLogger(__name__)
COPIES = Path("~/.cache/fromzero")
"""Where the folders lie that stand for roots on object stores, if nobody says where."""
FOLDERS = ("artifacts", "work", "temporary", "locks", "runs", "spool")
FIELDS: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("step", "key", "made_by_run"), str),
    **dict.fromkeys(("identity", "inputs", "raw", "metrics", "measured"), dict),
    "records": list,
    "finished_at": (int, float),
}
"""What the manifest of every artifact has."""
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_KEY = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Store:
    """Artifacts under one root, on a local or shared file system or on an object store."""

    root: Path
    """The root; of one on an object store, the folder of this machine that stands for it."""
    objects: ObjectStore | None = None

    @classmethod
    def open(cls, root: str, local: str | None = None, *, writes: bool = True) -> Store:
        """The store at `root`, its folders made.

        Args:
            root: a folder, or a URI of an object store.
            local: the folder of this machine that stands for a root on an object store.
            writes: False for who only looks: a folder is neither made nor tried.

        Raises:
            UserError: `root` is not a folder that can be written, or no bucket; or `local` stands for another root.
            StorageError: the object store does not answer.
        """
        if wrong := sorted(set((local or "") if is_uri(root) else root) & set("%?#")):
            key = "storage.local" if is_uri(root) else "storage.root"
            raise UserError(
                f"{key}: {local or root} holds {' '.join(wrong)}, which means something else in a URI; rename"
            )
        if local is not None and not is_uri(root):
            raise UserError(f"storage.local={local}: only for a root on an object store, and {root} is a folder")
        objects = ObjectStore.open(root) if is_uri(root) else None
        path = folder_of(root, local)
        store = cls(root=path, objects=objects)
        try:
            if not writes and not objects and (path.is_dir() or not path.exists()):
                return store
            if objects:
                _claim(path, objects.uri)
            store.make_folders()
            probe = path / "temporary" / f".probe-{uuid.uuid4().hex[:8]}"
            probe.write_bytes(b"fromzero")
            probe.unlink(missing_ok=True)  # a gc may have taken it
        except (FileExistsError, NotADirectoryError) as error:
            key = "storage.local" if objects else "storage.root"
            raise UserError(f"{key}: {path} is not a folder, or lies below a file") from error
        except OSError as error:
            raise storage_error(error, path) from error
        return store

    def make_folders(self) -> None:
        """Makes what is missing of the folders on this machine."""
        for name in FOLDERS:
            (self.root / name).mkdir(parents=True, exist_ok=True)

    @property
    def mirror(self) -> Mirror:
        """Moves files between this machine and the object store; does nothing for a root on a file system."""
        return Mirror(self.root, self.objects)

    @property
    def uri(self) -> str:
        """What the root is called on every machine: the URI, or the folder."""
        return self.objects.uri if self.objects else str(self.root)

    def is_at(self, uri: str) -> bool:
        """Whether `uri` is another name of this root."""
        return uri == self.uri if self.objects else Path(uri).resolve() == self.root.resolve()

    def artifact_uri(self, step: str, key: str) -> str:
        """What an artifact is called on every machine."""
        folder = self.artifact_folder(step, key)
        return self.mirror.uri(folder) if self.objects else folder.as_uri()

    def artifact_folder(self, step: str, key: str) -> Path:
        """Where the finished artifact is or will be."""
        return self.root / "artifacts" / _checked(step, _NAME) / _checked(key, _KEY)

    def work_folder(self, step: str, key: str) -> Path:
        """What outlives a kill, made if it is not there."""
        folder = self.root / "work" / _checked(step, _NAME) / _checked(key, _KEY)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def find(self, step: str, key: str) -> dict[str, Any] | None:
        """The verified manifest of a finished artifact, or None where there is none. On an object store the files are
        not read: their sizes are compared, and the digests when they are fetched.

        Raises:
            DamagedArtifactError: there is one, and its files do not match.
        """
        folder = self.artifact_folder(step, key)
        if self.objects:
            found = self.mirror.find(step, key)
        elif folder.exists():
            found = manifest.verify(folder)
        else:
            return None
        return _belonging(folder, found) if found else None

    def fetch(self, step: str, key: str) -> Path:
        """The folder of a finished artifact, on this machine and verified.

        Raises:
            DamagedArtifactError: it is damaged or missing.
        """
        return self.mirror.fetch(_checked(step, _NAME), _checked(key, _KEY))

    def manifest(self, step: str, key: str) -> dict[str, Any] | None:
        """The manifest of one artifact, its files not checked; None where there is none that can be read."""
        ((_, found),) = self.read_manifests([self.artifact_folder(step, key)])
        return None if isinstance(found, DamagedArtifactError) else found

    def places(self, kind: Literal["artifacts", "work"], step: str = "*") -> list[Path]:
        """The folders of all artifacts, or of all unfinished work, in order; of those on an object store, where they
        are or would be on this machine. What is not named as an artifact is somebody else's."""
        if self.objects is None:
            return self.copies(kind, step)
        below = kind if step == "*" else f"{kind}/{step}"
        names = [PurePosixPath(below, name).parts for name in self.objects.sizes(below)]
        return sorted(
            {place for parts in names if len(parts) > 3 and _is_place(place := self.root.joinpath(*parts[:3]))}
        )

    def files(self, folder: str) -> list[Path]:
        """All files below a folder of the root; of one on an object store, where they are or would be."""
        base = self.root / folder
        if self.objects:
            return [base / name for name in self.objects.sizes(folder)]
        return [path for path in base.rglob("*") if path.is_file()]

    def copies(self, kind: Literal["artifacts", "work"], step: str = "*") -> list[Path]:
        """Those of `places` that are on this machine."""
        return sorted(path for path in (self.root / kind).glob(f"{step}/*") if _is_place(path) and path.is_dir())

    def read_manifests(self, folders: Iterable[Path]) -> list[tuple[Path, dict[str, Any] | DamagedArtifactError]]:
        """The manifest of each folder, its files not checked, or what is wrong with it."""
        if self.objects:
            found = list(self.mirror.manifests(folders).items())
        else:
            found = [(folder, _caught(manifest.read, folder)) for folder in folders]
        artifacts = self.root / "artifacts"
        return [
            (folder, one if isinstance(one, Exception) else _caught(_belonging, folder, one))
            if folder.parents[1] == artifacts
            else (folder, one)
            for folder, one in found
        ]

    def check(self, folder: Path, content: Mapping[str, Any]) -> Iterator[tuple[int, str | None]]:
        """Compares every file of `folder` with its manifest: its recorded size in bytes, and what is wrong with it."""
        return self.mirror.check(folder, content) if self.objects else manifest.check(folder, content)

    def read_all(self, folder: str) -> dict[str, bytes]:
        """The small files below a folder of the root, by name."""
        if self.objects:
            found = self.objects.read_all(f"{folder}/{name}" for name in self.objects.sizes(folder))
            return {name.removeprefix(f"{folder}/"): data for name, data in found.items()}
        base = self.root / folder
        return {path.relative_to(base).as_posix(): path.read_bytes() for path in base.rglob("*.json") if path.is_file()}

    def read(self, name: str) -> bytes | None:
        """A small file of the root; None where it is not there, or cannot be read."""
        if self.objects:
            return self.objects.read(name)
        try:
            return (self.root / name).read_bytes()
        except OSError:
            return None

    def write(self, name: str, value: Any) -> None:
        """Writes a small file of the root as JSON, whole or not at all."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value)
        self.mirror.push(path)

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

    def manifests(self, step: str = "*") -> Iterator[dict[str, Any]]:
        """Readable manifests of all artifacts of `step`, or of all steps, newest first; damaged ones are passed over
        with a warning."""
        found = []
        for _, content in self.read_manifests(self.places("artifacts", step)):
            if isinstance(content, DamagedArtifactError):
                logger.warning("%s", content)
            else:
                found.append(content)
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
        attempt = {PREFIX: uuid.uuid4().hex[:8]} if self.objects else {}
        written = manifest.write(temporary, {**content, **attempt})
        for path in temporary.rglob("*"):
            fsync(path)
        fsync(temporary)
        self.mirror.commit(temporary, step, key, written)
        target.parent.mkdir(parents=True, exist_ok=True)
        self.set_aside(step, key)
        temporary.rename(target)
        fsync(target.parent)
        clear(self.mirror, self.root / "work" / step / key, content.get("records", ()))
        return written

    def set_aside(self, step: str, key: str) -> Path | None:
        """Moves an artifact that cannot be trusted out of the way; returns its new place."""
        folder = self.artifact_folder(step, key)
        if not os.path.lexists(folder):  # a link that leads nowhere is in the way too
            return None
        aside = self.root / "temporary" / f"{DAMAGED}{step}-{key}-{uuid.uuid4().hex[:8]}"
        folder.rename(aside)
        return aside

    def object_sizes(self) -> Mapping[Path, int]:
        """Bytes on the object store by file and folder, as if they lay on this machine; none of a file system."""
        sizes: Counter[Path] = Counter()
        for name, num_bytes in (self.objects.sizes("") if self.objects else {}).items():
            path = self.root / name
            for place in (path, *path.parents[: len(path.parts) - len(self.root.parts)]):
                sizes[place] += num_bytes
        return sizes

    def leftovers(self, manifests: Mapping[str, Mapping[str, Any]]) -> list[Path]:
        """What lies on an object store beside the files of finished artifacts: uploads that were killed.

        Args:
            manifests: of all artifacts by key.
        """
        parts = [PurePosixPath(name).parts for name in (self.objects.sizes("artifacts") if self.objects else ())]
        found = {one[:3] for one in parts if len(one) > 2 and one[2] != manifest.NAME}
        copied = {key for key, content in manifests.items() if PREFIX not in content}
        found = {one for one in found if one[1] not in copied}
        sound = {(key, content.get(PREFIX)) for key, content in manifests.items()}
        marks = {(key, f"{MARK}{prefix}") for key, prefix in sound}
        return sorted(self.root.joinpath("artifacts", *one) for one in found if (one[1], one[2]) not in sound | marks)

    def remove(self, path: Path) -> None:
        """Deletes a folder or file under the root; one that is half deleted never lies where a whole one is looked for.

        Raises:
            StorageError: it cannot be deleted.
        """
        temporary = self.root / "temporary"
        if self.objects and path.is_relative_to(self.root) and path.parent != temporary:
            self.mirror.drop(path, manifest.NAME)
            if not path.exists():
                return
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


def is_uri(root: str) -> bool:
    """Whether a root lies, or is meant to lie, on an object store."""
    return "://" in root or root.startswith(tuple(f"{scheme}:" for scheme in SCHEMES))


def folder_of(root: str, local: str | None = None) -> Path:
    """The root's folder on this machine; see `Store.open`."""
    if is_uri(root):
        name = hashlib.sha256(root.rstrip("/").encode()).hexdigest()[:16]
        return (Path(local) if local else COPIES / name).expanduser().resolve()
    return Path(root).expanduser().absolute()


def _caught(read: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any] | DamagedArtifactError:
    try:
        return read(*arguments)
    except DamagedArtifactError as error:
        return error


def _is_place(path: Path) -> bool:
    """Whether it is named `STEP/KEY`."""
    return bool(_NAME.fullmatch(path.parent.name) and _KEY.fullmatch(path.name))


def _belonging(folder: Path, content: dict[str, Any]) -> dict[str, Any]:
    """The manifest of the artifact in `folder`.

    Raises:
        DamagedArtifactError: it is that of another one, or not of an artifact at all.
    """
    place = f"{folder}/{manifest.NAME}"
    for name, types in FIELDS.items():
        if not isinstance(content.get(name), types):
            raise DamagedArtifactError(f"{place} is damaged: it has no {name}")
    if (content["step"], content["key"]) != (folder.parent.name, folder.name):
        raise DamagedArtifactError(f"{place} is that of {content['step']}/{content['key']}")
    return content


def _claim(path: Path, uri: str) -> None:
    """Makes the folder `path` stand for the root `uri`, and for no other."""
    name = path / "stands_for"
    if (path / "artifacts").exists() and not name.exists():
        raise UserError(f"storage.local: {path} is a root of its own; choose another folder with storage.local=")
    path.mkdir(parents=True, exist_ok=True)
    if not name.exists():
        write_atomic(name, uri.encode("utf-8"))
    if (other := name.read_text("utf-8")) != uri:
        raise UserError(f"storage.local: {path} stands for {other}; choose another folder with storage.local=")


def _checked(name: str, pattern: re.Pattern[str]) -> str:
    """`name`, which becomes a path.

    Raises:
        UserError: it is not of the allowed form.
    """
    if not pattern.fullmatch(name):
        raise UserError(f"{name!r} is not a valid name here; allowed: {pattern.pattern}")
    return name
