"""The project's git commit, for the record of a run."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
RECORD = "commit.json"
"""Beside the packages, where they were sent to a cluster: what `commit` said of the checkout that they came from."""


def commit() -> dict[str, str]:
    """`git_commit` and `git_dirty`; empty where the project does not lie in a git checkout."""
    if (PROJECT / RECORD).is_file():
        return {str(name): str(value) for name, value in json.loads((PROJECT / RECORD).read_bytes()).items()}
    try:
        head = _git("rev-parse", "HEAD")
        return {"git_commit": head, "git_dirty": str(bool(_git("status", "--porcelain"))).lower()}
    except (OSError, subprocess.SubprocessError):
        return {}


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(PROJECT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
