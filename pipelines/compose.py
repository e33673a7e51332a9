"""Composes conf/ with Hydra, lays the command line over it, and validates it whole before anything starts."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from infra.errors import ConfigError
from pipelines.config import PipelineConfig, section_problems
from pipelines.overrides import Overrides, parse

CONF = Path(__file__).resolve().parents[1] / "conf"
PIPELINES = ("llm", "smoke", "nightly")
HOME_VARIABLE = "FROMZERO_HOME"


def groups() -> frozenset[str]:
    """Names of the config groups: the folders of conf/ that hold YAML files."""
    return frozenset(path.name for path in CONF.iterdir() if path.is_dir() and any(path.glob("*.yaml")))


def load_config(pipeline: str, arguments: list[str]) -> PipelineConfig:
    """The validated config of `pipeline` under the command line's `key=value` arguments.

    Raises:
        ConfigError: with one line for each problem, all of them.
    """
    if pipeline not in PIPELINES:
        raise ConfigError(f"no pipeline {pipeline!r}; there are: {', '.join(PIPELINES)}")
    overrides = parse(arguments, PipelineConfig, groups() - {"pipeline"})
    problems = [*overrides.problems, *_group_problems(overrides)]
    if problems:
        raise ConfigError(*problems)
    tree = _compose(pipeline, overrides)
    try:
        for key, value in overrides.values.items():
            OmegaConf.update(tree, key, _literal(value), merge=False, force_add=True)
        content = OmegaConf.to_container(tree, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"config: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise ConfigError("config: conf/config.yaml is not a mapping")
    home = os.environ.get(HOME_VARIABLE)
    if home and not _is_given(overrides, "storage.root") and isinstance(content.get("storage"), dict):
        content["storage"]["root"] = home
    for data, part in (("task.train", "task"), ("corpus.sources", "corpus")):
        if _is_given(overrides, data) and not _is_given(overrides, f"{part}.sample_fraction"):
            content[part]["sample_fraction"] = 1.0  # what a pipeline's file samples is the data of the default
    return validate({str(name): value for name, value in content.items()})


def validate(content: dict[str, Any]) -> PipelineConfig:
    """The typed config.

    Raises:
        ConfigError: every unknown key, wrong type and impossible combination, a line each.
    """
    try:
        config = PipelineConfig.model_validate(content)
    except ValidationError as error:
        lines = [_describe(item) for item in _without_copies(error.errors())]
        raise ConfigError(*lines, *_problems_elsewhere(content)) from error
    problems = list(config.problems())
    if problems:
        raise ConfigError(*problems)
    return config


def _problems_elsewhere(content: dict[str, Any]) -> Iterator[str]:
    """Problems of the parts that are valid by themselves, so that they are told together with those that are not."""
    for name, field in PipelineConfig.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            with contextlib.suppress(ValidationError):
                yield from section_problems(name, field.annotation.model_validate(content.get(name)))


_BRANCH = re.compile(r"int|float|str|bool|none|literal\[.*\]|(constrained|function)-.*")
"""How pydantic names a member of a union in the place of an error."""


def _without_copies(items: list[Any]) -> Iterator[Any]:
    """One error for each mistake.

    A value that conf/config.yaml hands down is told once (`pretrain_mlm.seed` is `seed`'s fault), and so is one that
    no member of a union takes.
    """
    inside = {item["loc"][:length] for item in items for length in range(len(item["loc"]))}
    items = [item for item in items if item["type"] != "too_short" or item["loc"] not in inside]
    places = {(item["loc"], item["type"]) for item in items}
    told: dict[tuple[Any, ...], list[str]] = {}
    inputs: dict[tuple[Any, ...], Any] = {}
    for item in items:
        if (item["loc"][1:], item["type"]) not in places:
            place = item["loc"][:-1] if _BRANCH.fullmatch(str(item["loc"][-1])) else item["loc"]
            told.setdefault(place, []).append(item["msg"])
            inputs.setdefault(place, item)
    yield from ({**inputs[place], "loc": place, "msg": ", or ".join(told[place])} for place in told)


def _compose(pipeline: str, overrides: Overrides) -> DictConfig:
    chosen = [f"{name}={value}" for name, value in overrides.groups.items()]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            tree: DictConfig = compose("config", overrides=[f"pipeline={pipeline}", *chosen])
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"config: {str(error).splitlines()[0]}") from error
    finally:
        GlobalHydra.instance().clear()
    OmegaConf.set_struct(tree, False)
    return tree


def _literal(value: Any) -> Any:
    """`value` with every `${` escaped: what users write is text, never an interpolation."""
    if isinstance(value, str):
        return value.replace("${", "\\${")
    if isinstance(value, dict):
        return {name: _literal(item) for name, item in value.items()}
    return [_literal(item) for item in value] if isinstance(value, list) else value


def _is_given(overrides: Overrides, key: str) -> bool:
    """Whether the command line sets `key`, or a mapping that holds it."""
    above, _, name = key.rpartition(".")
    within = overrides.values.get(above)
    return key in overrides.values or (isinstance(within, dict) and name in within)


def _group_problems(overrides: Overrides) -> Iterator[str]:
    for name, value in overrides.groups.items():
        files = sorted(path.stem for path in (CONF / name).glob("*.yaml"))
        if value not in files:
            yield f"{name}={value}: conf/{name}/ has no such file; there are: {', '.join(files)}"


def _describe(item: Any) -> str:
    """One line for one of pydantic's errors."""
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{key}: unknown key{_near(item['loc'])}"
    if item["type"] == "missing":
        return f"{key}: missing; it has no default"
    message = item["msg"].removeprefix("Value error, ")
    if isinstance(item["input"], dict):
        return f"{key}: {message}"
    return f"{key}: {item['input']!r} is not allowed: {message[:1].lower()}{message[1:]}"


def _near(location: tuple[Any, ...]) -> str:
    """What stands at this place instead, as a hint."""
    import difflib

    model: Any = PipelineConfig
    for part in location[:-1]:
        field = getattr(model, "model_fields", {}).get(part)
        model = field.annotation if field else None
    names = list(getattr(model, "model_fields", {}))
    near = difflib.get_close_matches(str(location[-1]), names, n=1)
    if near:
        return f"; did you mean {'.'.join([*map(str, location[:-1]), near[0]])}?"
    return f"; known here: {', '.join(names)}" if names else ""
