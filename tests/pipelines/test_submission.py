"""What a submission is known by, what its job runs, and what is refused before anything is sent."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import pytest

from infra.cluster.sources import sources
from infra.errors import ConfigError, UserError
from pipelines.submission import make_request
from tests.pipelines.conftest import PROJECT, Cli

ROOT = "storage.root=/shared/fromzero"


@pytest.fixture(autouse=True)
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FROMZERO_HOME", raising=False)


def name(*overrides: str, until: str | None = None) -> str:
    """The submission id."""
    return make_request("smoke", [ROOT, *overrides], until).run


def test_its_name_is_the_pipeline_and_what_it_makes() -> None:
    different = {
        name(),
        name("seed=1"),
        name(until="corpus"),
        name("storage.root=/elsewhere"),
        name("corpus.sources=[{path: /none/a.txt}]"),
        name("corpus.sources=[{path: /none/b.txt}]"),
    }
    assert len(different) == 6 and all(re.fullmatch("smoke-[0-9a-f]{32}", one) for one in different)


def test_execution_settings_join_the_run_that_goes_on() -> None:
    settings = ("cluster.num_workers=4", "pretrain_mlm.zero_stage=2", "tracking.uri=http://mlflow:5000")
    assert name("cluster=gpu_cluster", *settings) == name()


def test_raw_files_that_are_seen_from_here_count_without_being_read(tmp_path: Path) -> None:
    text, source = tmp_path / "a.txt", f"corpus.sources=[{{path: {tmp_path}}}]"
    text.write_text("one")
    before = name(source)
    assert name(source) == before
    os.utime(text, ns=(1, 1))
    assert name(source) != before
    text.unlink()
    (tmp_path / "huge.txt").touch()
    os.truncate(tmp_path / "huge.txt", 2**40)  # would take hours to read
    assert name(source) != before


def test_its_job_runs_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    template = "prompt.template=评论：{{text}}\n类别：$HOME `id` 'x' {{label}}"
    request = make_request("smoke", [template], "task")
    words = shlex.split(request.entrypoint)
    expected = ["run", "smoke", template, "cluster.address=auto", "--until=task"]
    assert words == ["exec", "python", "-m", "pipelines.cli", *expected] and request.root is None
    monkeypatch.setenv("FROMZERO_HOME", "/shared/home")
    request = make_request("smoke", [], None)
    assert request.root == "/shared/home" and shlex.split(request.entrypoint)[-1] == "storage.root=/shared/home"
    assert set(request.variables) == {"RAY_JOB_STOP_WAIT_TIME_S"}


def test_every_mistake_is_told_before_anything_is_sent() -> None:
    with pytest.raises(ConfigError) as caught:
        make_request("nightly", ["storage.root=here", "cluster.address=auto", "task.train=~/a.jsonl"], "nothing")
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "cluster.address",
        "storage.root",
        "task.train",
        "corpus.sources[0].path",
    ]
    with pytest.raises(ConfigError, match="--until nothing: smoke has no such step; its steps are task, corpus"):
        make_request("smoke", [], "nothing")


@pytest.mark.parametrize("command", [("submit", "smoke", ROOT), ("status",), ("stop", "smoke")])
@pytest.mark.parametrize(
    ("address", "code", "message"),
    [
        ("http://127.0.0.1:9", 3, "http://127.0.0.1:9 does not answer"),
        ("http://me:secret@ray", 2, "--address: 'http://me:secret@ray' is not allowed"),
        ("ray-head:8265", 2, "--address: 'ray-head:8265' is not allowed"),
    ],
)
def test_an_address_that_is_none_is_one_clear_line(
    cli: Cli, command: tuple[str, ...], address: str, code: int, message: str
) -> None:
    done = cli(*command, "--address", address)
    assert done.code == code and done.err.startswith(f"error: {message}") and done.err.count("\n") == 1, done.err


def test_a_relative_root_is_refused_in_a_job(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"metadata": {"job_submission_id": "smoke-1"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    done = cli("run", "smoke")
    assert done.code == 2 and done.err.startswith("error: storage.root: .fromzero is relative, and the folder of a job")


def checkout(folder: Path) -> Path:
    """A small project with what lies around in one."""
    for path in ("pipelines/a.py", "components/b.py", "infra/c.py", "conf/d.yaml", "infra/__pycache__/c.pyc"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(path)
    for path in (".env", "infra/.secret", ".fromzero/mlflow.db", ".venv/x", "tests/t.py", "pyproject.toml"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(path)
    return folder


def test_four_packages_of_a_checkout_are_sent_and_nothing_else(tmp_path: Path) -> None:
    with sources(checkout(tmp_path)) as folder:
        assert folder is not None
        sent = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert sent == {"pipelines/a.py", "components/b.py", "infra/c.py", "conf/d.yaml", "commit.json"}
    (tmp_path / "pyproject.toml").unlink()
    with sources(tmp_path) as folder:  # installed
        assert folder is None


def test_sources_that_are_too_large_name_the_largest_file(tmp_path: Path) -> None:
    checkout(tmp_path)
    (tmp_path / "conf" / "huge.bin").touch()
    os.truncate(tmp_path / "conf" / "huge.bin", 101 * 2**20)
    with (
        pytest.raises(UserError, match=r"are 101 MiB, at most 100 .* the largest is conf/huge\.bin"),
        sources(tmp_path),
    ):
        pass


def test_the_sources_that_are_sent_hold_what_a_run_needs() -> None:
    with sources(PROJECT) as folder:
        assert folder is not None
        for path in ("pipelines/cli/__main__.py", "conf/config.yaml", "conf/data/wordnet/glosses.jsonl.gz"):
            assert (folder / path).is_file()
        assert set(json.loads((folder / "commit.json").read_text())) == {"git_commit", "git_dirty"}
