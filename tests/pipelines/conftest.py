"""Runs the command line as a user does: a process of its own, its output and its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 560


@dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be one JSON document."""
        return json.loads(self.out)


Cli = Callable[..., Done]


def run_cli(*arguments: str, cwd: Path, stdin: str | None = None) -> Done:
    """Runs `fromzero` in `cwd`."""
    environment = {name: value for name, value in os.environ.items() if name != "FROMZERO_HOME"}
    environment["PYTHONPATH"] = str(PROJECT)
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *arguments],
        cwd=cwd,
        env=environment,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """`cli("run", "smoke", ...)` in a folder of the test's own."""
    return lambda *arguments, stdin=None: run_cli(*arguments, cwd=tmp_path, stdin=stdin)


@dataclass(frozen=True)
class Smoke:
    """The smoke run that several tests look into."""

    root: Path
    result: Done


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Smoke:
    """`fromzero run smoke --json`, once; on a Ray of its own, wherever RAY_ADDRESS leads."""
    folder = tmp_path_factory.mktemp("smoke")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_ADDRESS", "127.0.0.1:9")
        result = run_cli("run", "smoke", "--json", f"storage.root={folder / 'root'}", cwd=folder)
    assert result.code == 0, result.err + result.out
    return Smoke(folder / "root", result)
