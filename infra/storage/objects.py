"""A prefix of an object store (`s3://bucket/prefix`, `gs://bucket/prefix`), through pyarrow.fs.

Objects appear whole or not at all, nothing can be renamed, and what was listed may be gone: so files go up first, and
the one object that makes them count goes last. Credentials and endpoints come from the environment
(`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL` ...), never from the URI. pyarrow would pack and unpack what is called `.gz`,
so it is told not to.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from infra.errors import DamagedArtifactError, StorageError, UserError
from infra.storage.files import sha256

SCHEMES = ("s3", "gs")
COPY_BYTES = 8 * 1024 * 1024
Result = TypeVar("Result")
Seen = list[int | str]
"""What an object store says of an object: bytes, time of the last change, ETag. Another content, other words."""
NUM_TRANSFERS = 8
"""Files that go up or down at the same time."""


@dataclass(frozen=True, slots=True)
class ObjectStore:
    """Objects below one URI; names are relative, with `/`. Can be pickled."""

    uri: str

    where: str = "storage.root"
    """The config key that names the URI, for messages."""

    @classmethod
    def open(cls, uri: str, where: str = "storage.root") -> ObjectStore:
        """The objects below `uri`, after a look at whether the bucket is there.

        Raises:
            UserError: another scheme, no such bucket, a secret in the URI.
            StorageError: the store does not answer.
        """
        from pyarrow.fs import FileType

        scheme, _, rest = uri.partition("://")
        if "@" in rest or "?" in rest:
            raise UserError(f"{where}: no credentials or options in the URI; set them in the environment")
        bucket = rest.partition("/")[0]
        if scheme not in SCHEMES or not bucket:
            raise UserError(f"{where}: {uri} is not s3://BUCKET/PREFIX or gs://BUCKET/PREFIX")
        store = cls(f"{scheme}://{rest.rstrip('/')}", where)
        filesystem, _ = store._connect()
        with store._told(""):
            is_there = filesystem.get_file_info(bucket).type != FileType.NotFound
        if not is_there:
            raise store._no_bucket()
        return store

    def read(self, name: str) -> bytes | None:
        """The bytes of an object; None where it is not there."""
        filesystem, base = self._connect()
        with self._told(name):
            try:
                with filesystem.open_input_stream(f"{base}/{name}", compression=None) as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

    def read_all(self, names: Iterable[str]) -> dict[str, bytes]:
        """The bytes of those of the objects `names` that are there."""
        names = list(names)
        found = zip(names, in_parallel(self.read, names), strict=True)
        return {name: data for name, data in found if data is not None}

    def sha256(self, name: str) -> str | None:
        """SHA-256 of an object's bytes, which are kept nowhere; None where it is not there."""
        filesystem, base = self._connect()
        digest = hashlib.sha256()
        with self._told(name):
            try:
                with filesystem.open_input_stream(f"{base}/{name}", compression=None) as stream:
                    while chunk := stream.read(COPY_BYTES):
                        digest.update(chunk)
            except FileNotFoundError:
                return None
        return digest.hexdigest()

    def write(self, name: str, data: bytes) -> None:
        """Writes an object."""
        filesystem, base = self._connect()
        with self._told(name), filesystem.open_output_stream(f"{base}/{name}", compression=None) as stream:
            stream.write(data)

    def look(self, name: str) -> Seen | None:
        """What the store says of an object; None where it is not there."""
        filesystem, base = self._connect()
        with self._told(name):
            try:
                with filesystem.open_input_file(f"{base}/{name}") as stream:
                    facts = {key.lower(): value.decode() for key, value in (stream.metadata() or {}).items()}
                    num_bytes = stream.size()
            except FileNotFoundError:
                return None
        return [int(num_bytes), facts.get("last-modified", facts.get("updated", "")), facts.get("etag", "")]

    @contextlib.contextmanager
    def open_seekable(self, name: str) -> Iterator[Any]:
        """An object to read parts of.

        Raises:
            FileNotFoundError: it is not there.
        """
        filesystem, base = self._connect()
        with self._told(name), filesystem.open_input_file(f"{base}/{name}") as stream:
            yield stream

    def sizes(self, prefix: str) -> dict[str, int]:
        """Bytes of every object below the folder `prefix`, by name relative to it."""
        from pyarrow.fs import FileSelector, FileType

        filesystem, base = self._connect()
        folder = f"{base}/{prefix}".rstrip("/")
        with self._told(prefix):
            found = filesystem.get_file_info(FileSelector(folder, recursive=True, allow_not_found=True))
        start = len(folder) + 1
        return {info.path[start:]: int(info.size) for info in found if info.type == FileType.File}

    def upload(self, folder: Path, names: list[str], prefix: str) -> None:
        """Writes the files `names` of `folder` below `prefix`."""
        filesystem, base = self._connect()

        def put(name: str) -> None:
            with (
                self._told(f"{prefix}/{name}"),
                (folder / name).open("rb") as source,
                filesystem.open_output_stream(f"{base}/{prefix}/{name}", compression=None) as target,
            ):
                shutil.copyfileobj(source, target, COPY_BYTES)

        in_parallel(put, names)

    def download(self, prefix: str, files: Mapping[str, Mapping[str, Any] | None], folder: Path) -> None:
        """Reads objects below `prefix` into `folder`, each compared with its entry of a manifest, if it has one.

        Raises:
            DamagedArtifactError: one is missing or not what was written.
        """
        filesystem, base = self._connect()

        def get(name: str) -> None:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            place = f"{prefix}/{name}".lstrip("/")
            with self._told(place):
                try:
                    with (
                        filesystem.open_input_stream(f"{base}/{place}", compression=None) as source,
                        target.open("wb") as stream,
                    ):
                        shutil.copyfileobj(source, stream, COPY_BYTES)
                except FileNotFoundError as error:
                    raise DamagedArtifactError(f"{self.uri}/{place} is missing") from error
            entry = files[name]
            if entry and sha256(target) != entry["sha256"]:
                raise DamagedArtifactError(f"{self.uri}/{place} differs from its manifest (SHA-256)")

        in_parallel(get, list(files))

    def delete(self, name: str) -> None:
        """Removes an object; nothing happens where there is none."""
        filesystem, base = self._connect()
        with self._told(name), contextlib.suppress(FileNotFoundError):
            filesystem.delete_file(f"{base}/{name}")

    def delete_folder(self, prefix: str) -> None:
        """Removes every object below `prefix`."""
        filesystem, base = self._connect()
        with self._told(prefix), contextlib.suppress(FileNotFoundError):
            filesystem.delete_dir_contents(f"{base}/{prefix}", missing_dir_ok=True)
            filesystem.delete_file(f"{base}/{prefix}/")

    def _connect(self) -> tuple[Any, str]:
        with self._told(""):
            return _connected(self.uri, os.environ.get("AWS_ENDPOINT_URL"), os.environ.get("AWS_ACCESS_KEY_ID"))

    @contextlib.contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """What the store says, as our own error."""
        try:
            yield
        except (StorageError, FileNotFoundError):
            raise
        except OSError as error:
            what = str(error).splitlines()[0]
            if "NO_SUCH_BUCKET" in what or "NoSuchBucket" in what:
                raise self._no_bucket() from error
            place = f"{self.uri}/{name}".rstrip("/")
            raise StorageError(
                f"{place}: {what}; see that the environment's endpoint and credentials lead there, then run again"
            ) from error

    def _no_bucket(self) -> UserError:
        return UserError(f"{self.where}: the bucket of {self.uri} does not exist; make it first")


@functools.lru_cache(maxsize=8)
def _connected(uri: str, endpoint: str | None, user: str | None) -> tuple[Any, str]:
    """pyarrow's file system and the path of `uri` in it. To make one asks AWS for the bucket's region, so it is kept
    while the environment names the same endpoint and user."""
    from pyarrow.fs import FileSystem

    filesystem, base = FileSystem.from_uri(uri)
    return filesystem, base


def in_parallel(do: Callable[[str], Result], names: Sequence[str]) -> list[Result]:
    """What `do` returns for every name, several at a time; raises the first error."""
    with ThreadPoolExecutor(min(NUM_TRANSFERS, max(1, len(names)))) as pool:
        return [done.result() for done in [pool.submit(do, name) for name in names]]
