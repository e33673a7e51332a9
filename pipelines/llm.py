"""The pipeline `llm`, raw text to verdict; `smoke`, the same DAG on other sizes; `nightly`, on a folder that grows.

    task ─► corpus ─► tokenizer ─► token_shards ─► pretrain_mlm ─► finetune ───────────────► compare
     │                    │              └───────► pretrain_clm ─► tune_decoder ─► prompt ─────┘
     └────────────────────┴─► prompt_examples ──────────────────────────┘

It only binds: nothing runs, and nothing heavy is imported, until a step is executed.
"""

from __future__ import annotations

import glob
import hashlib
import json
from pathlib import Path

from components.pretraining.config import PretrainConfig
from components.prompting.config import PromptExamplesConfig, PromptFormat
from components.tokenization.config import TokenShardsConfig
from infra.cluster.config import ClusterConfig
from infra.errors import ConfigError, UserError
from infra.journal.step import Resources, Step
from infra.storage.digests import DigestCache
from infra.storage.raw import RawFile, RawFormat, look, resolve
from pipelines.config import PipelineConfig

STOP_SECONDS = 30.0
"""What a training is given to save a checkpoint when its run is stopped."""


def build(config: PipelineConfig, digests: DigestCache | None = None, *, elsewhere: bool = False) -> Step:
    """The last step, `compare`, bound to all that it needs.

    Args:
        config: of the pipeline.
        digests: known digests of raw files.
        elsewhere: it is to run on other machines: raw files are not read, and need not be here.

    Raises:
        ConfigError: paths that name nothing, one line each; elsewhere, relative ones.
    """
    raw = _RawElsewhere(digests) if elsewhere else _Raw(digests)
    task_files = {
        split: files
        for split in ("train", "validation", "test")
        if (files := raw.find(getattr(config.task, split), config.task.format, f"task.{split}"))
    }
    corpus_files = {
        name: raw.find(source.path, source.format, f"corpus.sources[{position}].path")
        for position, (name, source) in enumerate(zip(config.corpus.source_names(), config.corpus.sources, strict=True))
    }
    init = {
        name: raw.find(getattr(config, name).model.init_from, "text", f"{name}.model.init_from", is_local=True)
        for name in ("pretrain_mlm", "pretrain_clm")
    }
    existing = raw.find(_tokenizer_files(config), "text", "tokenizer.path", is_local=True)
    raw.check()
    config = _with_licenses(config)

    data = Resources(num_cpus=1)
    task = Step(
        name="task", function="components.corpus.step:make_task", config=config.task, raw=task_files, resources=data
    )
    corpus = Step(
        name="corpus",
        function="components.corpus.step:make_corpus",
        config=config.corpus,
        inputs={"task": task},
        raw=corpus_files,
        resources=data,
    )
    tokenizer = Step(
        name="tokenizer",
        function="components.tokenization.step:train_tokenizer",
        config=config.tokenizer,
        inputs={"corpus": corpus},
        raw={"existing": existing} if existing else {},
        resources=data,
        frozen=config.tokenizer.frozen,
    )
    mlm_shards = _shards("token_shards", config.pretrain_mlm, config.token_shards, corpus, tokenizer)
    clm_shards = mlm_shards
    if config.pretrain_clm.sequence_length != config.pretrain_mlm.sequence_length:
        clm_shards = _shards("token_shards_clm", config.pretrain_clm, config.token_shards, corpus, tokenizer)
    mlm = _training("pretrain_mlm", config.pretrain_mlm, tokenizer, mlm_shards, raw=init["pretrain_mlm"])
    clm = _training("pretrain_clm", config.pretrain_clm, tokenizer, clm_shards, raw=init["pretrain_clm"])
    finetune = Step(
        name="finetune",
        function="components.finetuning.step:finetune",
        config=config.finetune,
        inputs={"task": task, "pretrain_mlm": mlm},
        resources=_workers(config),
    )
    examples = Step(
        name="prompt_examples",
        function="components.prompting.step:make_prompt_examples",
        config=_examples_config(config),
        inputs={"task": task, "tokenizer": tokenizer},
        resources=data,
    )
    tuned = _training("tune_decoder", config.tune_decoder, tokenizer, examples, init=clm)
    prompt = Step(
        name="prompt",
        function="components.prompting.step:prompt",
        config=config.prompt,
        inputs={"task": task, "pretrain_clm": clm, "tune_decoder": tuned},
        resources=_workers(config),
    )
    return Step(
        name="compare",
        function="components.comparison.step:compare",
        config=config.compare,
        resources=data,
        inputs={
            "task": task,
            "pretrain_mlm": mlm,
            "pretrain_clm": clm,
            "tune_decoder": tuned,
            "finetune": finetune,
            "prompt": prompt,
        },
    )


def _tokenizer_files(config: PipelineConfig) -> str | None:
    """The files that tell an existing tokenizer; the weights that may lie beside them do not count."""
    folder = config.tokenizer.path
    return None if folder is None else f"{glob.escape(folder.rstrip('/'))}/*token*.json"


def _with_licenses(config: PipelineConfig) -> PipelineConfig:
    """The same, with the licences of the text and of the labelled rows told to what trains on them."""
    text, rows = config.corpus.licenses, config.task.license or "not stated"
    both = f"pretraining text: {text}; labelled rows: {rows}"
    told = {"pretrain_mlm": text, "pretrain_clm": text, "tune_decoder": both, "finetune": both}
    update = {
        name: getattr(config, name).model_copy(update={"data_license": license_})
        for name, license_ in told.items()
        if getattr(config, name).data_license is None
    }
    return config.model_copy(update=update)


def _workers(config: PipelineConfig) -> Resources:
    return _resources(config.cluster)


def _resources(cluster: ClusterConfig) -> Resources:
    """Of the workers: the fewest that it runs with, and the most that it takes where there is room."""
    cpus, gpus = cluster.threads_per_worker, cluster.num_gpus_per_worker
    fewest, most = cluster.min_workers, cluster.max_workers
    return Resources(
        num_cpus=fewest * cpus,
        num_gpus=fewest * gpus,
        max_cpus=most * cpus if cluster.is_elastic else None,
        max_gpus=most * gpus if cluster.is_elastic else None,
    )


def _shards(name: str, training: PretrainConfig, base: TokenShardsConfig, corpus: Step, tokenizer: Step) -> Step:
    config = base.model_copy(update={"sequence_length": training.sequence_length})
    return Step(
        name=name,
        function="components.tokenization.step:make_token_shards",
        config=config,
        inputs={"corpus": corpus, "tokenizer": tokenizer},
        resources=Resources(num_cpus=1),
    )


def _training(
    name: str,
    config: PretrainConfig,
    tokenizer: Step,
    shards: Step,
    *,
    init: Step | None = None,
    raw: tuple[RawFile, ...] = (),
) -> Step:
    inputs = {"tokenizer": tokenizer, "token_shards": shards} | ({"init": init} if init else {})
    return Step(
        name=name,
        function="components.pretraining.step:pretrain",
        config=config,
        inputs=inputs,
        raw={"init_from": raw} if raw else {},
        resources=_resources(config.cluster),
        stop_seconds=STOP_SECONDS,
    )


def _examples_config(config: PipelineConfig) -> PromptExamplesConfig:
    shared = {name: getattr(config.prompt, name) for name in PromptFormat.model_fields}
    return PromptExamplesConfig(
        **shared,
        max_examples=config.tune_examples,
        sequence_length=config.tune_decoder.sequence_length,
        seed=config.seed,
    )


class _Raw:
    """Resolves paths and collects what is wrong with them, so that every problem is told at once."""

    def __init__(self, digests: DigestCache | None) -> None:
        self.problems: list[str] = []
        self._digests = digests

    def find(
        self, pattern: str | None, declared: RawFormat | None, where: str, *, is_local: bool = False
    ) -> tuple[RawFile, ...]:
        """The files of `pattern`; none where it is None or wrong. `is_local`: whether it must be on this machine."""
        if pattern is None:
            return ()
        if is_local and "://" in pattern:
            self.problems.append(f"{where}: {pattern} is not a folder of this machine; copy the model first")
            return ()
        try:
            return resolve(_from_conf(pattern), declared, where, self._digests)
        except UserError as error:
            self.problems.append(str(error))
            return ()

    def check(self) -> None:
        """Raises ConfigError if anything was wrong."""
        if self.problems:
            raise ConfigError(*self.problems)


class _RawElsewhere(_Raw):
    """Stands in for files of other machines: one stand-in a pattern, told from others by what can be seen of the files
    from here without reading them: nothing, or path, size and time of modification."""

    def find(
        self, pattern: str | None, declared: RawFormat | None, where: str, *, is_local: bool = False
    ) -> tuple[RawFile, ...]:
        """The stand-in; the files themselves where they lie in conf/, which goes along."""
        if pattern is None or pattern.startswith("conf:") or (is_local and "://" in pattern):
            return super().find(pattern, declared, where, is_local=is_local)
        if not Path(pattern).is_absolute() and "://" not in pattern:
            self.problems.append(
                f"{where}: {pattern} is relative, which counts from nowhere on a cluster: write an absolute path that "
                "all its nodes see"
            )
            return ()
        seen = hashlib.sha256(json.dumps([pattern, *look(pattern)]).encode()).hexdigest()
        return (RawFile(path=pattern, digest=seen, num_bytes=0, format=declared or "text", compression=None),)


def _from_conf(pattern: str) -> str:
    """`conf:` stands for the folder of the configs, where the data of the defaults lies."""
    if pattern.startswith("conf:"):
        return str(Path(__file__).resolve().parents[1] / "conf" / pattern.removeprefix("conf:"))
    return pattern
