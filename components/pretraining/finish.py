"""The end of a training: its counts, its weights, and what it leaves."""

from __future__ import annotations

import time

import torch.distributed as dist

from components.pretraining.checkpoints.checkpoint import Progress
from components.pretraining.config import TASKS, PretrainConfig, num_sentinels
from components.pretraining.evaluation.samples import table, take_samples, without_samples
from components.pretraining.evaluation.throughput import peak_memory_mib
from components.pretraining.evaluation.validation import evaluate, training_counts, unigram_cross_entropy
from components.pretraining.export import EXPORT_NAME, RESULT_NAME, model_card, write_export
from components.pretraining.networks.models import TargetLoss
from components.pretraining.training import Training
from infra.energy.flops import shape_of


def finish(training: Training) -> None:
    """Judges the model and writes the export; all ranks take part, because the weights are spread over them."""
    job, config, state, engine = training.job, training.config, training.state, training.engine
    started = time.monotonic()
    evaluation = evaluate(engine, training.validation, training.objective, config)
    state.evaluation_seconds += time.monotonic() - started
    engine.mark("finish")
    take_samples(training)
    engine.mark("finish")
    metrics = evaluated = evaluation.metrics(training.validation)
    counts_V = training_counts(training.shards, training.objective)
    if counts_V is not None and config.kind != "encoder_decoder":  # whose targets are sentinels too, or all of the text
        unigrams = unigram_cross_entropy(counts_V, evaluation.target_counts_V, training.objective)
        metrics = {**metrics, "unigram_cross_entropy": unigrams}
    metrics = {
        **metrics,
        "sample_hash": state.progress.sample_hash,
        "train_loss": training.final_loss(),
        **_counts(training.module, config, state.progress),
    }
    peak = peak_memory_mib(engine.device)
    full = engine.full_state()
    prefix = "language_model."
    weights = {name.removeprefix(prefix): value for name, value in full.items()}
    metrics["num_parameters"] = sum(value.numel() for value in weights.values())
    training.log(evaluated, {})
    if dist.get_rank() == 0:
        measured = {
            **training.throughput.whole(state.mark, flops_per_token(training.module, config, state.progress)),
            "peak_tflops": training.throughput.peak / 1e12,
            "train_seconds": state.train_seconds,
            "evaluation_seconds": state.evaluation_seconds,
            "checkpoint_stall_seconds": training.writer.stall_seconds,
            "checkpoint_write_seconds": training.writer.write_seconds,
            "peak_memory_mib_per_rank": peak,
        }
        engine.mark("finish")
        write_export(
            job.work,
            attempt=training.attempt,
            model=training.module.language_model,
            state=weights,
            tokenizer=job.tokenizer,
            num_sentinels=num_sentinels(config),
            card=model_card(
                title=job.name,
                task=TASKS[config.kind],
                key=job.key,
                data_license=job.data_license,
                metrics=metrics,
                settings=config.model_dump(mode="json", exclude={"cluster", "model"}),
            ),
            history=without_samples(state.history),
            samples=table(config, state.history),
            result={"metrics": metrics, "measured": measured, "first_step_at": state.first_step_at},
        )
        engine.mark("finish")
        job.mirror.push(job.work / EXPORT_NAME, last=RESULT_NAME)
    dist.barrier()


def flops_per_token(module: TargetLoss, config: PretrainConfig, progress: Progress) -> float:
    """FLOPs of training on one token, on average so far: the part of the tokens that are targets passes the head."""
    return _counts(module, config, progress)["train_flops"] / max(1, progress.num_tokens)


def _counts(module: TargetLoss, config: PretrainConfig, progress: Progress) -> dict[str, float | int]:
    """Size, steps, tokens and FLOPs; attention counts whole packed sequences, half of them if causal.

    The decoder of an encoder-decoder reads one token for each target; its rows hold as many of them, of the encoder's
    tokens, as the whole training did.
    """
    length = config.sequence_length
    decoder_tokens = progress.num_targets if config.kind == "encoder_decoder" else 0
    flops = shape_of(module.language_model.config).flops(
        num_tokens=progress.num_tokens,
        span=length / (2 if config.kind == "decoder" else 1),
        num_head_tokens=progress.num_targets,
        num_decoder_tokens=decoder_tokens,
        decoder_span=length * decoder_tokens / max(1, progress.num_tokens) / 2,
    )
    return {"train_flops": flops, "steps": progress.step, "num_tokens": progress.num_tokens}
