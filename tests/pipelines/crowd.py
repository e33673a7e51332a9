"""Many processes that start at the same instant on a fresh root, each a command as a user types it.

    python -m tests.pipelines.crowd ROOT NUMBER

Prints a line of JSON for each: its command, its exit code, its document. They are forked from one process that has
imported what they need, so that they meet within milliseconds and not while they import.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from pathlib import Path

COMMANDS = (*["run"] * 30, *["plan"] * 8, *["status"] * 5, *["doctor"] * 5, *["sync"] * 2)
ARGUMENTS = ("smoke", "--json", "task.sample_fraction=0.02")


def main() -> None:
    """See the module."""
    root, number = sys.argv[1], int(sys.argv[2])
    for name in ("run", "status", "doctor", "serving"):
        importlib.import_module(f"pipelines.cli.{name}")
    with tempfile.TemporaryDirectory() as folder:
        waiting, ready = os.pipe()
        children = [_child(index, root, Path(folder), waiting, ready) for index in range(number)]
        os.close(waiting)
        os.close(ready)  # all go
        for index, pid in enumerate(children):
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            out, err = ((Path(folder) / f"{index}.{name}").read_text() for name in ("out", "err"))
            told = {"command": _command(index), "code": code, "document": json.loads(out or "null"), "err": err}
            print(json.dumps(told), flush=True)


def _command(index: int) -> str:
    return COMMANDS[index % len(COMMANDS)]


def _child(index: int, root: str, folder: Path, waiting: int, ready: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.close(ready)
    os.read(waiting, 1)  # until the parent closes its end
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{index}.{name}", os.O_WRONLY | os.O_CREAT), descriptor)
    command = _command(index)
    until = ["--until=task"] if command in ("run", "plan") else []
    sys.argv = ["fromzero", command, *ARGUMENTS, *until, f"storage.root={root}"]
    code = 1
    try:
        from pipelines.cli import main as fromzero

        fromzero()
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise AssertionError("not reached")


if __name__ == "__main__":
    main()
