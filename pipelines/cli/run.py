"""`run` and `plan`."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from rich.table import Table

from infra.errors import Fault
from infra.journal.plan import PlannedStep, neighbours
from infra.journal.runs import RunRecord
from infra.journal.worker import Failure
from pipelines.cli.console import RunConsole, clock
from pipelines.cli.output import emit_json, guarded, say, stdout_console
from pipelines.compose import load_config
from pipelines.estimates import SOURCES, Estimate, estimates, rows
from pipelines.runner import Prepared, execute, prepare

SHOWN_REASONS = 2


def plan_command(pipeline: str, overrides: list[str], *, until: str | None, as_json: bool) -> NoReturn:
    """Prints the plan; exit 3 if a step is blocked."""
    frame: dict[str, Any] = {"pipeline": pipeline, "status": "FAILED", "steps": []}

    def work() -> int:
        prepared = prepare(pipeline, load_config(pipeline, overrides), overrides, until=until)
        blocked = any(p.status == "blocked" for p in prepared.plan)
        found = estimates(prepared.plan)
        if as_json:
            emit_json(
                {
                    "pipeline": pipeline,
                    "run_id": None,
                    "status": "BLOCKED" if blocked else "PLANNED",
                    "root": prepared.store.uri,
                    "tracking_uri": prepared.tracking_uri,
                    "steps": _with_estimates(_planned(prepared), found),
                    "errors": [],
                }
            )
        else:
            _print_plan(prepared)
            _print_estimates(found)
        return Fault.INFRASTRUCTURE.value if blocked else 0

    guarded(work, as_json=as_json, frame=frame)


def _planned(prepared: Prepared) -> list[dict[str, Any]]:
    around = neighbours(prepared.plan, prepared.cluster)
    nobody: tuple[list[str], list[str]] = ([], [])
    return [
        {
            "name": planned.step.name,
            "key": planned.key,
            "status": planned.status,
            "reasons": list(planned.reasons),
            "beside": around.get(planned.step.name, nobody)[0],
            "not_beside": around.get(planned.step.name, nobody)[1],
        }
        for planned in prepared.plan
    ]


def _with_estimates(steps: list[dict[str, Any]], found: Sequence[Estimate]) -> list[dict[str, Any]]:
    told = {one.step: {"estimate": one.to_json()} for one in found}
    return [step | told.get(step["name"], {}) for step in steps]


def run_command(pipeline: str, overrides: list[str], *, until: str | None, as_json: bool) -> NoReturn:
    """Runs, prints the result, exits by whose fault a failure was."""
    frame: dict[str, Any] = {
        "pipeline": pipeline,
        "run_id": None,
        "status": "FAILED",
        "root": None,
        "tracking_uri": None,
        "steps": [],
    }

    def work() -> int:
        prepared = prepare(pipeline, load_config(pipeline, overrides), overrides, until=until)
        frame.update(root=prepared.store.uri, tracking_uri=prepared.tracking_uri)
        planned = _planned(prepared)
        if any(step["status"] == "blocked" for step in planned):
            frame["steps"] = [step if step["status"] == "reused" else {**step, "status": "blocked"} for step in planned]
        console = RunConsole(len(prepared.plan))
        try:
            with contextlib.redirect_stdout(sys.stderr):  # standard output is for the result alone
                result = execute(prepared, console)
        finally:
            console.close()
        for failure in result.failures:
            _tell(failure)
        if as_json:
            emit_json(_document(result.record))
        elif result.record.status == "FINISHED":
            _print_result(result.record, prepared)
        return max((failure.fault.value for failure in result.failures), key=_severity, default=0)

    guarded(work, as_json=as_json, frame=frame)


def _severity(code: int) -> int:
    """A bug outranks the user's mistake, which outranks the machine's."""
    return {1: 3, 2: 2, 3: 1}.get(code, 0)


def _tell(failure: Failure) -> None:
    if failure.fault is Fault.BUG:
        say(failure.traceback)
    say(f"error: {failure.step}: {failure.message}")


def _document(record: RunRecord) -> dict[str, Any]:
    return {
        "pipeline": record.pipeline,
        "run_id": record.run_id,
        "status": record.status,
        "root": record.root,
        "tracking_uri": record.tracking_uri,
        "steps": [step.model_dump(mode="json") for step in record.steps],
        "errors": record.errors,
    }


def _print_plan(prepared: Prepared) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("step", "status", "why", "key", "CPUs"):
        table.add_column(name, overflow="fold")
    for planned in prepared.plan:
        cpus = f"{planned.step.resources.num_cpus:g}"
        table.add_row(planned.step.name, planned.status, _shortly(planned), planned.key[:12], cpus)
    console = stdout_console()
    console.print(table)
    for line in _order(prepared):
        console.print(line, style="dim", soft_wrap=True)


def _print_estimates(found: Sequence[Estimate]) -> None:
    """What each training will take, a column each, and where the formulas come from."""
    if not found:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("what it takes")
    for one in found:
        table.add_column(one.step, justify="right")
    for name, values in rows(found):
        table.add_row(name, *values)
    console = stdout_console()
    console.print()
    console.print(table)
    for one in found:
        if one.choice:
            console.print(f"{one.step}: {one.choice.reason}.", soft_wrap=True)
    console.print(SOURCES, style="dim", soft_wrap=True)


def _order(prepared: Prepared) -> Iterator[str]:
    """Which independent steps overlap, and which wait for one another."""
    around = neighbours(prepared.plan, prepared.cluster)
    told: set[str] = set()
    beside = []
    for name, (others, _) in around.items():
        told.add(name)  # each pair once
        if later := [other for other in others if other not in told]:
            beside.append(f"{name} beside {', '.join(later)}")
    apart = [name for name, (_, others) in around.items() if others]
    if beside:
        yield f"At the same time, where there is room: {'; '.join(beside)}."
    if apart:
        cpus, gpus = prepared.cluster["CPU"], prepared.cluster["GPU"]
        has = f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
        yield f"One after the other, for together they want more than the {has}: {', '.join(apart)}."


def _shortly(planned: PlannedStep) -> str:
    """The first reasons; all of them are in `fromzero why STEP`."""
    told, more = planned.reasons[:SHOWN_REASONS], len(planned.reasons) - SHOWN_REASONS
    return "; ".join(told) + (f"; and {more} more: fromzero why {planned.step.name}" if more > 0 else "")


def _print_result(record: RunRecord, prepared: Prepared) -> None:
    console = stdout_console()
    last = record.steps[-1]
    store = prepared.store
    folder = store.artifact_folder(last.name, last.key)
    if "comparison.json" in (store.manifest(last.name, last.key) or {"files": {}})["files"]:
        folder = store.fetch(last.name, last.key)
    comparison = folder / "comparison.json"
    if comparison.exists():
        content = json.loads(comparison.read_bytes())
        times = json.loads((folder / "measured.json").read_bytes())
        console.print(comparison_table(content["ways"], times))
        console.print(content["verdict"])
    steps = ", ".join(
        f"{step.name} {clock(float(step.measured.get('seconds') or 0))}"
        if step.status == "ran"
        else f"{step.name} reused"
        for step in record.steps
    )
    console.print(f"\nSteps      {steps}", soft_wrap=True)
    console.print(f"Artifacts  {store.uri}/artifacts", soft_wrap=True)
    if comparison.exists():
        console.print(f"Report     {folder}/comparison.md and comparison.png", soft_wrap=True)
    console.print(f"MLflow     {ui_command_line(prepared)}", soft_wrap=True)


def ui_command_line(prepared: Prepared) -> str:
    """The one command that opens the MLflow UI on this run."""
    words = ["fromzero", "ui"]
    if prepared.config.storage.root != ".fromzero":
        words.append(f"storage.root={prepared.store.uri}")
    if prepared.config.storage.local:
        words.append(f"storage.local={prepared.store.root}")
    if prepared.config.tracking.uri:
        words.append(f"tracking.uri={prepared.config.tracking.uri}")
    return shlex.join(words)


def comparison_table(ways: list[dict[str, Any]], times: dict[str, dict[str, float | None]]) -> Table:
    """The result as a table: one row a way to use the model."""
    table = Table(title="On the test set", title_justify="left", header_style="bold")
    table.add_column("way", no_wrap=True)
    for name in ("accuracy", "95 % interval", "macro-F1", "task FLOPs", "pretraining FLOPs", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for way in ways:
        took = [seconds for seconds in times.get(way["name"], {}).values() if seconds is not None]
        table.add_row(
            way["title"],
            f"{way['accuracy']:.1%}",
            f"{way['accuracy_low']:.1%} – {way['accuracy_high']:.1%}",
            f"{way['macro_f1']:.3f}",
            _flops(way["adaptation_flops"]),
            _flops(way["pretraining_flops"]),
            f"{sum(took):.0f}" if took else "–",
        )
    return table


def _flops(value: float | None) -> str:
    return f"{value:.1e}" if value else "–"
