"""Digests of a step's code: the syntax trees of the modules it reaches, without comments and docstrings.

A changed comment changes nothing; a changed constant, name or call does. Only modules of the step's own top-level
package (`components`) count: what `infra/` does is held by its declared format version, so that a better tracker
retrains nothing.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.errors import FromzeroError

PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Module:
    """What there is to know of one file."""

    digest: str
    """32 hex characters."""
    definitions: Mapping[str, str]
    """12 hex characters of each function, method and class."""
    imports: tuple[str, ...]
    """Names that may be modules of the same package."""


def code_digests(module: str, project: Path = PROJECT) -> dict[str, str]:
    """32-hex digest of each module of its package that `module` reaches by import, itself included, by name.

    Raises:
        FromzeroError: `module` is not a file of the project, or a file is not Python.
    """
    return {name: found.digest for name, found in _reached(module, project).items()}


def definition_digests(module: str, project: Path = PROJECT) -> dict[str, dict[str, str]]:
    """12-hex digests of the functions, methods and classes of the same modules, by module and name.

    They are in no key. They say which function it was when a module's digest changes; `(module)` is what stands
    outside of all of them, and a class stands for its fields and bases.

    Raises:
        FromzeroError: as `code_digests`.
    """
    return {name: dict(found.definitions) for name, found in _reached(module, project).items()}


def _reached(module: str, project: Path) -> dict[str, _Module]:
    """`module` and the modules of its package that it reaches by import, by name, in order."""
    found: dict[str, _Module] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _path(name, project)
        if name in found or path is None:
            continue
        try:
            found[name] = _analysed(path.read_text("utf-8"), name, path.name == "__init__.py")
        except (OSError, SyntaxError) as error:
            raise FromzeroError(f"{path} cannot be read as Python: {error}") from error
        waiting.extend(found[name].imports)
    if module not in found:
        raise FromzeroError(f"step code {module} is not a module under {project}")
    return dict(sorted(found.items()))


@functools.lru_cache(maxsize=1024)  # by content: the steps of a pipeline share most of their code
def _analysed(text: str, name: str, is_package: bool) -> _Module:
    """Raises SyntaxError if `text` is not Python."""
    tree = ast.parse(text)
    imports = tuple(dict.fromkeys(_imports(tree, name, is_package)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [child for child in node.body if not _is_docstring(child)] or [ast.Pass()]
    return _Module(digest=_digest(tree)[:32], definitions=dict(_definitions(tree)), imports=imports)


def _definitions(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Of a tree without docstrings, which it takes apart."""
    outside: list[ast.stmt] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, _digest(node)[:12]
        elif isinstance(node, ast.ClassDef):
            methods = [child for child in node.body if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)]
            yield from ((f"{node.name}.{method.name}", _digest(method)[:12]) for method in methods)
            rest = [child for child in node.body if child not in methods]
            node.body = rest or [ast.Pass()]
            yield node.name, _digest(node)[:12]
        else:
            outside.append(node)
    yield "(module)", _digest(ast.Module(body=outside, type_ignores=[]))[:12]


def _digest(node: ast.AST) -> str:
    return hashlib.sha256(_dump(node).encode("utf-8")).hexdigest()


def _dump(value: Any) -> str:
    """A tree as text, the same in every version of Python: `ast.dump` is not, for newer trees have fields that older
    ones lack, and newer dumps leave out what is empty (3.12, 3.13)."""
    if isinstance(value, ast.AST):
        fields = ((name, getattr(value, name, None)) for name in value._fields)
        told = (f"{name}={_dump(field)}" for name, field in fields if field is not None and field != [])
        return f"{type(value).__name__}({','.join(told)})"
    return f"[{','.join(map(_dump, value))}]" if isinstance(value, list) else repr(value)


def _is_docstring(node: ast.stmt) -> bool:
    """A bare string: a docstring, or one that stands below an attribute."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _imports(tree: ast.Module, module: str, is_package: bool) -> Iterator[str]:
    """Names that may be modules of the same package, packages above them included (their `__init__` runs too)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, module, is_package)
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == module.partition(".")[0]:
                yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _base(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + (1 if is_package else 0)]
    return ".".join([*parts, node.module] if node.module else parts)


def _path(module: str, project: Path) -> Path | None:
    stem = project.joinpath(*module.split("."))
    candidates = (stem.with_suffix(".py"), stem / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)
