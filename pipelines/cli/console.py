"""Shows a run as it goes: bars on a terminal, one line every few seconds elsewhere. All on standard error."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console as RichConsole
from rich.filesize import decimal
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from infra.journal.plan import PlannedStep
from infra.journal.runs import StepRecord

LINE_EVERY_SECONDS = 5.0
BAR_WIDTH = 24


class RunConsole:
    """Implements `pipelines.runner.Console`."""

    def __init__(self, num_steps: int) -> None:
        self.console = RichConsole(stderr=True, highlight=False)
        self.num_steps = num_steps
        self._num_ended = 0
        self._began: dict[str, float] = {}
        self._last_line: dict[str, float] = {}
        self._first: dict[str, tuple[float, float]] = {}
        """(time, amount done) of the first progress of each step: the rate counts from there, not from the start-up."""
        self._live: Live | None = None
        if sys.stderr.isatty():
            self._live = Live(console=self.console, refresh_per_second=4, transient=True)
            self._live.start()

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._live:
            self._live.stop()

    def started(self, planned: PlannedStep) -> None:
        """A step starts."""
        self._began[planned.step.name] = time.monotonic()
        why = f": {'; '.join(planned.reasons)}" if planned.reasons else ""
        self.say(f"{planned.step.name} runs{why}")

    def ended(self, planned: PlannedStep, record: StepRecord) -> None:
        """A step is settled."""
        self._num_ended += 1
        word = {"ran": f"done in {clock(record.seconds)}", "failed": "FAILED", "blocked": "blocked"}.get(
            record.status, record.status
        )
        separator = ", " if record.status == "reused" else ": "
        told = record.reasons if record.status in ("reused", "failed", "blocked") else []
        reasons = separator + "; ".join(told) if told else ""
        self.say(f"[{self._num_ended}/{self.num_steps}] {record.name} {word}{reasons}")

    def tick(self, running: Sequence[str], progress: Mapping[str, Mapping[str, Any]]) -> None:
        """Draws the running steps."""
        lines = {name: self._line(name, progress.get(name)) for name in running}
        if self._live:
            table = Table.grid(padding=(0, 1))
            for line in lines.values():
                table.add_row(line)
            self._live.update(table)
            return
        now = time.monotonic()
        for name, line in lines.items():
            if now - self._last_line.get(name, self._began.get(name, 0.0)) >= LINE_EVERY_SECONDS:
                self._last_line[name] = now
                self.say("  " + line)

    def say(self, line: str) -> None:
        """One line that stays."""
        self.console.print(line, markup=False, soft_wrap=True)

    def _line(self, name: str, state: Mapping[str, Any] | None) -> str:
        elapsed = time.monotonic() - self._began.get(name, time.monotonic())
        if not state or not state["total"]:
            return f"{name:<16} {clock(elapsed)}"
        done, total, unit = state["done"], state["total"], state["unit"]
        share = min(1.0, done / total)
        bar = "━" * round(share * BAR_WIDTH) + "╌" * (BAR_WIDTH - round(share * BAR_WIDTH))
        first_time, first_done = self._first.setdefault(name, (state["time"], done))
        if done < first_done:  # a retried step counts from its new start
            first_time, first_done = self._first[name] = (state["time"], done)
        passed = state["time"] - first_time
        rate = (done - first_done) / passed if passed > 0 else 0.0
        left = f"{clock((total - done) / rate)} left" if rate > 0 else "starting"
        note = f"  {state['note']}" if state.get("note") else ""
        return (
            f"{name:<16} {bar} {share:4.0%}  {_number(done)}/{_number(total)} {unit}  "
            f"{_number(rate)} {unit}/s  {left}{note}"
        )


@contextlib.contextmanager
def byte_progress(verb: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """Shows how much of a long work on files is done; yields what takes the bytes of each part that is."""
    console = RichConsole(stderr=True, highlight=False)
    if console.is_terminal:
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(verb, total=total_bytes)
            yield lambda num_bytes: bar.advance(task, num_bytes)
        return
    began = told = time.monotonic()
    done = 0

    def advance(num_bytes: int) -> None:
        nonlocal done, told
        done += num_bytes
        now = time.monotonic()
        if now - told >= LINE_EVERY_SECONDS and done:
            told, rate = now, done / (now - began)
            left = clock((total_bytes - done) / rate)
            line = f"{verb} {decimal(done)} of {decimal(total_bytes)}, {decimal(int(rate))}/s, {left} left"
            console.print(line, markup=False, soft_wrap=True)

    yield advance


def clock(seconds: float) -> str:
    """`42s`, `3m05s`, `1h02m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02}m"


def _number(value: float) -> str:
    if value >= 10_000:
        return f"{value / 1000:,.0f}k" if value < 10_000_000 else f"{value / 1e6:,.1f}M"
    return f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"
