"""Watches for a rank that hangs: a daemon thread in each rank, beside the training thread.

The training thread marks its phases, which costs 0.2 microseconds a mark. The watching threads tell one another by a
store of their own (torch's TCPStore, on the loopback address where all ranks are on one machine), so a training thread
that is stuck in C++ or sleeps does not matter, and nothing is asked of the file system. When a rank has been in one
phase for longer than the deadline, each tells where its training thread is, and the lowest rank that answers writes the
report (hang.py says who is to blame). Then the culprits end: by themselves, or a process that does not answer by a kill
from its machine. The others find their collectives broken, raise the report as InfrastructureError, and Ray starts all
of them again from the newest checkpoint; one that is not out after END_SECONDS ends itself.

A process that is stopped takes its sockets along: a store in it neither answers nor fails, so a second thread looks
after the first.

A rank that waits does not hang while another goes on: an alarm needs that no rank has marked anything for as long as
the deadline, which must be longer than the longest work without a mark. An evaluation marks each batch, a checkpoint
each write and file; the export has a mark before it is written and one before it is pushed.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Any

import psutil
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from components.pretraining.health.hang import Beat, culprits, in_collective, report, stack_of
from infra.errors import FromzeroError, InfrastructureError

logger = logging.getLogger(__name__)

END_SECONDS = 10.0
"""How long a rank that waited for the culprit has to leave its collective."""
START_SECONDS = 300.0
"""Least deadline before the first step: imports, weights and checkpoints are read."""
EXIT_CODE = 75
"""Of a process that ends for a hang: EX_TEMPFAIL, try again."""
MAX_PERIOD_SECONDS = 2.0
ALARM, VERDICT = "alarm", "verdict"


class Watchdog:
    """Watches all ranks of the default process group while it is entered; all ranks make one at the same time.

    Args:
        deadline_seconds: how long a phase may take.
        on_hang: called with the report in one rank, before anything ends.

    Raises:
        InfrastructureError: at the exit, in place of what a broken collective raised, if a rank was found to hang.
    """

    def __init__(self, deadline_seconds: float, on_hang: Callable[[str], None]) -> None:
        self.deadline = deadline_seconds
        self.period = min(MAX_PERIOD_SECONDS, deadline_seconds / 5)
        self.on_hang = on_hang
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.thread = threading.get_ident()
        process = psutil.Process()
        me = {"host": socket.gethostname(), "pid": process.pid, "started": process.create_time()}
        self.members: list[dict[str, Any]] = [{}] * self.world_size
        dist.all_gather_object(self.members, me)
        self._server, self._address = self._serve()
        self._at: tuple[int, str, int, float] = (0, "start", 0, time.monotonic())
        self._moves = 0
        """Marks of all ranks, at most one a rank in each period."""
        self._told, self._moved = self._at[3], self._at[3]
        """The last of this rank that the others know; when one of any rank was last seen."""
        self._first = Beat(rank=0, host=self.members[0]["host"], pid=self.members[0]["pid"])
        """What rank 0 told last; the store ends with its process."""
        self._verdict: str | None = None
        self._alarmed = threading.Event()
        self._judged = threading.Event()
        self._ended = threading.Event()
        self._heard = time.monotonic()
        """When the store last answered."""
        self._threads = [
            threading.Thread(target=target, name=f"hang-{target.__name__}", daemon=True)
            for target in (self._watch, self._guard)
        ]

    def begin(self, step: int) -> None:
        """The training thread begins optimizer step `step`, from 1, with phase `data`."""
        self._at = (step, "data", 0, time.monotonic())

    def mark(self, phase: str) -> None:
        """The training thread begins a phase of the step; each `forward` is of the next micro batch."""
        step, _, micro_batch, _ = self._at
        self._at = (step, phase, micro_batch + (phase == "forward"), time.monotonic())

    def __enter__(self) -> Watchdog:
        self._heard = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, FromzeroError) and self._alarmed.is_set():
            self._judged.wait(4 * self._patience)
        self._ended.set()
        for thread in self._threads:
            thread.join(3 * self._patience)  # an interpreter that ends under a thread in C++ aborts
        if error is not None and self._verdict is not None:
            raise InfrastructureError(self._verdict) from error

    @property
    def _patience(self) -> float:
        """Seconds in which a rank that answers at all has answered."""
        return 3 * self.period + 1

    def _serve(self) -> tuple[Any, tuple[str, int]]:
        """Rank 0's store, and where it is."""
        told: list[Any] = [None]
        server = None
        if self.rank == 0:
            alone = len({member["host"] for member in self.members}) == 1
            host = "127.0.0.1" if alone else os.environ.get("MASTER_ADDR", socket.gethostname())
            family, _, _, _, place = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
            listener = socket.socket(family)
            listener.bind(place)
            listener.listen(self.world_size + 16)
            port = listener.getsockname()[1]
            server = TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
            told = [(host, port)]
        dist.broadcast_object_list(told)
        return server, told[0]

    def _connect(self) -> Any:
        host, port = self._address
        return TCPStore(host, port, is_master=False, timeout=timedelta(seconds=self._patience))

    def _beat(self, *, full: bool = False) -> Beat:
        step, phase, micro_batch, since = self._at
        member = self.members[self.rank]
        return Beat(
            rank=self.rank,
            host=member["host"],
            pid=member["pid"],
            step=step,
            phase=phase,
            micro_batch=micro_batch,
            seconds=time.monotonic() - since,
            waits=full and in_collective(self.thread),
            stack=stack_of(self.thread) if full else "",
        )

    def _watch(self) -> None:
        """The thread that talks with the other ranks."""
        store = None
        while not self._ended.wait(self.period):
            try:
                store = store or self._connect()
                if self._tick(store):
                    return
                self._heard = time.monotonic()
            except dist.DistError as error:  # rank 0 has ended
                logger.debug("rank %d cannot reach the watchdogs' store: %s", self.rank, error)
                store = None
                if self._alarmed.is_set():
                    return  # the other thread deals with it

    def _guard(self) -> None:
        """The thread that looks after the other: a store whose process is stopped never answers, nor raises."""
        while not self._ended.wait(self.period) and not self._judged.is_set():
            if self._stuck() and time.monotonic() - self._heard > 3 * self._patience:
                self._alarmed.set()
                self._without_store()
                return

    def _stuck(self) -> bool:
        step, _, _, since = self._at
        deadline = self.deadline if step else max(self.deadline, START_SECONDS)
        return time.monotonic() - max(since, self._moved) >= deadline

    def _look(self, store: Any) -> None:
        """Tells the others that this rank goes on, and sees whether any does."""
        since = self._at[3]
        moves = store.add("moves", int(since != self._told))
        self._told = since
        if moves != self._moves:
            self._moves, self._moved = moves, time.monotonic()

    def _tick(self, store: Any) -> bool:
        """Tells that this rank lives, and looks for an alarm; whether the hang is dealt with."""
        store.set(f"beat/{self.rank}", self._beat().model_dump_json())
        if store.check(["beat/0"]):
            self._first = Beat.model_validate_json(store.get("beat/0"))
        self._look(store)
        if self._stuck():
            store.set(ALARM, "1")
        if not store.check([ALARM]):
            return False
        self._alarmed.set()
        store.set(f"full/{self.rank}", self._beat(full=True).model_dump_json())
        beats = self._gather(store)
        if next(beat.rank for beat in beats if beat.answers) == self.rank:
            self._examine(beats)
            store.set(VERDICT, report(beats, self.deadline))
        else:
            store.wait([VERDICT], timedelta(seconds=2 * self._patience))
        self._end(store.get(VERDICT).decode(), culprits(beats))
        return True

    def _gather(self, store: Any) -> list[Beat]:
        """What each rank tells, after the time that those have who answer."""
        names = [f"full/{rank}" for rank in range(self.world_size)]
        until = time.monotonic() + self._patience
        while time.monotonic() < until and not store.check(names):
            time.sleep(self.period / 4)
        beats = []
        for rank, member in enumerate(self.members):
            if store.check([names[rank]]):
                beats.append(Beat.model_validate_json(store.get(names[rank])))
                continue
            last = Beat(rank=rank, host=member["host"], pid=member["pid"])
            if store.check([f"beat/{rank}"]):
                last = Beat.model_validate_json(store.get(f"beat/{rank}"))
            seconds = max(last.seconds, time.monotonic() - self._at[3])
            beats.append(last.model_copy(update={"answers": False, "seconds": seconds}))
        return beats

    def _without_store(self) -> None:
        """The hang of rank 0, in whose process the store is: the others know no more than themselves."""
        mine = self._beat(full=True)
        beats = [self._first.model_copy(update={"answers": False, "seconds": mine.seconds}), mine]
        if self.rank == 1:
            self._examine(beats)
        self._end(report(beats, self.deadline), beats[:1])

    def _examine(self, beats: list[Beat]) -> None:
        text = report(beats, self.deadline)
        logger.error("%s", text)
        try:
            self.on_hang(text)
        except Exception:  # the ranks must end even where the report cannot be written
            logger.exception("the report of the hang cannot be written")

    def _end(self, verdict: str, found: list[Beat]) -> None:
        """Ends this rank, and those of its machine that do not answer."""
        self._verdict = verdict
        self._judged.set()
        time.sleep(2 * self.period)  # in which all read the verdict
        if not found or any(beat.rank == self.rank for beat in found):
            self._exit()
        here = self.members[self.rank]["host"]
        for beat in found:
            if not beat.answers and beat.host == here:
                self._kill(beat.rank)
        if not self._ended.wait(END_SECONDS):
            self._exit()

    def _kill(self, rank: int) -> None:
        member = self.members[rank]
        try:
            if psutil.Process(member["pid"]).create_time() == member["started"]:
                os.kill(member["pid"], signal.SIGKILL)
        except (psutil.NoSuchProcess, ProcessLookupError):
            pass

    def _exit(self) -> None:
        if not self._ended.is_set():
            logging.shutdown()
            os._exit(EXIT_CODE)
