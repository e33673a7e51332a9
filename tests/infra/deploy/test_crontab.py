"""A crontab line gives every word to the command as it was."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from infra.deploy import crontab
from infra.deploy.schedule import Schedule
from infra.errors import UserError

SHELLS = [shell for shell in ("dash", "bash") if shutil.which(shell)]


def as_cron_reads(line: str, unescaped: str) -> str:
    """The command that cron hands to the shell; `unescaped` are the characters off which it takes a backslash."""
    command = line.rstrip("\n").split(" ", 5)[5]
    assert not re.search(r"(?<!\\)%", command), "ends the command"
    return re.sub(rf"\\([{re.escape(unescaped)}])", r"\1", command)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("unescaped", ["%", "%\\"], ids=["cronie", "debian"])
def test_every_word_arrives_as_it_was(schedule: Schedule, shell: str, unescaped: str) -> None:
    print_words = ("printf", "%s\\0")
    line = crontab.file(replace(schedule, program=print_words)).content
    assert line.count("\n") == 1 and line.startswith("0 2 * * * cd ")
    command = as_cron_reads(line, unescaped)
    done = subprocess.run(
        [shell, "-c", command], cwd="/", env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    log = schedule.root / "fromzero-nightly.log"
    assert log.read_text().split("\0")[:-1] == ["run", "nightly", *schedule.overrides]


def test_a_word_that_no_crontab_can_hold_is_refused(schedule: Schedule) -> None:
    with pytest.raises(UserError, match="ends in a line end, which a crontab cannot hold"):
        crontab.file(replace(schedule, overrides=("prompt.instruction=a\n",)))
