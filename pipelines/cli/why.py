"""`why`: all reasons for what the plan says of one step."""

from __future__ import annotations

import time
from typing import Any, NoReturn

from infra.errors import UserError
from infra.journal.plan import PlannedStep
from pipelines.cli.output import emit_json, guarded, stdout_console
from pipelines.compose import load_config
from pipelines.runner import prepare

VERBS = {"reused": "is reused", "run": "runs", "blocked": "is blocked"}


def why_command(name: str, pipeline: str, overrides: list[str], *, as_json: bool) -> NoReturn:
    """Prints why the step `name` is reused, runs or is blocked."""
    frame: dict[str, Any] = {"pipeline": pipeline, "step": name, "status": None, "reasons": [], "causes": []}

    def work() -> int:
        plan = prepare(pipeline, load_config(pipeline, overrides), overrides).plan
        planned = next((one for one in plan if one.step.name == name), None)
        if planned is None:
            raise UserError(f"{pipeline} has no step {name}; its steps are {', '.join(one.step.name for one in plan)}")
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


def _lines(planned: PlannedStep) -> list[str]:
    name, verb = planned.step.name, VERBS[planned.status]
    if planned.manifest is not None:
        made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(planned.manifest["finished_at"]))
        run = planned.manifest["made_by_run"]
        return [f"{name} {verb}: run {run} made it at {made}, and nothing has changed since (key {planned.key})"]
    reasons = [
        cause.text + (f"   [by way of {' and '.join(cause.through)}]" if cause.through else "")
        for cause in planned.causes
    ]
    return [f"{name} {verb}, because", *(f"  {reason}" for reason in reasons or planned.reasons)]
