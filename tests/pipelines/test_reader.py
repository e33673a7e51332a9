"""Who may read a root and not write to it sees its runs, its lineage and its versions; nothing of it changes.

The modes of files mean nothing to root until `setpriv` takes that away.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.storage.store import Store
from infra.tracking.tracker import Destination
from infra.tracking.writer import KEY_TAG
from tests.infra.toy_models import make
from tests.pipelines.conftest import PROJECT


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """A root that may be read alone, with a run whose process died."""
    with tempfile.TemporaryDirectory(prefix="fromzero-read-") as name:
        folder = Path(name) / "root"
        (Path(name) / "data").mkdir()
        (Path(name) / "data" / "a.txt").write_text("one\n")
        keys = make(Store.open(str(folder)), "r1", Path(name) / "data", 0.1)
        uri = f"sqlite:///{folder}/mlflow.db"
        client = Destination(uri=uri, experiment="fromzero", artifact_location=None).open().client
        client.create_registered_model("toy-classifier")
        client.create_model_version("toy-classifier", str(folder), tags={KEY_TAG: keys["classify"]})
        client.set_registered_model_alias("toy-classifier", "champion", "1")
        record = json.loads((folder / "runs" / "r1.json").read_text())
        (folder / "runs" / "r1.json").write_text(json.dumps({**record, "status": "RUNNING", "process": {}}))
        for path in [Path(name), *Path(name).rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield folder
        for path in [Path(name), *Path(name).rglob("*")]:
            path.chmod(0o755)


@pytest.mark.parametrize("command", [("status",), ("lineage", "classify"), ("lineage", "toy-classifier@champion")])
def test_what_is_there_is_shown(command: tuple[str, ...], root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    words = [sys.executable, "-m", "pipelines.cli", *command, "--json", f"storage.root={root}"]
    if os.geteuid() == 0:
        words = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *words]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert not shown["errors"]
    if command == ("status",):
        assert [run["status"] for run in shown["runs"]] == ["RUNNING"]  # its owner's next run closes it
    else:
        assert shown["nodes"]
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
