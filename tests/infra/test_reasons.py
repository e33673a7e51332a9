"""Why a step runs: the function, the file, the value."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.journal.changes import code_changes, config_changes, file_changes
from infra.journal.code import code_digests, definition_digests
from infra.journal.reasons import _code_reason, _file_reason

BEFORE = '''
"""Doc."""
import math

RATE = 1


class Sweep:
    """Doc."""

    size: int = 3

    def ask(self):
        """Doc."""
        return math.pi

    def tell(self):
        return 2


def run(x):
    # why
    return x
'''


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("return x", "return x + 1", ["code changed: components/a.py: run"]),
        ("return 2", "return 3", ["code changed: components/a.py: Sweep.tell"]),
        ("size: int = 3", "size: int = 4", ["code changed: components/a.py: Sweep"]),
        ("RATE = 1", "RATE = 2", ["code changed: components/a.py: (module)"]),
        ("def run(x):", "def walk(x):", ["code changed: components/a.py: run, walk"]),
        ("# why", "# for another reason", []),
        ('"""Doc."""', '"""Another."""', []),
        ("import math", "import math, json", ["code changed: components/a.py: (module)"]),
    ],
)
def test_the_function_that_changed_is_named(tmp_path: Path, old: str, new: str, told: list[str]) -> None:
    package = tmp_path / "components"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text(BEFORE)
    before, was = code_digests("components.a", tmp_path), definition_digests("components.a", tmp_path)
    (package / "a.py").write_text(BEFORE.replace(old, new))
    after, is_ = code_digests("components.a", tmp_path), definition_digests("components.a", tmp_path)
    assert list(map(_code_reason, code_changes(before, after, was, is_))) == told
    assert (before == after) is not told or told == []


def test_a_module_that_comes_or_goes_is_named() -> None:
    before, after = {"components.a": "1", "components.b": "1"}, {"components.a": "1", "components.c": "1"}
    found = map(_code_reason, code_changes(before, after, {}, {}))
    assert list(found) == ["code used no more: components/b.py", "code used now: components/c.py"]


def test_files_are_told_apart_by_content_and_format_and_named() -> None:
    def files(*entries: tuple[str, str, str]) -> dict[str, dict[str, dict[str, str]]]:
        return {"s": {digest * 64: {"path": p, "sha256": digest * 64, "format": f} for p, digest, f in entries}}

    text = "text"
    old = files(("/d/a.txt", "a", text), ("/d/b.txt", "b", text), ("/d/c.txt", "c", text), ("/d/d", "d", text))
    new = files(("/d/a.txt", "f", text), ("/other/b.txt", "b", text), ("/d/新.txt", "e", text), ("/d/d", "d", "csv"))
    assert list(map(_file_reason, file_changes(old, new))) == [
        "file a.txt of s changed aaaaaaaa -> ffffffff",
        "file c.txt of s is gone",
        "file d of s changed text -> csv",
        "file 新.txt of s is new",
    ]
    assert list(file_changes(old, old)) == []


def test_values_are_told_by_their_dotted_key() -> None:
    def config(name: str, **fields: object) -> dict[str, object]:
        return {"class": name, "fields": fields}

    old = config("A", rate=0.1, model=config("M", size=1), labels=["a"], kept=1)
    new = config("A", rate=0.2, model=config("M", size=2), labels=["a", "b"], kept=1)
    assert list(config_changes(old, new, "step")) == [
        ("step.labels", ["a"], ["a", "b"]),
        ("step.model.size", 1, 2),
        ("step.rate", 0.1, 0.2),
    ]
    assert list(config_changes(config("A"), config("B"), "step")) == [("step", "A", "B")]
