"""`schedule`: what runs a pipeline every night, printed or installed."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NoReturn

from infra.deploy import crontab
from infra.deploy.kuberay import cronjob
from infra.deploy.kuberay.cronjob import Target
from infra.deploy.schedule import CronExpression, File, Schedule, parse
from infra.deploy.systemd import units
from infra.errors import ConfigError, UserError
from infra.storage.store import folder_of, is_uri
from pipelines.cli.output import emit_json, guarded, say
from pipelines.compose import HOME_VARIABLE, load_config
from pipelines.config import PipelineConfig
from pipelines.submission import make_request

NUM_NEXT = 3
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?")
"""Of a CronJob, a namespace, a Secret; and safe for a unit and a comment."""
_ADDRESS = re.compile(r"https?://[^\s/@]+(/\S*)?")


def schedule_command(
    pipeline: str,
    overrides: list[str],
    *,
    at: str | None,
    name: str | None,
    actions: Mapping[str, str | None],
    target: Target,
    as_json: bool,
) -> NoReturn:
    """Prints, installs or removes the schedule of a pipeline.

    Args:
        pipeline: its name.
        overrides: `key=value`.
        at: a cron expression.
        name: of the schedule.
        actions: what to do it with (systemd, cron, kubernetes), by what is to be done: print, install or remove.
        target: the cluster, for kubernetes.
        as_json: prints one JSON document.
    """
    name = name or f"fromzero-{pipeline}"
    frame: dict[str, Any] = {"name": name, "pipeline": pipeline, "at": at, "next": [], "files": []}

    def work() -> int:
        chosen = [(action, kind) for action, kind in actions.items() if kind is not None]
        config, expression = _checked(pipeline, overrides, at, name, chosen, target)
        (action, kind), files, told = chosen[0], [], ""
        if action == "remove" or config is None or expression is None:
            told = {"systemd": units, "cron": crontab}[kind].remove(name)
        elif kind == "kubernetes":
            files = [cronjob.file(name, expression, pipeline, tuple(overrides), target)]
        else:
            schedule = _schedule(name, expression, pipeline, overrides, config)
            if action == "install":
                files, told = {"systemd": units, "cron": crontab}[kind].install(schedule)
            else:
                files = units.files(schedule) if kind == "systemd" else [crontab.file(schedule)]
        times = []
        if expression is not None:
            zone = target.zone() if kind == "kubernetes" else None
            times = [f"{time:%Y-%m-%d %H:%M}" for time in expression.next_times(NUM_NEXT, zone)]
            say(f"next: {', '.join(times)} ({zone.key if zone else 'local time'})")
        if as_json:
            emit_json({**frame, "next": times, "files": [asdict(file) for file in files], "errors": []})
        elif action == "print":
            sys.stdout.write(_text(files))
        if told:
            say(told)
        return 0

    guarded(work, as_json=as_json, frame=frame)


def _checked(
    pipeline: str,
    overrides: list[str],
    at: str | None,
    name: str,
    chosen: list[tuple[str, str]],
    target: Target,
) -> tuple[PipelineConfig | None, CronExpression | None]:
    """The config and the time, which a removal has not.

    Raises:
        ConfigError: every mistake, a line each.
    """
    problems = list(_option_problems(name, chosen, target))
    config, expression = None, None
    if [action for action, _ in chosen] == ["remove"]:
        if at or overrides:
            problems.append("--remove takes a name alone: leave --at and the config values out")
    else:
        try:
            config = load_config(pipeline, overrides)
            if ("print", "kubernetes") in chosen:  # as `submit` will, that night
                make_request(pipeline, overrides, None)
        except ConfigError as error:
            problems += error.problems
        try:
            expression = parse(at or "")
        except UserError as error:
            problems.append(str(error) if at else "--at is missing; every night at two is --at '0 2 * * *'")
    if problems:
        raise ConfigError(*problems)
    return config, expression


def _option_problems(name: str, chosen: list[tuple[str, str]], target: Target) -> Iterator[str]:
    if len(chosen) != 1:
        yield "say one of --print systemd|cron|kubernetes, --install systemd|cron, --remove systemd|cron"
    given = {field.name: value for field in fields(target) if (value := getattr(target, field.name)) is not None}
    options = [f"--{option.replace('_', '-')}" for option in given]
    if options and ("print", "kubernetes") not in chosen:
        yield f"{', '.join(options)}: for --print kubernetes alone; systemd and cron run here, by this machine's clock"
    for option, value in {"name": name, **given}.items():
        if option in ("name", "namespace", "token_secret") and not _NAME.fullmatch(value):
            yield f"--{option.replace('_', '-')}: {value!r} is not allowed: a-z, 0-9 and -, 52 characters at most"
    if target.address is not None and not _ADDRESS.fullmatch(target.address):
        yield (
            f"--address: {target.address!r} is not allowed: the URL of the cluster's dashboard, without a password, "
            "such as http://fromzero-head-svc:8265"
        )
    if ("print", "kubernetes") in chosen:
        try:
            target.zone()
        except UserError as error:
            yield str(error)


def _schedule(name: str, at: CronExpression, pipeline: str, overrides: list[str], config: PipelineConfig) -> Schedule:
    """What this command knows of this machine and its environment, and a timer at night does not."""
    home = os.environ.get(HOME_VARIABLE)
    root = folder_of(config.storage.root, config.storage.local)
    if home and config.storage.root == home:
        overrides = [*overrides, f"storage.root={home if is_uri(home) else root}"]
    return Schedule(
        name=name,
        at=at,
        pipeline=pipeline,
        overrides=tuple(overrides),
        program=tuple(_program()),
        folder=Path.cwd(),
        root=root,
    )


def _program() -> Iterator[str]:
    """How this process was started: by its entry point, or as a module with what was on PYTHONPATH."""
    program = Path(sys.argv[0])
    if program.name == "fromzero" and (found := shutil.which(program)):
        yield str(Path(found).absolute())
        return
    if path := os.environ.get("PYTHONPATH"):
        folders = [str(Path(folder).absolute()) for folder in path.split(os.pathsep) if folder]
        yield from (shutil.which("env") or "/usr/bin/env", f"PYTHONPATH={os.pathsep.join(folders)}")
    yield from (sys.executable, "-m", "pipelines.cli")


def _text(files: list[File]) -> str:
    """One file as it is; several with the name of each above it."""
    if len(files) == 1:
        return files[0].content
    return "\n".join(f"# {file.name}\n{file.content}" for file in files)
