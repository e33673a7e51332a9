"""SIGTERM as an interrupt, so that what was started is stopped; and no interrupt is lost."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(kw_only=True, slots=True)
class Interrupts:
    """Whether there was one. An exception that a handler raises is lost where it meets code that lets none through,
    such as parts of Ray's calls (seen in 2.60, as a task was submitted): then the next `check` raises it again."""

    received: bool = False

    def check(self) -> None:
        """Raises KeyboardInterrupt if there was one."""
        if self.received:
            raise KeyboardInterrupt


@contextlib.contextmanager
def terminable(interrupts: Interrupts | None = None) -> Iterator[None]:
    """SIGTERM does inside what Ctrl-C does: a run is closed and Ray shut down, a server is stopped.

    Args:
        interrupts: is told of both.
    """
    told = interrupts or Interrupts()

    def stop(signum: int, frame: Any) -> None:
        told.received = True
        raise KeyboardInterrupt

    old: dict[signal.Signals, Any] = {}
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            old[number] = signal.signal(number, stop)
    except ValueError:  # not the main thread, as in a test
        yield
        return
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
