"""Who a process is, so that another can tell whether it still lives."""

from __future__ import annotations

import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessIdentity:
    """A process on a host; the start time tells it from a later one with the same id."""

    host: str
    pid: int
    started: str

    @classmethod
    def current(cls) -> ProcessIdentity:
        """This process."""
        return cls(host=socket.gethostname(), pid=os.getpid(), started=_start_time(os.getpid()) or "")

    @classmethod
    def parse(cls, value: Any) -> ProcessIdentity | None:
        """From JSON; None where it is not one."""
        try:
            return cls(host=str(value["host"]), pid=int(value["pid"]), started=str(value["started"]))
        except (KeyError, TypeError, ValueError):
            return None

    def is_here(self) -> bool:
        """Whether it runs, or ran, on this host."""
        return self.host == socket.gethostname()

    def is_dead(self) -> bool:
        """True only if it ran on this host and is gone; a process of another host may live."""
        return self.is_here() and _start_time(self.pid) != self.started

    def to_json(self) -> dict[str, Any]:
        """For a lock or a run's record."""
        return asdict(self)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def _start_time(pid: int) -> str | None:
    """Start of a process in clock ticks since boot (field 22 of `/proc/<pid>/stat`); None if it is gone.

    Where there is no /proc (macOS), a constant for a living process.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace")
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        try:
            os.kill(pid, 0)
        except OSError:
            return None
        return "alive"
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else fields[18]
