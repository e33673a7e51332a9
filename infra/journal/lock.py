"""Locks on step keys: a second run that needs a step that is being made refuses, and names the holder.

A run claims all steps that it is to make before it makes the first, so of two runs that want the same one works whole
and the other does nothing. The process that makes a step locks it once more, because it may outlive its run.

All that works under a root holds one more lock together, which `fromzero gc` takes alone.

A lock is `flock` on a file of ROOT, so a holder that dies lets go by itself. It protects one machine, or several on
one file system that carries flock (NFS 4 does).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from infra.errors import LockedError
from infra.journal.process import ProcessIdentity
from infra.storage.files import storage_error

HOLDER_BYTES = 512
"""Of what a lock's file says of its holder, blanks included."""
GC = "gc.lock"
"""The lock of a whole root, in its folder of locks."""


@contextlib.contextmanager
def exclusive(path: Path, what: str, wait_seconds: float = 0) -> Iterator[ProcessIdentity | None]:
    """Holds the lock `path`; yields who held it last, as far as that is known.

    Args:
        path: the lock's file; it stays.
        what: what is locked, for the message.
        wait_seconds: how long to wait for another holder.

    Raises:
        LockedError: somebody holds it; names them.
    """
    with _held(path, fcntl.LOCK_EX, f"{what} is being made by", wait_seconds) as last:
        yield last


@contextlib.contextmanager
def working(root: Path) -> Iterator[None]:
    """Held by all that makes, delivers or names artifacts under `root`, at the same time.

    Raises:
        LockedError: `fromzero gc` is at work there.
    """
    with _held(root / "locks" / GC, fcntl.LOCK_SH, f"unused artifacts under {root} are being removed by"):
        yield


@contextlib.contextmanager
def alone(root: Path) -> Iterator[None]:
    """Held by `fromzero gc`: nothing else works under `root`.

    Raises:
        LockedError: something does; names who began last.
    """
    with _held(root / "locks" / GC, fcntl.LOCK_EX, f"{root} is in use by"):
        yield


@contextlib.contextmanager
def claimed(folder: Path, steps: Iterable[tuple[str, str]]) -> Iterator[None]:
    """Claims every (step, key) for this process, or none.

    Raises:
        LockedError: another run makes one of them; names the step and the run's process.
    """
    with contextlib.ExitStack() as held:
        for step, key in sorted(steps):  # one order for all, so that of two runs one gets the first
            held.enter_context(exclusive(folder / f"{step}-{key}.claim", f"{step} {key[:12]}"))
        yield


@contextlib.contextmanager
def _held(path: Path, operation: int, refusal: str, wait_seconds: float = 0) -> Iterator[ProcessIdentity | None]:
    """Holds `path` shared or alone; the file says who took it last, which is yielded."""
    deadline = time.monotonic() + wait_seconds
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise storage_error(error, path) from error
    try:
        while not _taken(descriptor, operation):
            if time.monotonic() >= deadline:
                holder = _awaited_holder(descriptor) or "another process"
                raise LockedError(f"{refusal} {holder}; wait for it, or stop it, then run again")
            time.sleep(0.05)
        last = _holder(descriptor)
        told = json.dumps(ProcessIdentity.current().to_json()).encode()
        os.pwrite(descriptor, told.ljust(HOLDER_BYTES), 0)  # in one piece: a reader sees this holder or the one before
        yield last
    finally:
        os.close(descriptor)


def _taken(descriptor: int, operation: int) -> bool:
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _awaited_holder(descriptor: int) -> ProcessIdentity | None:
    """Who holds a lock, which may have been taken a moment ago and not say so yet."""
    for _ in range(20):
        holder = _holder(descriptor)
        if holder is not None:
            return holder
        time.sleep(0.05)
    return None


def _holder(descriptor: int) -> ProcessIdentity | None:
    try:
        return ProcessIdentity.parse(json.loads(os.pread(descriptor, HOLDER_BYTES, 0)))
    except ValueError:
        return None
