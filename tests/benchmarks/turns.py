"""Lets processes take turns, so that what they are measured on is the same machine at the same time.

Each side is a training that is alive from start to end and asks for its turn every few steps; one runs, the others wait
on a socket without using a core. On a shared machine the speed of one side was seen to move by 25 % within a minute
(5,838 and 8,071 tokens/s of the same loop), so only what ran close together is compared.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

from infra.tracking.client import NullSink, Sink

START_SECONDS = 300.0
"""How long a side may take until it first asks for its turn."""


@dataclass(kw_only=True, slots=True)
class Turn:
    """A side's end; connects when it is first used, in whatever process that is."""

    address: str
    side: str
    connection: Any = None
    began: float = 0.0

    def wait(self, step: int) -> None:
        """Ends the turn after `step` optimizer steps since the side's start, and waits for the next one."""
        ended = time.perf_counter()
        if self.connection is None:
            self.connection = Client(self.address, family="AF_UNIX")
            self.connection.send(self.side)
        self.connection.send((step, ended - self.began))
        self.connection.recv()
        self.began = time.perf_counter()

    def __getstate__(self) -> tuple[str, str]:
        return self.address, self.side

    def __setstate__(self, state: tuple[str, str]) -> None:
        self.address, self.side = state
        self.connection, self.began = None, 0.0


@dataclass(kw_only=True, slots=True)
class TurnSink:
    """A sink for `StepTracker` that waits for the side's turn at each point of the history.

    It blocks rank 0, and with it all ranks, in the next step's first collective: what a sink must never do elsewhere.
    """

    turn: Turn
    inner: Sink = field(default_factory=NullSink)

    def send(self, kind: str, step: str, payload: Mapping[str, Any]) -> None:
        """Hands the message on; then waits if it was of a training step."""
        self.inner.send(kind, step, payload)
        if kind == "metrics" and "train_loss" in payload["metrics"]:
            self.turn.wait(int(payload["step"]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """What a side did in one turn."""

    first_step: int
    last_step: int
    """Not included."""
    seconds: float


class Turns:
    """The other end: gives the turns."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._listener = Listener(address, family="AF_UNIX", backlog=16)
        self._sides: dict[str, Connection] = {}
        self._steps: dict[str, int] = {}

    def admit(self, names: Sequence[str], alive: Callable[[], None]) -> None:
        """Waits until all sides have asked for their first turn.

        Args:
            names: of the sides.
            alive: raises if a side has died.
        """
        deadline = time.monotonic() + START_SECONDS
        self._listener._listener._socket.settimeout(1.0)  # type: ignore[attr-defined]
        while set(names) - set(self._sides):
            alive()
            if time.monotonic() > deadline:
                raise TimeoutError(f"no first turn of {sorted(set(names) - set(self._sides))} in {START_SECONDS} s")
            try:
                connection = self._listener.accept()
            except TimeoutError:
                continue
            side = connection.recv()
            self._sides[side] = connection
        for side, connection in self._sides.items():
            self._steps[side] = connection.recv()[0]

    def give(self, side: str) -> Stretch:
        """One turn of `side`."""
        connection = self._sides[side]
        connection.send("go")
        step, seconds = connection.recv()
        first, self._steps[side] = self._steps[side], step
        return Stretch(first_step=first, last_step=step, seconds=seconds)

    def close(self) -> None:
        """Ends the listener; sides that wait get an EOFError."""
        for connection in self._sides.values():
            connection.close()
        self._listener.close()


def paired(rates: Mapping[str, Sequence[float]], one: str, other: str) -> float:
    """Median over the rounds of the ratio of two sides."""
    return statistics.median(a / b for a, b in zip(rates[one], rates[other], strict=True))
