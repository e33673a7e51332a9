"""Units of work inside a step, kept by content: ROOT/units/<kind>/<2 hex>/<key>-<16 hex of SHA-256><suffix>.

A step that reads many files makes one unit a part of a file, and a later run of the step, over more files, takes those
that are there. The name carries the digest of the bytes, so that one rename makes a unit whole and a damaged one is
known when it is opened (1.8 GB/s). Units are no artifacts: MLflow knows nothing of them, an artifact names in its
manifest those that it was made from, and `gc` takes the rest. Not for what is cheap to make again.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from infra.errors import DamagedArtifactError
from infra.storage.files import fsync, sha256, storage_error
from infra.storage.mirror import Mirror

FOLDER = "units"
KEY_CHARACTERS, DIGEST_CHARACTERS = 32, 16
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitStore:
    """The units of one kind. Can be pickled into workers."""

    folder: Path
    """ROOT/units/<kind>."""
    mirror: Mirror = Mirror(Path("/"))
    suffix: str = ".parquet"

    def find(self, keys: Collection[str]) -> dict[str, Path]:
        """Where those of `keys` lie that there are, on this machine or, of a root on an object store, would lie."""
        wanted = set(keys)
        found: dict[str, Path] = {}
        for path in self.paths():
            if (key := key_of(path)) in wanted and path.suffix == self.suffix:
                found[key] = max(path, found.get(key, path))  # two attempts made one each
        return found

    def paths(self) -> Iterator[Path]:
        """All units, those that are only on the object store included."""
        yield from unit_paths(self.folder, self.mirror)

    def put(self, key: str, write: Callable[[Path], object]) -> Path:
        """Makes a unit, whole or not at all.

        Args:
            key: 32 hex characters.
            write: writes its file.

        Returns:
            Where it lies; where another attempt made another one, perhaps that.

        Raises:
            DiskFullError, StorageError: it could not be written.
        """
        folder = self.folder / key[:2]
        temporary = folder / f".{key}.{uuid.uuid4().hex[:8]}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write(temporary)
            fsync(temporary)
            path = folder / f"{key}-{sha256(temporary)[:DIGEST_CHARACTERS]}{self.suffix}"
            temporary.replace(path)
            # Of several attempts all keep the same one, as `find` does, or two that end at once would leave none.
            *others, path = sorted({path, *folder.glob(f"{key}-*{self.suffix}")})
            for one in others:
                one.unlink(missing_ok=True)
            fsync(folder)
        except OSError as error:
            raise storage_error(error, folder) from error
        finally:
            temporary.unlink(missing_ok=True)
        self.mirror.push(path)
        for one in others:
            self.mirror.drop(one)
        return path

    def open(self, path: Path) -> Path:
        """The unit at `path`, on this machine and sound.

        Raises:
            DamagedArtifactError: it is damaged, and set aside by its removal: run again.
            StorageError: the object store does not answer.
        """
        self.mirror.pull(path)
        told = path.stem.rpartition("-")[2]
        found = sha256(path)[:DIGEST_CHARACTERS] if path.exists() else "no file"
        if found != told:
            self.drop(path)
            raise DamagedArtifactError(f"{path} is damaged and was removed: run again, it will be made anew")
        return path

    def drop(self, path: Path) -> None:
        """Removes a unit, everywhere."""
        path.unlink(missing_ok=True)
        self.mirror.drop(path)

    def sound(self, found: Mapping[str, Path]) -> dict[str, Path]:
        """Those of `found` that are not damaged; the others are removed with a warning, to be made again."""
        kept: dict[str, Path] = {}
        for key, path in found.items():
            try:
                kept[key] = self.open(path)
            except DamagedArtifactError as error:
                logger.warning("%s", error)
        return kept


def key_of(path: Path) -> str:
    """The key in the name of a unit; empty for what is no unit."""
    key, _, digest = path.stem.rpartition("-")
    return key if len(key) == KEY_CHARACTERS and len(digest) == DIGEST_CHARACTERS else ""


def unit_paths(folder: Path, mirror: Mirror) -> Iterator[Path]:
    """All files below a folder of units, here and on the object store, each once, in order."""
    found = {path for path in folder.rglob("*") if path.is_file()}
    if mirror.objects:
        name = folder.relative_to(mirror.root).as_posix()
        found |= {folder / one for one in mirror.objects.sizes(name)}
    yield from sorted(found)
