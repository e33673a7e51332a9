"""Bad input: one clear line and the right exit code, a counted reject for a bad row, and no artifact that lies.

The command line runs in this process, so that all tests share one Ray.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.cli import main
from pipelines.runner import prepare
from tests.pipelines.conftest import Done

Invoke = Callable[..., Done]
WORDS = ("red", "green", "blue", "sea", "sky", "rose", "leaf", "stone")


@pytest.fixture
def invoke(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], ray_cluster: Mapping[str, Any]
) -> Invoke:
    """`invoke("run", ...)` in a folder with a small good task and corpus."""
    rows = [{"text": f"the {a} {b} number {n}", "label": "ab"[n % 2]} for n in range(8) for a in WORDS for b in WORDS]
    (tmp_path / "good.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, root: str = "root") -> Done:
        given = ["fromzero", *arguments]
        if arguments[0] == "run" and len(arguments) > 1:
            defaults = {
                "task.train": "good.jsonl",
                "corpus.sources": "[{path: good.jsonl}]",
                "storage.root": root,
                "tracking.flush_timeout_seconds": "0",
            }
            given += [f"{k}={v}" for k, v in defaults.items() if not any(a.startswith(f"{k}=") for a in arguments)]
        monkeypatch.setattr(sys, "argv", given)
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capfd.readouterr()
        return Done(int(caught.value.code or 0), captured.out, captured.err)

    return call


def errors(done: Done) -> list[str]:
    return [line for line in done.err.splitlines() if line.startswith("error: ")]


def artifacts(root: Path) -> set[str]:
    return {path.parent.parent.name for path in root.glob("artifacts/*/*/manifest.json")}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("task.train=nowhere.jsonl", "task.train: nowhere.jsonl matches no file"),
        ("corpus.sources=[{path: none/*.txt}]", "corpus.sources[0].path: none/*.txt matches no file"),
        ("pretrain_mlm.stepz=3", "pretrain_mlm.stepz: unknown key; did you mean pretrain_mlm.steps?"),
        ("pretrain_mlm.steps=many", "pretrain_mlm.steps: 'many' is not allowed"),
        ("pretrain_clm.global_batch_size=15", "pretrain_clm.global_batch_size=15 must be a multiple of"),
        ("storage.root=good.jsonl", "storage.root: "),
        ("corpus=none", "corpus=none: conf/corpus/ has no such file"),
    ],
)
def test_the_users_mistake_is_one_line_and_exit_2(invoke: Invoke, argument: str, message: str) -> None:
    done = invoke("run", "smoke", argument)
    assert done.code == 2 and len(errors(done)) == 1 and message in errors(done)[0], done.err
    assert "Traceback" not in done.err and not done.out


def test_every_mistake_is_told_at_once_and_json_stays_one_document(invoke: Invoke) -> None:
    done = invoke("run", "smoke", "--json", "seed=x", "pretrain_mlm.nope=1")
    assert done.code == 2 and len(done.json["errors"]) == 2 and done.json["status"] == "FAILED"
    wrong_option = invoke("run", "--nope", "--json")
    assert wrong_option.code == 2 and wrong_option.json["errors"]


def latin(path: Path) -> None:
    path.write_bytes("text\ncaf\xe9\n".encode("latin-1") * 50)


def truncated(path: Path) -> None:
    path.write_bytes(gzip.compress(b"some text\n" * 5000, mtime=0)[:-20])


def bomb(path: Path) -> None:
    with pa.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write(bytes(20_000_000))


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("empty.txt", lambda path: path.write_text("\n \n\n"), "0 of 3 rows are left as documents"),
        ("latin.txt", latin, "latin.txt"),
        ("cut.txt.gz", truncated, "cut.txt.gz"),
        ("bomb.jsonl.zst", bomb, "corpus.max_decompressed_bytes"),
    ],
)
def test_a_corpus_that_cannot_be_used_fails_its_step_and_leaves_no_artifact(
    invoke: Invoke, tmp_path: Path, name: str, write: Callable[[Path], None], message: str
) -> None:
    write(tmp_path / name)
    done = invoke(
        "run",
        "smoke",
        f"corpus.sources=[{{path: {name}}}]",
        "corpus.sample_fraction=1",
        "corpus.max_decompressed_bytes=1000000",
    )
    assert done.code == 2 and len(errors(done)) == 1 and message in errors(done)[0], done.err
    assert artifacts(tmp_path / "root") == {"task"}


def test_bad_rows_are_counted_and_kept(invoke: Invoke, tmp_path: Path) -> None:
    """A line that is no JSON, one without the field, an unknown label: then the corpus fails, so that no more runs."""
    good = (tmp_path / "good.jsonl").read_text()
    bad = 'not json\n{"label": "a"}\n{"text": "t", "label": "zzz"}\n'
    (tmp_path / "bad.jsonl").write_text(good + bad)
    (tmp_path / "empty.txt").write_text("\n")
    done = invoke(
        "run",
        "smoke",
        "--json",
        "task.train=bad.jsonl",
        "task.labels=[a, b]",
        "task.sample_fraction=1",
        "corpus.sources=[{path: empty.txt}]",
    )
    task = done.json["steps"][0]
    dropped = {name: value for name, value in task["metrics"].items() if name.startswith("dropped_")}
    assert task["status"] == "ran" and sum(dropped.values()) == 3, dropped
    assert dropped["dropped_label_not_in_task"] == 1
    folder = tmp_path / "root" / "artifacts" / "task" / task["key"]
    assert len(pq.read_table(folder / "rejects.parquet")) == 3
    blocked = {step["name"] for step in done.json["steps"] if step["status"] == "blocked"}
    assert done.code == 2 and {"tokenizer", "pretrain_mlm", "compare"} <= blocked


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """`small_disk("size=2m")`: a mounted tmpfs; as root chmod stops nobody."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
        if done.returncode:
            pytest.skip(f"cannot mount a tmpfs here: {done.stderr.decode().strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def test_a_read_only_root_is_told_before_anything_starts(invoke: Invoke, small_disk: Callable[[str], Path]) -> None:
    done = invoke("run", "smoke", root=str(small_disk("size=1m,ro")))
    assert done.code == 2 and len(errors(done)) == 1 and "storage.root" in errors(done)[0], done.err


def test_a_disk_that_fills_is_exit_3_and_leaves_no_half_artifact(
    invoke: Invoke, small_disk: Callable[[str], Path]
) -> None:
    folder = small_disk("size=2m")
    done = invoke(
        "run",
        "smoke",
        "corpus.sources=[{path: conf:data/wordnet/glosses.jsonl.gz}]",
        "corpus.sample_fraction=1",
        root=str(folder),
    )
    assert done.code == 3, done.err
    assert all("no space left on the disk" in line for line in errors(done)) and errors(done), done.err
    from pipelines.compose import load_config

    whole = prepare("smoke", load_config("smoke", [f"storage.root={folder}", "task.train=good.jsonl"]))
    assert all(planned.status in ("run", "reused") for planned in whole.plan)
