"""Raw files on object stores: what a URI, folder or glob names, what it holds, and the copy that a machine reads.

A plan reads a file once, for its digest, and keeps nothing of it; later it asks for size, time and ETag alone. Who
reads the rows has the file fetched into `ROOT/cache/raw/`, once a machine, and compared with the digest.
"""

from __future__ import annotations

import fcntl
import fnmatch
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.errors import DamagedArtifactError, DataError, UserError
from infra.storage.digests import DigestCache
from infra.storage.files import sha256
from infra.storage.objects import ObjectStore, Seen, in_parallel

WILDCARDS = "*?["


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
        pattern: URI of an object, a folder or a glob (`*` within a folder, `**` over folders).
        where: the config key, for messages.
        is_wanted: whether an object of a folder counts, by its name.
        digests: known digests; without them every object is read.

    Raises:
        UserError: another scheme, no such bucket, a secret in the URI.
        StorageError: the object store does not answer, or does not let us read.
    """
    scheme, _, rest = pattern.partition("://")
    bucket, _, name = rest.partition("/")
    objects = ObjectStore.open(f"{scheme}://{bucket}", where)
    name, is_folder = name.strip("/"), False
    names = [name] if name and objects.look(name) else []
    if not names:
        below = [f"{name}/{one}".lstrip("/") for one in objects.sizes(name)] if not _is_glob(name) else []
        is_folder = bool(below)
        names = [one for one in below if is_wanted(one.removeprefix(name))]
    if not names and _is_glob(name):
        fixed = "/".join(name.split("/")[: next(i for i, part in enumerate(name.split("/")) if _is_glob(part))])
        listed = (f"{fixed}/{one}".lstrip("/") for one in objects.sizes(fixed))
        names = [one for one in listed if _matches(one.split("/"), name.split("/"))]
    return _with_digests(objects, sorted(names), digests), is_folder


def fetch(uri: str, digest: str, target: Path, locks: Path) -> None:
    """Makes sure that `target` is a sound copy of an object.

    Args:
        uri: the object.
        digest: SHA-256 that it had when the run was planned.
        target: the copy.
        locks: a folder; of the processes of a machine one fetches and the others wait.

    Raises:
        DataError: it is another than when the run was planned, or gone.
        StorageError: the object store does not answer.
    """
    for folder in (target.parent, locks):
        folder.mkdir(parents=True, exist_ok=True)
    with (locks / f"raw-{digest[:16]}.fetch").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists() and sha256(target) == digest:
            return
        place, _, name = uri.rpartition("/")
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        try:
            ObjectStore(place).download("", {name: {"sha256": digest}}, temporary)
            (temporary / name).replace(target)
            temporary.rmdir()
        except DamagedArtifactError as error:
            (temporary / name).unlink(missing_ok=True)
            temporary.rmdir()
            raise DataError(
                f"{uri}: has changed since the run was planned, or is gone; leave the files alone while a run reads "
                "them, and run again"
            ) from error


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


def _is_glob(name: str) -> bool:
    return any(sign in name for sign in WILDCARDS)


def _matches(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    """As the shell: `**` stands for any folders, and only a dot stands for a dot at the start of a name."""
    if not patterns or not parts:
        return not patterns and not parts
    if patterns[0] == "**":
        visible = not parts[0].startswith(".")
        return _matches(parts, patterns[1:]) or (visible and _matches(parts[1:], patterns))
    fits = fnmatch.fnmatchcase(parts[0], patterns[0]) and parts[0].startswith(".") <= patterns[0].startswith(".")
    return fits and _matches(parts[1:], patterns[1:])
