"""The rules of the folders: who may import whom, and what planning must not import."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
COMPONENTS = ("corpus", "tokenization", "pretraining", "finetuning", "prompting", "comparison")
HEAVY = ("torch", "ray", "transformers", "deepspeed", "mlflow")


def modules() -> Iterator[tuple[Path, set[str]]]:
    for package in ("pipelines", "components", "infra"):
        for path in sorted((PROJECT / package).rglob("*.py")):
            names: set[str] = set()
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Import):
                    names |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    names |= {f"{node.module}.{alias.name}" for alias in node.names}
            yield path.relative_to(PROJECT), names


def wrong(path: Path, name: str) -> bool:
    package, parts = path.parts[0], name.split(".")
    if package == "infra" and parts[0] in ("components", "pipelines"):
        return True
    if package == "components":
        if parts[0] in ("pipelines", "mlflow"):
            return True
        if parts[0] == "components" and path.parts[1] in COMPONENTS and parts[1] in COMPONENTS:
            return COMPONENTS.index(parts[1]) > COMPONENTS.index(path.parts[1])
        in_place = path.name in ("step.py", "distributed.py") or "distributed" in path.parts
        return parts[0] == "ray" and not in_place
    return parts[0] == "mlflow" and path.parts[:2] != ("infra", "tracking")


def test_the_arrows_between_the_folders_hold() -> None:
    assert [f"{path}: {name}" for path, names in modules() for name in sorted(names) if wrong(path, name)] == []


def test_no_file_is_longer_than_400_lines_and_each_opens_with_a_docstring() -> None:
    bad = []
    for package in ("pipelines", "components", "infra", "tests", "conf"):
        for path in (PROJECT / package).rglob("*.py"):
            text = path.read_text("utf-8")
            if len(text.splitlines()) > 400 or (text.strip() and ast.get_docstring(ast.parse(text)) is None):
                bad.append(str(path))
    assert bad == []


@pytest.mark.parametrize("command", ["plan", "status", "run", "schedule"])
def test_planning_imports_nothing_heavy(command: str, tmp_path: Path) -> None:
    """`run` stops at a wrong path, so that it only plans."""
    more = {"run": ["task.train=none.jsonl"], "schedule": ["--at", "0 2 * * *", "--print", "kubernetes"]}
    arguments = more.get(command, [])
    code = (
        "import sys\nfrom pipelines.cli import main\n"
        f"sys.argv = ['fromzero', {command!r}, 'llm', *{arguments!r}, 'storage.root={tmp_path}']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
