"""Notices that Ray is gone, and interrupts the main thread.

Without it a driver whose head died waits for a minute and is then ended by Ray itself, with exit code 1, no word for
the user, and its record left open (Ray 2.60, `gcs_rpc_server_reconnect_timeout_s`).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

from infra.errors import ClusterLostError

SIGNAL = signal.SIGUSR1
LOCAL_POLL_SECONDS = 0.5
HEAD_POLL_SECONDS = 5.0
HEAD_PATIENCE_SECONDS = 40.0
"""How long the head of a cluster may be away: it may be started again; Ray itself gives up after 60 s."""


class RayWatch:
    """Raises KeyboardInterrupt in the main thread once Ray cannot go on; a context manager.

    It is the one exception that Ray's calls let through (2.60); `check` tells whether it was this that raised it.

    Args:
        node: Ray's record of the processes that it started here; None for a cluster that was joined.
        head: Ray's client of the head.
    """

    def __init__(self, node: Any, head: Any) -> None:
        self.lost: str | None = None
        """What died."""
        self._node, self._head = node, head
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ray-watch", daemon=True)
        self._before: Any = None

    def __enter__(self) -> RayWatch:
        if threading.current_thread() is threading.main_thread():  # only there can a signal be answered
            self._before = signal.signal(SIGNAL, self._raise)
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        if self._thread.ident is not None:
            try:
                self._thread.join()
            finally:
                signal.signal(SIGNAL, self._before)

    def check(self) -> None:
        """Raises ClusterLostError if Ray is gone."""
        if self.lost:
            raise ClusterLostError(
                f"{self.lost} died, and the run with it; finished steps and checkpoints are kept, run again to go on"
            )

    def _raise(self, number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    def _watch(self) -> None:
        pause = LOCAL_POLL_SECONDS if self._node else HEAD_POLL_SECONDS
        while not self._over.wait(pause):
            self.lost = self.lost or (self._dead_process() if self._node else self._dead_head())
            if self.lost:  # again and again: code that guards itself against any error may swallow the first
                os.kill(os.getpid(), SIGNAL)

    def _dead_process(self) -> str | None:
        """The head or the raylet; agents and monitors may die without harm."""
        dead = {name for name, _ in self._node.dead_processes()}
        return next((f"Ray's {name}" for name in ("gcs_server", "raylet") if name in dead), None)

    def _dead_head(self) -> str | None:
        since = time.monotonic()
        while not self._over.is_set():
            try:
                self._head.internal_kv_exists(b"fromzero", b"watch", timeout=HEAD_POLL_SECONDS)
                return None
            except Exception:  # whatever Ray's client raises: the head does not answer
                if time.monotonic() - since > HEAD_PATIENCE_SECONDS:
                    return "the head of the Ray cluster"
                self._over.wait(1.0)
        return None
