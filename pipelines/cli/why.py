"""`why`: all reasons for what the plan says of one step; and `accept`: the old result will do."""

from __future__ import annotations

import time
from typing import Any, NoReturn

from infra.errors import UserError
from infra.journal.acceptance import accept, acceptance_key, candidate
from infra.journal.lock import working
from infra.journal.plan import PlannedStep
from pipelines.cli.output import emit_json, guarded, say, stdout_console
from pipelines.compose import load_config
from pipelines.runner import Prepared, prepare
from pipelines.session import deliver

VERBS = {"reused": "is reused", "run": "runs", "blocked": "is blocked"}


def why_command(name: str, pipeline: str, overrides: list[str], *, as_json: bool) -> NoReturn:
    """Prints why the step `name` is reused, runs or is blocked."""
    frame: dict[str, Any] = {"pipeline": pipeline, "step": name, "status": None, "reasons": [], "causes": []}

    def work() -> int:
        planned = _step(prepare(pipeline, load_config(pipeline, overrides), overrides), name)
        if as_json:
            causes = [{"step": c.step, "text": c.text, "through": list(c.through)} for c in planned.causes]
            facts = {"key": planned.key, "status": planned.status, "reasons": list(planned.reasons), "causes": causes}
            emit_json({**frame, **facts, "errors": []})
        else:
            console = stdout_console()
            for line in _lines(planned):
                console.print(line, soft_wrap=True)
        return 0

    guarded(work, as_json=as_json, frame=frame)


def accept_command(name: str, pipeline: str, overrides: list[str], *, reason: str, as_json: bool) -> NoReturn:
    """Accepts the newest artifact of the step `name` that differs in code alone, and tells MLflow."""
    frame: dict[str, Any] = {"pipeline": pipeline, "step": name, "key": None, "accepted": None}

    def work() -> int:
        prepared = prepare(pipeline, load_config(pipeline, overrides), overrides)
        planned, store = _step(prepared, name), prepared.store
        if planned.manifest is not None:
            raise UserError(f"{name} is reused as it is: there is nothing to accept")
        with working(store.root):
            manifest = candidate(store, planned.step, planned.identity)
            key = acceptance_key(planned.step, planned.identity)
            accept(store, name, key, manifest, list(planned.reasons), reason)
            delivery = deliver(store, prepared.destination, [manifest], [])
        if not delivery.complete:
            say(f"MLflow did not take the record ({delivery.error}); `fromzero sync` delivers it later")
        if as_json:
            emit_json({**frame, "key": planned.key, "accepted": manifest["key"], "errors": []})
        else:
            print(f"{name}: the result {manifest['key']} is taken for the new code's {planned.key}")
        return 0

    guarded(work, as_json=as_json, frame=frame)


def _step(prepared: Prepared, name: str) -> PlannedStep:
    planned = next((one for one in prepared.plan if one.step.name == name), None)
    if planned is None:
        names = ", ".join(one.step.name for one in prepared.plan)
        raise UserError(f"{prepared.pipeline} has no step {name}; its steps are {names}")
    return planned


def _lines(planned: PlannedStep) -> list[str]:
    name, verb = planned.step.name, VERBS[planned.status]
    if planned.manifest is not None:
        made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(planned.manifest["finished_at"]))
        run = planned.manifest["made_by_run"]
        if planned.reasons:
            return [f"{name} {verb}, {'; '.join(planned.reasons)}; run {run} made it at {made} (key {planned.key})"]
        return [f"{name} {verb}: run {run} made it at {made}, and nothing has changed since (key {planned.key})"]
    reasons = [
        cause.text + (f"   [by way of {' and '.join(cause.through)}]" if cause.through else "")
        for cause in planned.causes
    ]
    return [f"{name} {verb}, because", *(f"  {reason}" for reason in reasons or planned.reasons)]
