"""The key of a step: 32 hex characters over all that changes its result, and nothing that does not.

The encoder refuses what it does not know and names where it stands. Floats and integers stay apart, a config model
counts with its class name, and fields marked `execution` do not count.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic import BaseModel

from infra.errors import FromzeroError
from infra.journal.code import code_digests
from infra.journal.config import is_execution
from infra.journal.step import Step
from infra.storage.manifest import FORMAT_VERSION

LIBRARIES = ("torch", "transformers", "tokenizers", "deepspeed")
KEY_LENGTH = 32


def encode(value: Any, path: str) -> Any:
    """`value` as JSON that differs where the values differ.

    Args:
        value: a scalar, enum, list, tuple, mapping with string keys, or pydantic model of these.
        path: where it stands, for the message.

    Raises:
        FromzeroError: a type, a key or a number that has no canonical form.
    """
    if isinstance(value, Enum):
        return {"enum": f"{type(value).__module__}.{type(value).__qualname__}.{value.name}"}
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise FromzeroError(f"{path}: {value} cannot be part of a key; use a finite number or null")
        return float(value) + 0.0  # -0.0 is 0.0
    if isinstance(value, list | tuple):
        return [encode(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise FromzeroError(f"{path}: the key {name!r} is not a string; only string keys have a stable order")
        return {"mapping": {name: encode(value[name], f"{path}.{name}") for name in sorted(value)}}
    if isinstance(value, BaseModel):
        cls = type(value)
        fields = {
            name: encode(getattr(value, name), f"{path}.{name}")
            for name in sorted(cls.model_fields)
            if not is_execution(cls, name)
        }
        return {"class": f"{cls.__module__}.{cls.__qualname__}", "fields": fields}
    raise FromzeroError(
        f"{path}: a {type(value).__name__} cannot be part of a key; use a number, string, list, mapping or config model"
    )


def identity(step: Step, input_keys: Mapping[str, str]) -> dict[str, Any]:
    """All that the key of `step` is made of, as JSON. The manifest keeps it: a later plan says what changed."""
    return {
        "step": f"{step.name}={step.function}",
        "version": step.version,
        "config": encode(step.config, step.name),
        "code": code_digests(step.module),
        "format_version": FORMAT_VERSION,
        "libraries": {name: _major_minor(name) for name in LIBRARIES},
        "inputs": dict(sorted(input_keys.items())),
        "raw": {
            source: sorted([file.digest, file.format, file.compression or ""] for file in files)
            for source, files in sorted(step.raw.items())
        },
    }


def differing(identity: Mapping[str, Any], old: Mapping[str, Any], free: Collection[str]) -> list[str]:
    """In what two identities of a step differ, beside the parts that are `free` to."""
    return [part for part in identity if part not in free and old.get(part) != identity[part]]


def digest(content: Mapping[str, Any]) -> str:
    """32 hex characters over JSON `content`, the same in every process."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:KEY_LENGTH]


def _major_minor(library: str) -> str:
    try:
        return ".".join(version(library).split(".")[:2])
    except PackageNotFoundError:
        return "absent"
