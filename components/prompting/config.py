"""What a prompt is made of and how prompts are judged.

A prompt is `instruction`, then demonstrations, then the query, joined by `demo_delimiter`; a demonstration is the
template with its text and its label's phrase, the query is the template up to the label. Templates are data: the two
placeholders are replaced once, and nothing in them is executed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, field_validator

from components.prompting.template import template_problems
from components.prompting.verbalizer import verbalizer_problems
from infra.cluster.config import ClusterConfig
from infra.journal.config import FrozenConfig, execution_field

DEFAULT_TEMPLATE = "Definition: {{text}}\nCategory: {{label}}"


class PromptFormat(FrozenConfig):
    """How a text and a label become a prompt; the same for judging a model and for tuning one."""

    instruction: str = Field("", description="first part of every prompt; empty = none")
    template: str = Field(
        DEFAULT_TEMPLATE, description="one example: holds {{text}} once and, after it and at the very end, {{label}}"
    )
    verbalizer: dict[str, str] | None = Field(
        None,
        description="label -> the phrase that stands for it in a prompt; without it the label itself, less a prefix "
        "that all labels share up to a dot (noun.artifact, noun.person -> artifact, person), `_` as a space",
    )
    demo_delimiter: str = Field("\n\n", min_length=1, description="between instruction, demonstrations and query")

    @field_validator("verbalizer", mode="before")
    @classmethod
    def _string_labels(cls, value: Any) -> Any:
        """YAML reads the label `0` as a number; labels are strings."""
        if isinstance(value, dict):
            return {str(label) if isinstance(label, int) else label: phrase for label, phrase in value.items()}
        return value


class PromptConfig(PromptFormat):
    """The step `prompt`: which prompts are tried, how the final ones are chosen, and what is reported."""

    name: str = Field(
        "classification", pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="prompts are registered as fromzero-<name>-*"
    )
    allow_unchecked_model: bool = execution_field(
        False, description="judge a model too whose pretraining text was not compared with the task's evaluation sets"
    )
    shots: tuple[int, ...] = Field((0, 4), min_length=1, description="demonstrations in a prompt: each number is tried")
    demonstration_draws: int = Field(
        3, ge=1, le=64, description="sets of demonstrations tried for each number; validation chooses one"
    )
    calibrate: bool = Field(True, description="also judge with batch calibration (Zhou et al. 2023, arXiv 2309.17249)")
    permuted_control: bool = Field(
        True, description="also measure few-shot prompts with wrong demonstration labels, on validation rows"
    )
    max_length: int | None = Field(
        None, ge=16, description="tokens of a prompt with its label; without it, what the model's positions allow"
    )
    max_validation_rows: int = Field(
        500, ge=1, description="validation rows that choose among prompts and fit the calibration"
    )
    max_test_rows: int | None = Field(None, ge=1, description="test rows that are judged; without it, all")
    seed: int = Field(0, ge=0, description="of demonstrations, samples of rows, and bootstrap draws")
    cluster: ClusterConfig = execution_field(ClusterConfig(), description="workers that score prompts")
    batch_size: int = execution_field(
        32, ge=1, le=4096, description="prompts in one forward pass; changes scores by rounding only"
    )


class PromptExamplesConfig(PromptFormat):
    """The step `prompt_examples`: training prompts for tuning the decoder, as token shards."""

    max_examples: int = Field(25_000, ge=1, description="training rows that are rendered; a seeded sample of them")
    max_validation_examples: int = Field(2_000, ge=1, description="validation rows that are rendered")
    sequence_length: int = Field(128, ge=16, description="tokens of a packed sequence")
    seed: int = Field(0, ge=0, description="of the samples and of the order of examples")


def problems(config: PromptFormat, labels: Sequence[str] | None = None, where: str = "prompt") -> list[str]:
    """Everything wrong with `config`, one line each; empty if nothing is.

    Args:
        config: what the user wrote.
        labels: the task's labels, where they are known already.
        where: the dotted key of `config`, for messages.
    """
    found = template_problems(config.template, f"{where}.template")
    found += verbalizer_problems(config.verbalizer, labels, f"{where}.verbalizer")
    if isinstance(config, PromptConfig):
        if any(shots < 0 or shots > 256 for shots in config.shots):
            found.append(f"{where}.shots: {list(config.shots)}: each must lie between 0 and 256")
        if len(set(config.shots)) != len(config.shots):
            found.append(f"{where}.shots: {list(config.shots)} names a number twice; give each once")
    return found
