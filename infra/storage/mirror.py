"""A root on an object store, and the folder of this machine that stands for it.

Steps read and write local files. Where the root is `s3://...`, every machine has a folder with the same layout, and a
`Mirror` moves what others need: finished artifacts, and of a step that is not finished its checkpoints and finished
units. For a root on a file system it does nothing. It is handed to workers with the paths that they work on.
"""

from __future__ import annotations

import fcntl
import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from infra.errors import DamagedArtifactError
from infra.storage import manifest
from infra.storage.objects import ObjectStore

ARTIFACTS = "artifacts"
PREFIX = "prefix"
"""Where in a manifest of an object store the name of the attempt stands, below which the files lie."""


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
            self._pull_artifact(*rest[:2])
        elif not path.exists():
            self._pull_work(path, name)

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
            if first:
                self.objects.delete(f"{self._name(path)}/{first}")
            self.objects.delete_folder(self._name(path))
            self.objects.delete(self._name(path))

    def commit(self, folder: Path, step: str, key: str, written: dict[str, Any]) -> None:
        """Makes an artifact visible to all: its files under a name of this attempt, then the manifest.

        Args:
            folder: the artifact, its manifest included.
            step: its step.
            key: its key.
            written: the manifest.
        """
        if self.objects is None:
            return
        place, attempt = f"{ARTIFACTS}/{step}/{key}", uuid.uuid4().hex[:8]
        self.objects.upload(folder, list(written["files"]), f"{place}/{attempt}")
        content = manifest.sealed({**written, PREFIX: attempt})
        self.objects.write(f"{place}/{manifest.NAME}", json.dumps(content).encode("utf-8"))
        for name in self.objects.sizes(place):  # of attempts that were killed or damaged
            if name != manifest.NAME and not name.startswith(f"{attempt}/"):
                self.objects.delete(f"{place}/{name}")

    def find(self, step: str, key: str) -> dict[str, Any] | None:
        """The manifest of a finished artifact in the object store, after a look at every file's size.

        Raises:
            DamagedArtifactError: a file is missing or has another size.
        """
        content = self.manifest(step, key)
        if content is None:
            return None
        place = f"{ARTIFACTS}/{step}/{key}/{content[PREFIX]}"
        assert self.objects is not None
        sizes = self.objects.sizes(place)
        for name, entry in content["files"].items():
            if sizes.get(name) != entry["num_bytes"]:
                where = f"{self.objects.uri}/{place}/{name}"
                raise DamagedArtifactError(f"{where} is missing or has another size than its manifest says")
        return content

    def manifest(self, step: str, key: str) -> dict[str, Any] | None:
        """The manifest of an artifact in the object store, its signature checked, its files not."""
        assert self.objects is not None
        data = self.objects.read(f"{ARTIFACTS}/{step}/{key}/{manifest.NAME}")
        return None if data is None else manifest.parse(data, f"{self.objects.uri}/{ARTIFACTS}/{step}/{key}")

    def keys(self, step: str | None = None) -> list[tuple[str, str]]:
        """(step, key) of every artifact in the object store."""
        assert self.objects is not None
        parts = [name.split("/") for name in self.objects.sizes(ARTIFACTS)]
        found = [(one[0], one[1]) for one in parts if len(one) == 3 and one[2] == manifest.NAME]
        return sorted(pair for pair in found if step in (None, pair[0]))

    def _pull_artifact(self, step: str, key: str) -> None:
        folder = self.root / ARTIFACTS / step / key
        with self._alone(f"{step}-{key}"):
            if (folder / manifest.NAME).exists():
                return
            content = self.manifest(step, key)
            if content is None:
                return
            temporary = self.root / "temporary" / f"{step}-{key}-{uuid.uuid4().hex[:8]}"
            assert self.objects is not None
            self.objects.download(f"{ARTIFACTS}/{step}/{key}/{content[PREFIX]}", content["files"], temporary)
            manifest.write(temporary, content, content["files"])
            folder.parent.mkdir(parents=True, exist_ok=True)
            temporary.rename(folder)

    def _pull_work(self, path: Path, name: str) -> None:
        assert self.objects is not None
        with self._alone(name.replace("/", "-")):
            files = list(self.objects.sizes(name))
            if path.exists():
                return
            temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
            path.parent.mkdir(parents=True, exist_ok=True)
            if files:
                self.objects.download(name, dict.fromkeys(files), temporary)
            elif (data := self.objects.read(name)) is not None:
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
