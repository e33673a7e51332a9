"""A systemd timer and its service: system units for root, user units for everybody else.

A clock time that is skipped when summer time begins is skipped by systemd too; that night has no run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from infra.deploy.schedule import File, Schedule
from infra.errors import InfrastructureError, StorageError

TEMPLATES = Path(__file__).resolve().parent
SUFFIXES = ("service", "timer")
RUNNING = {"running", "degraded", "starting", "maintenance", "initializing", "stopping"}
"""What `systemctl is-system-running` says where there is a manager to talk to."""
_PLAIN = re.compile(r"[\w@/.,:=+-]+")


def is_user() -> bool:
    """Whether units are the user's own, not the system's."""
    return os.geteuid() != 0


def unit_folder() -> Path:
    """Where units are installed."""
    if not is_user():
        return Path("/etc/systemd/system")
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"


def files(schedule: Schedule) -> list[File]:
    """The service and the timer."""
    program, *words = schedule.command
    values = {
        "PIPELINE": schedule.pipeline,
        "WORKING_DIRECTORY": _percent(str(schedule.folder)),
        "ENVIRONMENT_FILE": "%E/fromzero/environment",  # below /etc, or the user's ~/.config
        # Variables are not put in for the name of the program, so its dollars stay.
        "COMMAND": " ".join((quote(program).replace("$$", "$"), *map(quote, words))),
        "AT": str(schedule.at),
        "ON_CALENDAR": "\n".join(f"OnCalendar={line}" for line in schedule.at.on_calendar()),
    }
    return [
        File(name=str(unit_folder() / f"{schedule.name}.{suffix}"), content=_filled(f"fromzero.{suffix}.in", values))
        for suffix in SUFFIXES
    ]


def _filled(template: str, values: Mapping[str, str]) -> str:
    text = (TEMPLATES / template).read_text("utf-8")
    return re.sub(r"@([A-Z_]+)@", lambda match: values[match[1]], text)


def quote(word: str) -> str:
    """One word of a command line, such that systemd hands it on as it is; see systemd.service(5), COMMAND LINES."""
    if _PLAIN.fullmatch(word):
        return word
    escaped = _percent(word.replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$"))
    return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda match: f"\\x{ord(match[0]):02x}", escaped) + '"'


def _percent(text: str) -> str:
    """Without specifiers."""
    return text.replace("%", "%%")


def install(schedule: Schedule) -> tuple[list[File], str]:
    """Writes the units and enables the timer; returns them and what is to be said.

    Raises:
        StorageError: a unit cannot be written.
        InfrastructureError: the timer cannot be enabled; the units are written.
    """
    units = files(schedule)
    for unit in units:
        path = Path(unit.name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(unit.content, "utf-8")
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error.strerror}") from error
    timer = f"{schedule.name}.timer"
    told = f"{unit_folder() / timer} is enabled"
    if _is_running():
        _systemctl("daemon-reload")
        _systemctl("enable", timer)
        _systemctl("restart", timer)  # one that is there already would keep its old time
    else:
        _systemctl("enable", timer)
        told += "; systemd does not run here: it starts with the next boot"
    return units, told + ("; while you are not logged in it runs after: loginctl enable-linger" if is_user() else "")


def remove(name: str) -> str:
    """Stops and removes the units of the schedule `name`; returns what is to be said.

    Raises:
        StorageError: a unit cannot be removed.
        InfrastructureError: the timer cannot be disabled; nothing is removed.
    """
    paths = [path for suffix in SUFFIXES if (path := unit_folder() / f"{name}.{suffix}").exists()]
    if not paths:
        return f"there is no {name}.timer in {unit_folder()}"
    running = _is_running()
    if shutil.which("systemctl"):
        _systemctl("disable", *(["--now"] if running else []), f"{name}.timer")
    for path in paths:
        try:
            path.unlink()
        except OSError as error:
            raise StorageError(f"{path} cannot be removed: {error.strerror}") from error
    if running:
        _systemctl("daemon-reload")
    return f"{name}.timer and {name}.service are removed from {unit_folder()}"


def _scope() -> list[str]:
    return ["--user"] if is_user() else []


def _is_running() -> bool:
    if shutil.which("systemctl") is None:
        return False
    done = subprocess.run(["systemctl", *_scope(), "is-system-running"], capture_output=True, text=True, check=False)
    return done.stdout.strip() in RUNNING


def _systemctl(*arguments: str) -> None:
    command = ["systemctl", *_scope(), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise InfrastructureError(
            f"the units are in {unit_folder()}, but there is no systemctl here; use --install cron, or enable them "
            f"where systemd runs: {' '.join(command)}"
        ) from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0]
        raise InfrastructureError(f"{' '.join(command)}: {said}; the units are in {unit_folder()}")
