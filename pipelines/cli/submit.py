"""`submit` and `stop`, and `status` of what was submitted."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from rich.table import Table

from infra.cluster.jobs import Jobs, Submission
from infra.cluster.sources import sources
from infra.errors import FromzeroError, UserError
from infra.journal import runs
from infra.journal.runs import RunRecord
from infra.storage.store import Store
from pipelines.cli.console import clock
from pipelines.cli.output import emit_json, guarded, say, stdout_console
from pipelines.submission import make_request

STOP_PATIENCE_SECONDS = 600.0


def submit_command(
    pipeline: str, overrides: list[str], *, address: str, until: str | None, detach: bool, as_json: bool
) -> NoReturn:
    """Runs the pipeline as a job of the cluster, or joins the job that does; follows it, exits as the run does."""
    frame: dict[str, Any] = {"pipeline": pipeline, "submission_id": None, "address": address, "status": None}

    def work() -> int:
        request = make_request(pipeline, overrides, until)
        jobs = Jobs(address)
        with sources() as folder:
            one, is_new = jobs.submit(request, folder)
        frame.update(submission_id=one.id, joined=not is_new, status=one.status)
        say(f"{one.id} {'is submitted' if is_new else 'goes on already; joined it'}")
        hints = [f"{what} fromzero {what.strip(': ')} {one.id} --address {address}" for what in ("status:", "stop:  ")]
        if detach:
            for hint in ("follow: the same command without --detach", *hints):
                say(hint)
            if as_json:
                emit_json({**frame, "errors": []})
            return 0
        try:
            one = jobs.follow(one.id, _print)
        except KeyboardInterrupt:
            say(f"{one.id} goes on")
            for hint in ("follow: the same command again", *hints):
                say(hint)
            if as_json:
                emit_json({**frame, "errors": ["interrupted; the job goes on"]})
            return 130
        frame.update(status=one.status)
        problem = _problem(one)
        if problem:
            say(f"error: {problem}")
        if as_json:
            emit_json({**frame, "errors": [problem] if problem else []})
        return one.code

    guarded(work, as_json=as_json, frame=frame)


def stop_command(wanted: str, *, address: str, as_json: bool) -> NoReturn:
    """Ends a submission in order, and waits for its end."""
    frame: dict[str, Any] = {"submission_id": wanted, "address": address, "status": None}

    def work() -> int:
        jobs = Jobs(address)
        one = jobs.get(wanted)
        if one.has_ended:
            say(f"{one.id} has ended before: {one.status}")
        else:
            say(f"{one.id} is told to stop; its run closes itself")
            one = jobs.stop(one.id, STOP_PATIENCE_SECONDS)
            say(f"{one.id}: {one.status}; finished steps and checkpoints are kept, submit it again to go on")
        record = _record(one)
        if as_json:
            emit_json({**frame, **_document(one, record), "errors": []})
        return 0

    guarded(work, as_json=as_json, frame=frame)


def submissions_command(wanted: list[str], *, address: str, as_json: bool) -> NoReturn:
    """Lists the submissions of a cluster, or shows one."""

    def work() -> int:
        if len(wanted) > 1 or any("=" in word for word in wanted):
            raise UserError(f"status --address takes one submission at most, not {' '.join(wanted)}")
        jobs = Jobs(address)
        found = [jobs.get(one) for one in wanted] or jobs.submissions()
        records = {one.id: _record(one) for one in found}
        if as_json:
            documents = [_document(one, records[one.id]) for one in found]
            emit_json({"address": address, "submissions": documents, "errors": []})
            return 0
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("submission", "pipeline", "status", "started", "took", "run", "steps", "problem"):
            table.add_column(name, overflow="fold")
        for one in found:
            record = records[one.id]
            table.add_row(one.id, one.pipeline, one.status, *_times(one), *_run(record), _problem(one) or "")
        stdout_console().print(table if found else f"no submissions at {address}")
        return 0

    guarded(work, as_json=as_json, frame={"address": address, "submissions": []})


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _problem(one: Submission) -> str | None:
    """One line on an end that is not a good one."""
    if not one.has_ended or one.status == "SUCCEEDED":
        return None
    if one.status == "STOPPED":
        return f"{one.id} was stopped; submit it again to go on"
    if one.code == one.exit_code:
        return f"{one.id} ended with exit code {one.exit_code}; its log says why"
    why = f"exit code {one.exit_code}" if one.exit_code is not None else " ".join(one.message.split())[:300]
    return f"{one.id} died ({why}); finished steps and checkpoints are kept, submit it again to go on"


def _record(one: Submission) -> RunRecord | None:
    """The run of a submission, where its root is reachable from here; one whose job is over is closed."""
    if one.root is None:
        return None
    try:
        store = Store.open(one.root, writes=False)
        record = next((record for record in runs.load_all(store) if record.submission_id == one.id), None)
    except FromzeroError as error:
        say(f"the run of {one.id} cannot be seen from here: {error}")
        return None
    if record is not None and record.status == "RUNNING" and one.has_ended:
        try:
            return runs.close_killed(store, record)
        except FromzeroError as error:
            say(f"the record of run {record.id} cannot be closed from here: {error}")
    return record


def _document(one: Submission, record: RunRecord | None) -> Mapping[str, Any]:
    return {
        "submission_id": one.id,
        "pipeline": one.pipeline,
        "status": one.status,
        "started_at": one.started_at,
        "ended_at": one.ended_at,
        "exit_code": one.code if one.has_ended else None,
        "root": one.root,
        "run": record.model_dump(mode="json") if record else None,
    }


def _times(one: Submission) -> tuple[str, str]:
    if one.started_at is None:
        return "-", "-"
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.started_at))
    return started, clock((one.ended_at or time.time()) - one.started_at)


def _run(record: RunRecord | None) -> tuple[str, str]:
    if record is None:
        return "-", "-"
    made = sum(step.status == "ran" for step in record.steps)
    return f"{record.id} {record.status}", f"{made} ran, {len(record.steps) - made} other"
