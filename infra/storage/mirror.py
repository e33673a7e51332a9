"""A root on an object store, and the folder of this machine that stands for it.

Steps read and write local files. Where the root is `s3://...`, every machine has a folder with the same layout, and a
`Mirror` moves what others need: finished artifacts, and of a step that is not finished its checkpoints and finished
units. For a root on a file system it does nothing. It is handed to workers with the paths that they work on.

On the object store the files of an artifact lie below the name of the attempt that made them, and its manifest, which
goes up last, says which that is. Digests are compared when files come down; what was found to be damaged is marked, so
that the next plan, which looks at sizes alone, knows it.
"""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from infra.errors import DamagedArtifactError
from infra.storage import manifest
from infra.storage.objects import ObjectStore

ARTIFACTS, WORK = "artifacts", "work"
PREFIX = "prefix"
"""Where in a manifest of an object store the name of the attempt stands, below which the files lie; without one, as in
a root that was copied there, they lie beside it."""
MARK = "damaged-"
"""How the name of the object begins that says what is wrong with the files of an attempt."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Mirror:
    """Moves files between `root`, a folder of this machine, and the object store. Can be pickled."""

    root: Path
    objects: ObjectStore | None = None

    def pull(self, path: Path) -> None:
        """Makes sure that `path` is on this machine; nothing happens where neither side has it.

        Args:
            path: in an artifact, which is then fetched whole; or a folder or file that was pushed; or anything that
                does not lie below `root`, which is left alone.

        Raises:
            DamagedArtifactError: a file of an artifact is not what its manifest says.
            StorageError: the object store does not answer.
        """
        if self.objects is None or not path.is_relative_to(self.root):
            return
        name = self._name(path)
        first, *rest = PurePosixPath(name).parts
        if first == ARTIFACTS:
            self._pull_artifact(self.objects, *rest[:2])
        elif not path.exists():
            self._pull_work(self.objects, path, name)

    def push(self, path: Path, last: str | None = None, only: Sequence[str] | None = None) -> None:
        """Puts a folder or file into the object store.

        Args:
            path: below `root`.
            last: the file of the folder that goes up after all others, and makes them count.
            only: the names of the files that go up, if not all.
        """
        if self.objects is None:
            return
        if path.is_file():
            self.objects.upload(path.parent, [path.name], self._name(path.parent))
            return
        names = [file.relative_to(path).as_posix() for file in sorted(path.rglob("*")) if file.is_file()]
        chosen = [name for name in names if only is None or name in only]
        self.objects.upload(path, [name for name in chosen if name != last], self._name(path))
        if last in chosen:
            self.objects.upload(path, [str(last)], self._name(path))

    def names(self, folder: Path, last: str) -> list[str]:
        """The folders in `folder` that were pushed whole, by name in order: those that have the file `last`."""
        if self.objects is None:
            return sorted(path.parent.name for path in folder.glob(f"*/{last}"))
        parts = [name.split("/") for name in self.objects.sizes(self._name(folder))]
        return sorted(one[0] for one in parts if one[1:] == [last])

    def uri(self, path: Path) -> str:
        """What names `path` on every machine: a URI of the object store, or the path itself."""
        return f"{self.objects.uri}/{self._name(path)}" if self.objects else str(path)

    def drop(self, path: Path, first: str | None = None) -> None:
        """Removes what was pushed; of a folder the file `first` before the rest, which then does not count any more."""
        if self.objects is not None:
            name = self._name(path)
            if self.objects.sizes(name):
                if first:
                    self.objects.delete(f"{name}/{first}")
                self.objects.delete_folder(name)
            else:
                self.objects.delete(name)

    def commit(self, folder: Path, step: str, key: str, written: Mapping[str, Any]) -> None:
        """Makes an artifact visible to all: its files under the name of its attempt, then the manifest. The attempt
        that this one takes the place of goes; what others left is for `gc`, for another cluster may be at it now.

        Args:
            folder: the artifact, its manifest included.
            step: its step.
            key: its key.
            written: the manifest.
        """
        if self.objects is None:
            return
        place, attempt = f"{ARTIFACTS}/{step}/{key}", written[PREFIX]
        before = _attempt(self.objects.read(f"{place}/{manifest.NAME}"))
        self.objects.upload(folder, list(written["files"]), f"{place}/{attempt}")
        self.objects.upload(folder, [manifest.NAME], place)
        for name in self.objects.sizes(place) if before else ():
            if name.startswith(f"{before}/") or name == MARK + str(before):
                self.objects.delete(f"{place}/{name}")

    def find(self, step: str, key: str) -> dict[str, Any] | None:
        """The manifest of a finished artifact in the object store, after a look at every file's size.

        Raises:
            DamagedArtifactError: a file is missing or has another size, or was found to be damaged before.
        """
        assert self.objects is not None
        place = f"{ARTIFACTS}/{step}/{key}"
        data = self.objects.read(f"{place}/{manifest.NAME}")
        if data is None:
            return None
        content = manifest.parse(data, f"{self.objects.uri}/{place}/{manifest.NAME}")
        sizes = self.objects.sizes(place)
        if (mark := MARK + content.get(PREFIX, "")) in sizes:
            raise DamagedArtifactError((self.objects.read(f"{place}/{mark}") or b"").decode())
        for name, entry in content["files"].items():
            file = _below(content) + name
            if sizes.get(file) != entry["num_bytes"]:
                where = f"{self.objects.uri}/{place}/{file}"
                raise DamagedArtifactError(f"{where} is missing or has another size than its manifest says")
        return content

    def manifests(self, folders: Iterable[Path]) -> dict[Path, dict[str, Any] | DamagedArtifactError]:
        """What the manifests say that folders have in the object store, their signatures checked, their files not."""
        assert self.objects is not None
        names = {f"{self._name(folder)}/{manifest.NAME}": folder for folder in folders}
        data = self.objects.read_all(names)
        found: dict[Path, dict[str, Any] | DamagedArtifactError] = {}
        for name, folder in names.items():
            where = f"{self.objects.uri}/{name}"
            try:
                found[folder] = manifest.parse(data.get(name, b""), where)
            except DamagedArtifactError as error:
                found[folder] = error if name in data else DamagedArtifactError(f"{where} is missing")
        return found

    def check(self, folder: Path, content: Mapping[str, Any]) -> Iterator[tuple[int, str | None]]:
        """Compares every object of `folder` with its manifest: its recorded size, and what is wrong with it. An
        artifact that is damaged is marked."""
        assert self.objects is not None
        for name, recorded in content["files"].items():
            file = f"{self._name(folder)}/{_below(content)}{name}"
            digest, damage = self.objects.sha256(file), None
            if digest != recorded["sha256"]:
                state = "is missing" if digest is None else "differs from its manifest (SHA-256)"
                damage = f"{self.objects.uri}/{file} {state}"
                if folder.is_relative_to(self.root / ARTIFACTS):
                    self._mark(folder, content, damage)
            yield recorded["num_bytes"], damage

    def fetch(self, step: str, key: str) -> Path:
        """The folder of an artifact on this machine, whole, after every file was checked by size and digest. A copy
        that is damaged is fetched again.

        Raises:
            DamagedArtifactError: it is damaged or missing, and on the object store too.
        """
        folder = self.root / ARTIFACTS / step / key
        self.pull(folder)
        try:
            manifest.verify(folder)
        except DamagedArtifactError as error:
            if self.objects is None or not folder.exists():
                raise
            logger.warning("a damaged copy is fetched again: %s", error)
            folder.rename(self.root / "temporary" / f"{MARK}{step}-{key}-{uuid.uuid4().hex[:8]}")
            self.pull(folder)
            manifest.verify(folder)
        return folder

    def _pull_artifact(self, objects: ObjectStore, step: str, key: str) -> None:
        folder = self.root / ARTIFACTS / step / key
        with self._alone(f"{step}-{key}"):
            if (folder / manifest.NAME).exists():
                return
            content = self.manifests([folder])[folder]
            if isinstance(content, DamagedArtifactError):
                raise content
            temporary = self.root / "temporary" / f"{step}-{key}-{uuid.uuid4().hex[:8]}"
            place = f"{self._name(folder)}/{_below(content)}".rstrip("/")
            try:
                try:
                    objects.download(place, content["files"], temporary)
                except DamagedArtifactError:  # perhaps on its way
                    objects.download(place, content["files"], temporary)
                manifest.write(temporary, content, content["files"])
                folder.parent.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(folder, ignore_errors=True)  # one without a manifest
                temporary.rename(folder)
            except DamagedArtifactError as error:
                self._mark(folder, content, str(error))
                raise
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def _mark(self, folder: Path, content: Mapping[str, Any], damage: str) -> None:
        assert self.objects is not None
        self.objects.write(f"{self._name(folder)}/{MARK}{content.get(PREFIX, '')}", damage.encode("utf-8"))

    def _pull_work(self, objects: ObjectStore, path: Path, name: str) -> None:
        with self._alone(name.replace("/", "-")):
            files = list(objects.sizes(name))
            if path.exists():
                return
            temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
            path.parent.mkdir(parents=True, exist_ok=True)
            if files:
                objects.download(name, dict.fromkeys(files), temporary)
            elif (data := objects.read(name)) is not None:
                temporary.write_bytes(data)
            else:
                return
            temporary.rename(path)

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Of several processes of a machine that want the same, one fetches it and the others wait."""
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{name}.fetch").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _attempt(data: bytes | None) -> str | None:
    """The attempt that a manifest, sound or not, names."""
    try:
        named = json.loads(data or b"").get(PREFIX)
    except (ValueError, AttributeError, RecursionError):
        return None
    return named if isinstance(named, str) and named else None


def _below(content: Mapping[str, Any]) -> str:
    """How the names of an artifact's files begin, in its folder on the object store."""
    return f"{content[PREFIX]}/" if PREFIX in content else ""
