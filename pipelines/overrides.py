"""Command-line overrides: `key=value`, where the value's type decides how it is read.

A value for a text field is taken as it stands, so Chinese, globs, `=` and spaces need no quotes. Other values are read
as YAML (`[{path: texts/*.jsonl, text_column: text}]`), with `true` and `false` as the only booleans. `group=file`
chooses a file of a group of conf/ and goes to Hydra.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

_SCALARS = {
    "tag:yaml.org,2002:bool": (re.compile(r"^(?:true|false|True|False)$"), "tTfF"),
    "tag:yaml.org,2002:float": (
        re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][-+]?[0-9]+)?$"),
        "-+.0123456789",
    ),
    "tag:yaml.org,2002:int": (re.compile(r"^[-+]?[0-9]+$"), "-+0123456789"),
    "tag:yaml.org,2002:null": (re.compile(r"^(?:null|~|)$"), ["n", "~", ""]),
}


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core scalars: `no` is a word and `1e-3` a number."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012 - the base class declares it so


for _tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:bool", "tag:yaml.org,2002:null"):
    _pattern, _first = _SCALARS[_tag]
    _Loader.add_implicit_resolver(_tag, _pattern, list(_first))


@dataclass(frozen=True, kw_only=True, slots=True)
class Overrides:
    """Parsed arguments."""

    groups: dict[str, str]
    values: dict[str, Any]
    """By dotted key."""
    problems: tuple[str, ...]


def parse(arguments: list[str], model: type[BaseModel], groups: frozenset[str]) -> Overrides:
    """Parses `key=value` arguments; collects every problem instead of stopping at the first.

    Args:
        arguments: as the shell gave them.
        model: the config that the keys belong to.
        groups: names of the folders of conf/.
    """
    chosen: dict[str, str] = {}
    values: dict[str, Any] = {}
    problems: list[str] = []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        key = key.lstrip("+").strip()
        if not equals or not re.fullmatch(r"[A-Za-z_][\w.-]*", key):
            problems.append(f"{argument!r} is not key=value; for example: pretrain_mlm.steps=500")
        elif key in groups and not text.lstrip().startswith(("{", "[")):
            chosen[key] = text
        else:
            try:
                values[key] = read_value(text, annotation_at(model, key))
                problems.extend(f"{key}: {told!r} lacks a space after its colon" for told in _run_together(values[key]))
            except yaml.YAMLError as error:
                line = str(getattr(error, "problem", None) or error).splitlines()[0]
                problems.append(f"{key}: {text!r} cannot be read ({line}); put text with {{}}[],:*&# in double quotes")
    return Overrides(groups=chosen, values=values, problems=tuple(problems))


def annotation_at(model: type[BaseModel], key: str) -> Any:
    """The type of the field at dotted `key`; None where the config has no such field."""
    annotation: Any = model
    for part in key.split("."):
        nested = next((t for t in _members(annotation) if isinstance(t, type) and issubclass(t, BaseModel)), None)
        if nested is not None and part in nested.model_fields:
            annotation = nested.model_fields[part].annotation
        elif any(get_origin(t) is dict or t is dict for t in _members(annotation)):
            annotation = (get_args(annotation) or (str, str))[-1]
        else:
            return None
    return annotation


def read_value(text: str, annotation: Any) -> Any:
    """`text` as a value for a field of type `annotation`.

    Raises:
        yaml.YAMLError: it should be YAML and is not.
    """
    members = _members(annotation)
    if type(None) in members and text in ("null", "~"):
        return None
    if str in members and not any(get_origin(t) for t in members if get_origin(t) is not None):
        return text
    # A flow collection may hold unquoted globs, which YAML would take for aliases.
    return yaml.load(re.sub(r"(?<=[:\[,{])(\s*)(\*[^\s,\]}]*)", r'\1"\2"', text), Loader=_Loader)


def _run_together(value: Any) -> Iterator[str]:
    """Keys such as `stage:3`, which YAML reads as one word without a value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if inner is None and ":" in str(key):
                yield str(key)
            yield from _run_together(inner)
    elif isinstance(value, list):
        for one in value:
            yield from _run_together(one)


def _members(annotation: Any) -> tuple[Any, ...]:
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return get_args(annotation)
    return (annotation,)
