"""The project's sources as a folder that is sent to a cluster: from a checkout, and nothing else of it.

An installed `fromzero` sends nothing: the nodes have an image with the same. From a checkout its four packages go
along, config files and default data included (6 MB), so that the code that runs is the one that lies here; `.git`,
`.venv`, `.fromzero` and whatever else lies beside them stay.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from infra.errors import UserError
from infra.journal import git

PROJECT = Path(__file__).resolve().parents[2]
PACKAGES = ("pipelines", "components", "infra", "conf")
MAX_MIB = 100
"""The head keeps what is sent in its memory; Ray itself refuses 512 MiB."""


@contextlib.contextmanager
def sources(project: Path = PROJECT) -> Iterator[Path | None]:
    """The folder to send; None where the project is installed.

    Raises:
        UserError: it is too large.
    """
    if not (project / "pyproject.toml").is_file():
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="fromzero-sources-") as name:
        folder = Path(name)
        for package in PACKAGES:
            ignored = shutil.ignore_patterns("__pycache__", ".*")
            shutil.copytree(project / package, folder / package, ignore=ignored)
        (folder / git.RECORD).write_text(json.dumps(git.commit()))
        sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
        if sum(sizes.values()) > MAX_MIB * 2**20:
            largest = max(sizes, key=lambda path: sizes[path])
            raise UserError(
                f"{', '.join(PACKAGES)} under {project} are {sum(sizes.values()) / 2**20:.0f} MiB, at most {MAX_MIB} "
                f"are sent to a cluster; the largest is {largest.relative_to(folder)}: put data where the cluster's "
                "nodes reach it, and name its path"
            )
        yield folder
