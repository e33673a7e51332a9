"""What systemd itself reads in the units."""

from __future__ import annotations

import codecs
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from infra.deploy.schedule import Schedule, parse
from infra.deploy.systemd import units

MANAGER = Path("/lib/systemd/systemd")
needs_systemd = pytest.mark.skipif(
    not MANAGER.exists() or shutil.which("systemd-analyze") is None, reason="systemd is not installed"
)


def written(schedule: Schedule, folder: Path) -> list[str]:
    folder.mkdir()
    paths = [folder / Path(file.name).name for file in units.files(schedule)]
    for path, file in zip(paths, units.files(schedule), strict=True):
        path.write_text(file.content, "utf-8")
    return [str(path) for path in paths]


@needs_systemd
@pytest.mark.parametrize("at", ["0 2 * * *", "30 4 1,15 * 5"])
def test_systemd_finds_nothing_wrong(schedule: Schedule, tmp_path: Path, at: str) -> None:
    program = tmp_path / "a $b%c"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    paths = written(replace(schedule, at=parse(at), program=(str(program),)), tmp_path / "units")
    done = subprocess.run(["systemd-analyze", "verify", *paths], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    program.unlink()  # so it was looked for by its right name
    done = subprocess.run(["systemd-analyze", "verify", *paths], capture_output=True, text=True, check=False)
    assert done.returncode and "not executable" in done.stderr


def words_of(command_line: str) -> list[str]:
    """The words of a command line as systemd dumps it: C escapes within double quotes."""
    words = re.findall(r'"((?:[^"\\]|\\.)*)"|(\S+)', command_line)
    quoted = (re.sub(r"\\([$`])", r"\1", word) for word, _ in words)
    decoded = [codecs.escape_decode(word.encode())[0].decode() for word in quoted]  # type: ignore[attr-defined]
    return [word if word else plain for word, (_, plain) in zip(decoded, words, strict=True)]


@needs_systemd
def test_every_word_arrives_as_it_was(schedule: Schedule) -> None:
    """The manager, in its test mode and as another user, says what it read."""
    if os.geteuid() != 0:
        pytest.skip("the manager's test mode needs another user than root: runuser")
    with tempfile.TemporaryDirectory() as name:  # where another user may look
        folder = Path(name)
        folder.chmod(0o777)
        written(schedule, folder / "units")
        variables = [f"XDG_RUNTIME_DIR={folder}", f"SYSTEMD_UNIT_PATH={folder}/units:/usr/lib/systemd/user"]
        command = ["runuser", "-u", "nobody", "--", "env", *variables, str(MANAGER), "--test", "--user"]
        done = subprocess.run([*command, "--unit=fromzero-nightly.service"], capture_output=True, text=True, timeout=60)
    unit = done.stdout.partition("Unit fromzero-nightly.service:")[2].partition("-> Unit ")[0]
    assert f"WorkingDirectory: {schedule.folder}\n" in unit, done.stderr
    line = re.search(r"Command Line: (.*)", unit)
    assert line
    words = [word.replace("$$", "$") for word in words_of(line[1])]  # variables are put in when it runs
    assert words == list(schedule.command)
    assert "Restart: no\n" in unit and "Type: oneshot\n" in unit and "KillMode: mixed\n" in unit
