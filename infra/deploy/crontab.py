"""One line of the user's crontab. It ends in a comment that names the schedule, by which it is found again.

What the line prints goes to a log under storage.root. Secrets, such as FROMZERO_SIGNING_KEY, are variables of the
crontab, on lines of their own above.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess

from infra.deploy.schedule import File, Schedule
from infra.errors import InfrastructureError, UserError

MARKER = "# fromzero-schedule:"


def file(schedule: Schedule) -> File:
    """The line.

    Raises:
        UserError: a word that no crontab can hold.
    """
    log = schedule.root / f"{schedule.name}.log"
    command = " ".join(map(quote, schedule.command))
    line = (
        f"{schedule.at} cd {quote(str(schedule.folder))} && mkdir -p {quote(str(schedule.root))} && "
        f"{command} >> {quote(str(log))} 2>&1 {MARKER} {schedule.name}"
    )
    return File(name="crontab", content=line + "\n")


def quote(word: str) -> str:
    r"""One word for sh on a line of a crontab.

    cron ends a command at `%`, and takes the backslash off `\%`; Debian's also makes one backslash of two. So a word
    with backslashes or line ends is spelled for printf in octal, and no two backslashes ever stand together.

    Raises:
        UserError: it ends in a line end, which `$(...)` would cut off.
    """
    if not re.search(r"[\\\n]", word):
        return shlex.quote(word).replace("%", "\\%")
    if word.endswith("\n"):
        raise UserError(f"{word!r} ends in a line end, which a crontab cannot hold; take it off, or use systemd")
    spelled = re.sub(r"[\\\n'%]", lambda match: f"\\0{ord(match[0]):03o}", word)
    return f"\"$(printf \\%b '{spelled}')\""


def install(schedule: Schedule) -> tuple[list[File], str]:
    """Puts the line into the crontab, in the place of one of the same name; returns it and what is to be said.

    Raises:
        UserError: a word that no crontab can hold.
        InfrastructureError: the crontab cannot be read or written.
    """
    line = file(schedule)
    before = _read()
    _write([*_without(before, schedule.name), line.content])
    return [line], f"the crontab of this user has the line {schedule.name}"


def remove(name: str) -> str:
    """Takes the line of the schedule `name` out of the crontab; returns what is to be said.

    Raises:
        InfrastructureError: the crontab cannot be read or written.
    """
    before = _read()
    after = _without(before, name)
    if after == before:
        return f"the crontab of this user has no line {name}"
    _write(after)
    return f"the line {name} is taken out of the crontab of this user"


def _without(lines: list[str], name: str) -> list[str]:
    return [line for line in lines if not line.rstrip().endswith(f"{MARKER} {name}")]


def _read() -> list[str]:
    done = _crontab("-l")
    if done.returncode and b"no crontab for" in done.stderr:
        return []
    _check(done)
    lines = done.stdout.decode("utf-8", "surrogateescape").splitlines(keepends=True)
    return [line if line.endswith("\n") else line + "\n" for line in lines]


def _write(lines: list[str]) -> None:
    _check(_crontab("-", stdin="".join(lines).encode("utf-8", "surrogateescape")))


def _crontab(argument: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    try:
        environment = {**os.environ, "LC_ALL": "C"}
        return subprocess.run(["crontab", argument], input=stdin, capture_output=True, check=False, env=environment)
    except FileNotFoundError as error:
        raise InfrastructureError("there is no crontab on this machine; install cron, or use systemd") from error


def _check(done: subprocess.CompletedProcess[bytes]) -> None:
    if done.returncode:
        said = " ".join(done.stderr.decode("utf-8", "replace").split()) or f"exit code {done.returncode}"
        raise InfrastructureError(f"crontab: {said}; the crontab is as it was")
