"""Keys: equal values give equal keys, different ones different keys, execution settings none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.errors import FromzeroError
from infra.journal.code import code_digests
from infra.journal.key import digest, encode, identity
from tests.infra.toy_steps import ToyConfig, step

PROJECT = Path(__file__).resolve().parents[2]


class OtherConfig(ToyConfig):
    """The same fields under another name."""


def key_of(config: ToyConfig) -> str:
    return digest(identity(step("toy", config), {}))


@pytest.mark.parametrize(
    "config",
    [ToyConfig(value=2), ToyConfig(rate=0.25), ToyConfig(labels=("a",)), ToyConfig(labels=("a", "b")), OtherConfig()],
)
def test_what_changes_a_result_changes_the_key(config: ToyConfig) -> None:
    assert key_of(config) != key_of(ToyConfig())


def test_execution_fields_never_change_the_key() -> None:
    assert key_of(ToyConfig(fail="user", seconds=9)) == key_of(ToyConfig())


def test_an_input_with_another_key_changes_the_key() -> None:
    toy = step("toy", parent=step("parent"))
    assert digest(identity(toy, {"parent": "a" * 32})) != digest(identity(toy, {"parent": "b" * 32}))


def test_the_key_is_the_same_in_another_process_and_hash_seed() -> None:
    code = (
        "from tests.infra.test_key import key_of; from tests.infra.toy_steps import ToyConfig;"
        "print(key_of(ToyConfig(labels=('b', 'a'))))"
    )
    keys = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=PROJECT,
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("0", "4711")
    }
    assert keys == {key_of(ToyConfig(labels=("b", "a")))}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1: "a"}, r"step\.x: the key 1 is not a string"),
        ({"a": {2.0}}, r"step\.x\.a: a set cannot be part of a key"),
        (float("nan"), r"step\.x: nan cannot"),
        ([Path("a")], r"step\.x\[0\]: a PosixPath cannot"),
    ],
)
def test_what_has_no_canonical_form_is_refused_with_its_place(value: Any, message: str) -> None:
    with pytest.raises(FromzeroError, match=message):
        encode(value, "step.x")


def test_integers_and_floats_stay_apart_and_true_is_not_one() -> None:
    assert len({digest({"x": encode(value, "x")}) for value in (1, 1.0, True, "1")}) == 4


def test_a_user_mapping_cannot_imitate_a_config() -> None:
    real = encode(ToyConfig(), "x")
    assert encode(dict(real), "x") != real


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of three modules."""
    package = tmp_path / "components"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text(
        '"""Doc."""\nfrom components import b\n\n\ndef f():\n    """Doc."""\n    return b.x\n'
    )
    (package / "b.py").write_text("x = 1\n")
    (package / "unused.py").write_text("y = 1\n")
    return tmp_path


def test_code_digests_follow_imports_and_ignore_what_is_not_reached(project: Path) -> None:
    assert set(code_digests("components.a", project)) == {"components", "components.a", "components.b"}


@pytest.mark.parametrize(
    ("file", "text", "changes"),
    [
        ("a.py", '"""Other."""\nfrom components import b\n\n\ndef f():\n    # why\n    return b.x\n', False),
        ("b.py", "x = 2\n", True),
        ("unused.py", "y = 2\n", False),
    ],
)
def test_comments_and_docstrings_do_not_count_and_code_does(project: Path, file: str, text: str, changes: bool) -> None:
    before = code_digests("components.a", project)
    (project / "components" / file).write_text(text)
    assert (code_digests("components.a", project) != before) is changes


def test_an_import_inside_a_function_counts(project: Path) -> None:
    (project / "components" / "b.py").write_text("def g():\n    from components.unused import y\n    return y\n")
    assert "components.unused" in code_digests("components.a", project)


def test_a_digest_of_code_is_the_same_in_every_version_of_python(tmp_path: Path) -> None:
    """Else another Python trains all anew, and says that every file changed."""
    (tmp_path / "components").mkdir()
    body = "class A:\n    x: int = 1\n\n"
    body += "def f(a, *b, c=f'{1}x', **d) -> None:\n    return [lambda: a]\n\nasync def g(): ...\n"
    (tmp_path / "components" / "a.py").write_text(body)
    assert code_digests("components.a", tmp_path) == {"components.a": "648a31dfc3566bb2752c1294c7232134"}
