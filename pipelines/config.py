"""The whole config of a pipeline: the components' configs under the keys that users write."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from components.comparison.config import CompareConfig
from components.corpus.config import CorpusConfig, TaskConfig
from components.finetuning.config import FinetuneConfig
from components.finetuning.config import problems as finetune_problems
from components.pretraining.config import PretrainConfig
from components.pretraining.fit import WITHOUT_DROPOUT
from components.pretraining.fit import problems as pretrain_problems
from components.pretraining.networks.init_from import start_problems
from components.pretraining.networks.sizes import num_positions, size_problems
from components.prompting.config import PromptConfig
from components.prompting.config import problems as prompt_problems
from components.tokenization.config import TokenizerConfig, TokenShardsConfig
from components.tokenization.config import problems as tokenizer_problems
from components.tokenization.existing import planned_vocab_size
from infra.cluster.config import ClusterConfig
from infra.journal.config import FrozenConfig, execution_field
from infra.tracking.config import TrackingConfig

OBJECTIVES = {
    "pretrain_mlm": ("masked_lm", "masked_lm_nsp", "span_corruption", "denoising"),
    "pretrain_clm": ("causal_lm", "prefix_lm"),
    "tune_decoder": ("label_lm",),
}
"""What each step may train."""


class StorageConfig(FrozenConfig):
    """Where everything that is made lies."""

    root: str = execution_field(
        ".fromzero", min_length=1, description="folder of artifacts, checkpoints and mlflow.db, or s3:// or gs:// URI"
    )
    local: str | None = execution_field(
        None,
        min_length=1,
        description="folder of this machine that stands for a root on an object store; null: one in ~/.cache/fromzero",
    )


class PipelineConfig(FrozenConfig):
    """What `fromzero run` takes."""

    seed: int = Field(0, ge=0, lt=2**63, description="seed of every stage that is not given its own")
    storage: StorageConfig
    tracking: TrackingConfig
    cluster: ClusterConfig
    task: TaskConfig
    corpus: CorpusConfig
    tokenizer: TokenizerConfig
    token_shards: TokenShardsConfig
    pretrain_mlm: PretrainConfig
    pretrain_clm: PretrainConfig
    finetune: FinetuneConfig
    prompt: PromptConfig
    tune_decoder: PretrainConfig
    tune_examples: int = Field(25_000, ge=1, description="training prompts that the decoder is tuned on, at most")
    compare: CompareConfig

    def problems(self) -> Iterator[str]:
        """What is wrong with values that each are allowed, a line each."""
        for name in type(self).model_fields:
            yield from section_problems(name, getattr(self, name))
        yield from self._tuning_problems()
        yield from self._evaluation_problems()
        for name in ("pretrain_mlm", "pretrain_clm"):
            vocab_size = planned_vocab_size(self.tokenizer)
            if getattr(self, name).model.init_from is None and vocab_size is not None:
                yield from size_problems(getattr(self, name), name, vocab_size)

    def _evaluation_problems(self) -> Iterator[str]:
        """Models that the stages would refuse to judge; told before they are trained."""
        for name, stage in (("pretrain_mlm", "finetune"), ("pretrain_clm", "prompt")):
            if getattr(self, stage).allow_unchecked_model:
                continue
            if getattr(self, name).model.init_from is not None:
                yield (
                    f"{name}.model.init_from: nobody compared what that model has read with the evaluation sets of the "
                    f"task; to judge it all the same, set {stage}.allow_unchecked_model=true"
                )
            elif self.corpus.decontamination is None:
                yield (
                    f"corpus.decontamination=null: {stage} judges no model whose text was not compared with the "
                    f"evaluation sets of the task; set {stage}.allow_unchecked_model=true if that is meant"
                )

    def _tuning_problems(self) -> Iterator[str]:
        """What the decoder of `pretrain_clm` cannot do in `tune_decoder`; told before it is trained for days."""
        tuned, start = self.tune_decoder, self.pretrain_clm
        positions = num_positions(start)
        if start.model.init_from is not None:
            if Path(start.model.init_from).is_dir():
                model = start.model.model_copy(update={"dropout": tuned.model.dropout})
                told = start_problems(tuned.model_copy(update={"model": model}), "pretrain_clm.model")
                known = start_problems(start, "pretrain_clm.model")
                yield from (f"tune_decoder: {line}" for line in told if line not in known)
            return
        if tuned.sequence_length > positions:
            yield (
                f"tune_decoder.sequence_length={tuned.sequence_length} is more than the {positions} positions "
                f"of the decoder that it tunes: set pretrain_clm.model.max_position_embeddings={tuned.sequence_length}"
            )
        if tuned.model.dropout > 0 and start.architecture in WITHOUT_DROPOUT:
            yield (
                f"tune_decoder.model.dropout={tuned.model.dropout}: {start.architecture} (pretrain_clm) drops no "
                "hidden states; set it to 0, or pretrain_clm.model.architecture=gpt2"
            )


def section_problems(name: str, section: Any) -> Iterator[str]:
    """What is wrong with the values of one part of the config.

    Args:
        name: of the part, such as `finetune`.
        section: its config, valid field by field.
    """
    if name in OBJECTIVES:
        if section.objective not in OBJECTIVES[name]:
            yield f"{name}.objective={section.objective}: this step trains {', '.join(OBJECTIVES[name])}"
        yield from pretrain_problems(section, name)
    if name == "tune_decoder":
        for field in section.model.model_dump(exclude_defaults=True, exclude={"dropout"}):
            yield f"tune_decoder.model.{field}: the decoder that is tuned is that of pretrain_clm; set it there"
    if name == "finetune":
        yield from finetune_problems(section)
    if name == "tokenizer":
        yield from tokenizer_problems(section)
    if name == "prompt":
        yield from prompt_problems(section)
