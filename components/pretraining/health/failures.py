"""How the failure of a worker reaches the driver: as a file in the work folder, or out of what Ray Train raises.

An error that is the user's is the same on every rank, as a rule: each writes it down, and all end in peace, so that Ray
does not try again. Where only one rank has it, the others wait in a collective, and it is raised so that Ray ends them.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from components.pretraining.health.hang import HANG_NAME
from infra import errors
from infra.errors import ConfigError, FromzeroError, InfrastructureError
from infra.journal.step import STOP_NAME
from infra.storage.files import write_json

FAILURE_NAME = "failure.json"
BUGS = (TypeError, AttributeError, LookupError, NameError, AssertionError, NotImplementedError)
"""What only wrong code raises; Ray has tried it again all the same, for it does not ask."""
SHARED_SECONDS = 10.0
"""How long a rank with an error of the user waits for the others to have one."""


def is_there(job: Any, name: str) -> bool:
    """Whether the work folder has a file. The folder is listed, because a network file system may believe for half a
    minute that a file which was not there is not there."""
    job.mirror.pull(job.work / name)
    return any(path.name == name for path in job.work.iterdir())


def forget_old_copies(job: Any) -> None:
    """Removes this machine's copies of what another run, or attempt, was told or told; what counts is in the object
    store, where the driver removes it."""
    if job.mirror.objects:
        for name in (FAILURE_NAME, STOP_NAME, HANG_NAME):
            (job.work / name).unlink(missing_ok=True)


def all_come(store: Any, world_size: int, seconds: float) -> bool:
    """Whether all ranks call it, within some seconds of one another.

    Args:
        store: torch's, of the process group; its collectives may be broken.
        world_size: ranks.
        seconds: to wait for the others.
    """
    deadline = time.monotonic() + seconds
    store.add("failed", 1)
    while store.add("failed", 0) < world_size:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def write_failure(path: Path, error: FromzeroError) -> None:
    """Writes an error down for the driver."""
    write_json(path, {"type": type(error).__name__, "lines": str(error).split("\n")})


def read_failure(path: Path) -> FromzeroError:
    """The error that a worker wrote down."""
    told = json.loads(path.read_text(encoding="utf-8"))
    kind = getattr(errors, told["type"], FromzeroError)
    if kind is ConfigError:
        return ConfigError(*told["lines"])
    found: FromzeroError = kind("\n".join(told["lines"]))
    return found


def read_hang(job: Any) -> str | None:
    """The report of a rank that hung in the last attempt, if one did."""
    path = job.work / HANG_NAME
    job.mirror.pull(path)
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def unwrapped(error: Exception, max_restarts: int, hang: str | None = None) -> FromzeroError:
    """Our own error out of what Ray Train raised; for a bug one with the worker's traceback; else an
    InfrastructureError that names the worker's.

    Args:
        max_restarts: how often the workers were started again.
        error: WorkerGroupError (has `worker_failures`) or ControllerError (has `controller_failure`).
        hang: the report of a rank that hung: what Ray knows of it is that a worker died.
    """
    failures: dict[int, BaseException] = getattr(error, "worker_failures", None) or {}
    found = [(rank, cause) for rank, failure in sorted(failures.items()) for cause in _causes(failure)]
    for _, cause in found:
        if isinstance(cause, FromzeroError):
            return cause
    if hang is not None:
        return InfrastructureError(hang)
    if found:
        rank, cause = found[0]
        if isinstance(cause, BUGS):
            return FromzeroError(f"training worker {rank} failed:\n{error}")
        return InfrastructureError(
            f"training worker {rank} failed, and again after {max_restarts} restarts: "
            f"{type(cause).__name__}: {str(cause).strip().splitlines()[-1] if str(cause).strip() else 'no message'}"
        )
    cause = getattr(error, "controller_failure", error)
    return InfrastructureError(f"Ray Train could not run the training: {type(cause).__name__}: {cause}")


def _causes(error: BaseException) -> list[BaseException]:
    """The error and what it was made from."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = getattr(current, "cause", None) or current.__cause__
    return chain[::-1]
