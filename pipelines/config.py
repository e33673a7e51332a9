"""The whole config of a pipeline: the components' configs under the keys that users write."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from components.comparison.config import CompareConfig
from components.corpus.config import CorpusConfig, TaskConfig
from components.finetuning.config import FinetuneConfig
from components.finetuning.config import problems as finetune_problems
from components.pretraining.config import PretrainConfig
from components.pretraining.config import problems as pretrain_problems
from components.prompting.config import PromptConfig
from components.prompting.config import problems as prompt_problems
from components.tokenization.config import TokenizerConfig, TokenShardsConfig
from infra.cluster.config import ClusterConfig
from infra.journal.config import FrozenConfig, execution_field
from infra.tracking.config import TrackingConfig


class StorageConfig(FrozenConfig):
    """Where everything that is made lies."""

    root: str = execution_field(".fromzero", min_length=1, description="folder of artifacts, checkpoints and mlflow.db")


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
        for name, objective in (
            ("pretrain_mlm", "masked_lm"),
            ("pretrain_clm", "causal_lm"),
            ("tune_decoder", "label_lm"),
        ):
            config: PretrainConfig = getattr(self, name)
            if config.objective != objective:
                yield f"{name}.objective={config.objective}: this step trains {objective}"
            yield from pretrain_problems(config, name)
        model = self.tune_decoder.model.model_dump(exclude_defaults=True)
        for name in model:
            yield f"tune_decoder.model.{name}: the decoder that is tuned is that of pretrain_clm; set it there"
        yield from finetune_problems(self.finetune)
        yield from prompt_problems(self.prompt)
