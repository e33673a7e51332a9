"""Raw files on object stores: what a URI, folder or glob names, what it holds, and the copy that a machine reads.

A plan reads a file once, for its digest, and keeps nothing of it; later it asks for size, time and ETag alone. Who
reads the rows has the file fetched into `ROOT/cache/raw/`, once a machine, and compared with the digest.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from infra.errors import DamagedArtifactError, DataError, UserError
from infra.storage import web
from infra.storage.digests import DigestCache
from infra.storage.files import sha256
from infra.storage.objects import ObjectStore, Seen, in_parallel
from infra.storage.walk import is_glob, matches, of_datasets, shown


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFile:
    """One object."""

    uri: str
    num_bytes: int
    digest: str
    """SHA-256 of its bytes, 64 hex characters."""


def find(
    pattern: str, where: str, is_wanted: Callable[[str], bool], digests: DigestCache | None = None
) -> tuple[list[RemoteFile], bool]:
    """The objects that `pattern` names, ordered by URI, and whether it is a folder.

    Args:
        pattern: URI of an object, a folder or a glob (`*` within a folder, `**` over folders), or of one file of the
            web.
        where: the config key, for messages.
        is_wanted: whether an object of a folder counts, by its name.
        digests: known digests; without them every object is read.

    Raises:
        UserError: another scheme, no such bucket, a secret in the URI.
        StorageError: the object store does not answer, or does not let us read.
    """
    if pattern.startswith(web.SCHEMES):
        seen = web.look(pattern, where)
        return [_known_or_read(pattern, seen, where, digests)], False
    scheme, _, rest = pattern.partition("://")
    bucket, _, name = rest.partition("/")
    objects = ObjectStore.open(f"{scheme}://{bucket}", where)
    name, is_folder = name.strip("/"), False
    names = [name] if name and objects.look(name) else []
    if not names:
        below = {one: f"{name}/{one}".lstrip("/") for one in objects.sizes(name)} if not is_glob(name) else {}
        is_folder = bool(below)
        names = [below[one] for one in of_datasets(below, lambda one: objects.read(below[one])) if is_wanted(one)]
    if not names and is_glob(name):
        fixed = "/".join(name.split("/")[: next(i for i, part in enumerate(name.split("/")) if is_glob(part))])
        listed = (f"{fixed}/{one}".lstrip("/") for one in objects.sizes(fixed))
        names = [one for one in listed if matches(one.split("/"), name.split("/"))]
    return _with_digests(objects, sorted(names), digests), is_folder


def fetch(uri: str, digest: str, target: Path, locks: Path) -> None:
    """Makes sure that `target` is a sound copy of an object or of a file of the web.

    A copy is compared with the digest once: the lock's file remembers how the file system saw it then, so that a file
    of 10 GB is not read once more for each unit of work.

    Args:
        uri: the object.
        digest: SHA-256 that it had when the run was planned.
        target: the copy.
        locks: a folder; of the processes of a machine one fetches and the others wait.

    Raises:
        DataError: it is another than when the run was planned, or gone.
        StorageError: the store or the server does not answer.
    """
    for folder in (target.parent, locks):
        folder.mkdir(parents=True, exist_ok=True)
    with (locks / f"raw-{digest[:16]}.fetch").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        if target.exists() and (lock.read() == _seen(target) or sha256(target) == digest):
            _remember(lock, target)
            return
        place, _, name = uri.rpartition("/")
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        try:
            if uri.startswith(web.SCHEMES):
                temporary.mkdir()
                web.download(uri, digest, temporary / name)
            else:
                ObjectStore(place).download("", {name: {"sha256": digest}}, temporary)
            (temporary / name).replace(target)
            _remember(lock, target)
        except DamagedArtifactError as error:
            raise DataError(
                f"{shown(uri)}: has changed since the run was planned, or is gone; leave the files alone while a run "
                "reads them, and run again"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _seen(path: Path) -> str:
    found = path.stat()
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"


def _remember(lock: IO[str], target: Path) -> None:
    lock.seek(0)
    lock.truncate()
    lock.write(_seen(target))
    lock.flush()


@contextlib.contextmanager
def open_seekable(uri: str) -> Iterator[IO[bytes]]:
    """An object to read parts of, such as a footer; not compared with any digest.

    Raises:
        FileNotFoundError: it is gone.
        StorageError: the store does not answer.
    """
    place, _, name = uri.rpartition("/")
    with ObjectStore(place).open_seekable(name) as stream:
        yield stream


def _with_digests(objects: ObjectStore, names: Sequence[str], digests: DigestCache | None) -> list[RemoteFile]:
    def look(name: str) -> Seen:
        seen = objects.look(name)
        if seen is None:
            raise UserError(f"{objects.where}: {objects.uri}/{name} is gone; run again")
        return seen

    seen = dict(zip(names, in_parallel(look, names), strict=True))
    known = {name: digests.get(f"{objects.uri}/{name}", one) for name, one in seen.items()} if digests else {}
    unknown = [name for name in names if not known.get(name)]
    for name, digest in zip(unknown, in_parallel(objects.sha256, unknown), strict=True):
        if digest is None:
            raise UserError(f"{objects.where}: {objects.uri}/{name} is gone; run again")
        known[name] = digest
        if digests and objects.look(name) == seen[name]:
            digests.put(f"{objects.uri}/{name}", seen[name], digest)
    return [
        RemoteFile(uri=f"{objects.uri}/{name}", num_bytes=int(seen[name][0]), digest=str(known[name])) for name in names
    ]


def _known_or_read(url: str, seen: Seen, where: str, digests: DigestCache | None) -> RemoteFile:
    """A file of the web. Its digest is remembered where the server gives an ETag or the time of the last change."""
    num_bytes = int(seen[0])
    digest = digests.get(url, seen) if digests else None
    if digest is None:
        digest, num_bytes = web.sha256(url, where)
        if digests and any(seen[1:]) and web.look(url, where) == seen:
            digests.put(url, seen, digest)
        elif digests:
            digests.num_read += 1
    return RemoteFile(uri=url, num_bytes=num_bytes, digest=digest)
