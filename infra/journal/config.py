"""Base of every config: frozen, no unknown keys, and fields marked `execution` that never enter a key."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class FrozenConfig(BaseModel):
    """Base of the pydantic models that validate what a user writes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)


def execution_field(default: Any = ..., *, description: str, **constraints: Any) -> Any:
    """A field that says how to run, not what to make: it never changes a key."""
    return Field(default, description=description, json_schema_extra={"execution": True}, **constraints)


def is_execution(model: type[BaseModel], field: str) -> bool:
    """Whether `field` of `model` is left out of keys."""
    extra = model.model_fields[field].json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("execution"))
