"""Python loads this module at the start of every process of a run under test; it kills one of them at a chosen moment.

`FROMZERO_FAULT` holds JSON: `event`, an audit event of CPython (`open`, `os.rename`, `os.mkdir` ...), raised just
before it is done; `pattern`, a regular expression that its arguments match; `nth`, which of the matching events of the
whole run it is; `victim`, who gets `signal` (see VICTIMS; `self` is the process of the event); `folder`, where the
harness and the processes meet.
"""

import json
import os
import re
import signal
import sys
from pathlib import Path

VICTIMS = {
    "driver": r"-m pipelines\.cli",
    "tracker": r"^ray::TrackerActor",
    "step": r"^ray::(task|corpus|tokenizer|token_shards|pretrain_mlm|finetune)\b",
    "worker": r"^ray::RayTrainWorker",
    "trial": r"^ray::(ResourceTrainable|UnitTrainable)",
    "raylet": r"/raylet/raylet ",
    "head": r"/gcs/gcs_server ",
    "machine": r"",
}


def install(fault: dict) -> None:
    pattern, folder, inside = re.compile(fault["pattern"]), Path(fault["folder"]), False

    def hook(event: str, arguments: tuple) -> None:
        nonlocal inside
        if event != fault["event"] or inside:
            return
        place = " -> ".join(str(one) for one in arguments[:2])
        if not pattern.search(place):
            return
        inside = True
        try:
            if count(folder / "events") == fault["nth"]:
                kill(fault["victim"], folder, place, fault.get("signal", "SIGKILL"))
        finally:
            inside = False

    sys.addaudithook(hook)


def count(path: Path) -> int:
    """Which of the run's matching events this is, over all its processes."""
    descriptor = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    try:
        os.write(descriptor, b".")
        return os.lseek(descriptor, 0, os.SEEK_CUR)
    finally:
        os.close(descriptor)


def kill(victim: str, folder: Path, place: str, name: str) -> None:
    import psutil

    driver = psutil.Process(int((folder / "driver.pid").read_text()))
    family = [driver, *driver.children(recursive=True)]
    if victim == "self":
        found = [psutil.Process()]
    else:
        found = [process for process in family if re.search(VICTIMS[victim], " ".join(process.cmdline()))]
    with (folder / "killed").open("w") as stream:
        checkpoint = newest_checkpoint(folder.parent / "root")
        json.dump({"place": place, "pids": [process.pid for process in found], "checkpoint": checkpoint}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    found.sort(key=lambda process: process.pid == os.getpid())  # this one last
    for process in found:
        process.send_signal(getattr(signal, name))


def newest_checkpoint(root: Path) -> int | None:
    """The training step of the newest complete checkpoint of an unfinished training, 0 without any; None before it has
    begun and after it has come to its end."""
    works = list((root / "work" / "pretrain_mlm").glob("*"))
    if not works or (works[0] / "export").is_dir():
        return None
    found = sorted(works[0].glob("checkpoints/step_*/manifest.json"))
    return int(found[-1].parent.name[5:12]) if found else 0


if os.environ.get("FROMZERO_FAULT"):
    install(json.loads(os.environ["FROMZERO_FAULT"]))
