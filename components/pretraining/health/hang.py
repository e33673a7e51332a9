"""Which rank hangs, from what all ranks tell of themselves: pure functions, no threads.

A rank that waits in a collective waits for another. So the culprits are the ranks that do not answer at all; else those
whose training thread is in no collective while that of another is; else those that are behind the others.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Sequence
from types import FrameType

from pydantic import BaseModel, ConfigDict

HANG_NAME = "hang.txt"
"""The report, in the work folder."""
PHASES = ("start", "data", "counts", "forward", "backward", "reduce", "update", "evaluation", "checkpoint", "finish")
"""What a training thread does, in the order of a step."""
COLLECTIVE_CODE = ("/torch/distributed/", "/deepspeed/comm/")
INNERMOST = 5
"""Frames at the end of a stack in which a collective would be."""
SHOWN_FRAMES = 20


class Beat(BaseModel):
    """What a rank is at."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int
    host: str
    pid: int
    step: int = 0
    """The optimizer step that it is making, from 1; 0 before the first."""
    phase: str = "start"
    micro_batch: int = 0
    """Of the step, from 1."""
    seconds: float = 0.0
    """Since the phase began."""
    answers: bool = True
    """Whether its process runs at all."""
    waits: bool = False
    """Whether its training thread is in a collective."""
    stack: str = ""

    def __str__(self) -> str:
        who = f"rank {self.rank} (host {self.host}, pid {self.pid}): "
        where = f"step {self.step}, phase {self.phase}"
        if self.phase in ("forward", "backward"):
            where += f", micro batch {self.micro_batch}"
        if not self.answers:
            why = "stopped, starved, or in code that never lets go of Python"
            return f"{who}its process does not answer for {self.seconds:.0f} s: {why}; what it told last: {where}"
        return f"{who}{where}, for {self.seconds:.0f} s" + (", waits in a collective" if self.waits else "")


def culprits(beats: Sequence[Beat]) -> list[Beat]:
    """The ranks that the others wait for; none where all wait in the same collective."""
    silent = [beat for beat in beats if not beat.answers]
    if silent:
        return silent
    busy = [beat for beat in beats if not beat.waits]
    if busy:
        return busy if len(busy) < len(beats) or len(beats) == 1 else _last(beats)
    return _last(beats)


def _last(beats: Sequence[Beat]) -> list[Beat]:
    """Those behind the others; none where all are equally far."""
    places = [(beat.step, PHASES.index(beat.phase), beat.micro_batch) for beat in beats]
    behind = [beat for beat, place in zip(beats, places, strict=True) if place == min(places)]
    return behind if len(behind) < len(beats) else []


def report(beats: Sequence[Beat], deadline_seconds: float) -> str:
    """What is told of a hang: the culprits with their stacks first, then a line for each other rank."""
    found = culprits(beats)
    others = [beat for beat in beats if beat not in found]
    if found:
        names = ", ".join(str(beat.rank) for beat in found)
        head = f"rank {names} hangs" if len(found) == 1 else f"ranks {names} hang"
    else:
        head = "no rank is behind the others, but none goes on: the network between them, or a lost message"
    lines = [f"{head}: no progress for {deadline_seconds:g} s (health.hang_timeout_seconds)"]
    for beat in found or beats:
        lines += [f"  {beat}", *(f"    {line}" for line in beat.stack.splitlines())]
    lines += [f"  {beat}" for beat in others if found]
    return "\n".join(lines)


def stack_of(thread: int) -> str:
    """The Python stack of a thread, innermost call last."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "its training thread has ended"
    return "".join(traceback.format_stack(frame)[-SHOWN_FRAMES:])


def in_collective(training: int) -> bool:
    """Whether thread `training` is in a collective, or one that Python has not started: autograd's on a GPU, which run
    the hooks of a backward pass."""
    others = {thread.ident for thread in threading.enumerate() if thread.ident != training}
    return any(_waits(frame) for thread, frame in sys._current_frames().items() if thread not in others)


def _waits(frame: FrameType | None) -> bool:
    for _ in range(INNERMOST):
        if frame is None:
            return False
        if any(code in frame.f_code.co_filename for code in COLLECTIVE_CODE):
            return True
        frame = frame.f_back
    return False
