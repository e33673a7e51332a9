"""Where a config value comes from, in the user's words: the command line, the environment, or a file of conf/."""

from __future__ import annotations

from typing import Any

import yaml

from pipelines.compose import CONF, groups
from pipelines.config import PipelineConfig
from pipelines.overrides import Overrides, parse

SHARED = {"prompt_examples": "prompt", "token_shards_clm": "token_shards"}
"""Steps that take their config from another part of the user's."""
DERIVED = {
    "token_shards.sequence_length": "pretrain_mlm.sequence_length",
    "token_shards_clm.sequence_length": "pretrain_clm.sequence_length",
    "prompt_examples.sequence_length": "tune_decoder.sequence_length",
    "prompt_examples.max_examples": "tune_examples",
}


class Origins:
    """Looks a dotted key up where it may have been set, the strongest first.

    Args:
        pipeline: its file of conf/pipeline/ comes before those of the groups.
        arguments: of the command line.
    """

    def __init__(self, pipeline: str, arguments: list[str]) -> None:
        self.pipeline = pipeline
        self.overrides: Overrides = parse(arguments, PipelineConfig, groups() - {"pipeline"})
        self._files: list[tuple[str, Any]] | None = None

    def __call__(self, path: str) -> str:
        """Such as `command line`, `conf/pretrain/laptop.yaml`; empty for a default of the code."""
        step, _, rest = path.partition(".")
        key = DERIVED.get(path) or f"{SHARED.get(step, step)}.{rest}"
        name = key.rpartition(".")[2]
        for given in (key, *(["seed"] if name == "seed" else [])):
            if any(given == one or given.startswith(one + ".") for one in self.overrides.values):
                return "command line"
        return next((source for source, content in self._sources() if _holds(content, key.split("."))), "")

    def _sources(self) -> list[tuple[str, Any]]:
        if self._files is None:
            main = _read("config")
            groups_ = dict(pair for entry in main["defaults"] if isinstance(entry, dict) for pair in entry.items())
            groups_.pop("pipeline")
            self._files = []
            for group, default in (("pipeline", self.pipeline), *groups_.items()):
                name = self.overrides.groups.get(group, default)
                given = f"{group}={name} on the command line" if group in self.overrides.groups else None
                self._files.append((given or f"conf/{group}/{name}.yaml", _read(f"{group}/{name}")))
            self._files.append(("conf/config.yaml", main))
        return self._files


def _read(name: str) -> Any:
    return yaml.safe_load((CONF / f"{name}.yaml").read_text("utf-8")) or {}


def _holds(content: Any, parts: list[str]) -> bool:
    for part in parts:
        if not isinstance(content, dict) or part not in content:
            return False
        content = content[part]
    return True
