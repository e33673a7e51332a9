"""A notice to leave: SIGTERM, a node that drains, a run that is stopped. The training then saves and ends in order.

A signal handler is set in the main thread, and Ray Train runs the training in another one; the two meet in the handler
itself, which `signal.getsignal` gives to both.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

ASK_SECONDS = 1.0


class Notice:
    """Whether this rank was told to leave; also the handler of the signal that tells it."""

    def __init__(self) -> None:
        self.received = False
        self.training_ended = threading.Event()
        """Set when the training on this rank is over, whatever became of it."""

    def __call__(self, number: int = 0, frame: Any = None) -> None:
        """Tells it; a handler may interrupt anything, so it takes no lock."""
        self.received = True

    def install(self) -> Notice:
        """Makes it the handler of SIGTERM; in the main thread only."""
        signal.signal(signal.SIGTERM, self)
        return self

    @classmethod
    def installed(cls) -> Notice:
        """The one that handles SIGTERM in this process; a new one where none does."""
        handler = signal.getsignal(signal.SIGTERM)
        return handler if isinstance(handler, cls) else cls()

    def ask(self, *questions: Callable[[], bool]) -> None:
        """Starts a thread that asks once a second until one answers yes, or the training is over."""

        def watch() -> None:
            while not self.received and not self.training_ended.wait(ASK_SECONDS):
                if any(question() for question in questions):
                    self()

        threading.Thread(target=watch, name="notice", daemon=True).start()
