"""The end of a training: its counts, its weights, and what it leaves."""

from __future__ import annotations

import resource

import torch
import torch.distributed as dist

from components.pretraining.checkpoint import Progress
from components.pretraining.config import PretrainConfig
from components.pretraining.evaluation import evaluate, training_counts, unigram_cross_entropy
from components.pretraining.export import EXPORT_NAME, RESULT_NAME, model_card, write_export
from components.pretraining.models import TargetLoss
from components.pretraining.training import Training
from infra.energy.flops import matmul_parameters, transformer_flops

TASKS = {"encoder": "fill-mask", "encoder_decoder": "text2text-generation", "decoder": "text-generation"}
"""The transformers pipeline task of each kind of network."""


def finish(training: Training) -> None:
    """Judges the model and writes the export; all ranks take part, because the weights are spread over them."""
    job, config, state, engine = training.job, training.config, training.state, training.engine
    evaluation = evaluate(engine, training.validation, training.objective, config)
    metrics = evaluation.metrics(training.objective, training.validation)
    counts_V = training_counts(training.shards, training.objective)
    if counts_V is not None:
        metrics["unigram_cross_entropy"] = unigram_cross_entropy(
            counts_V, evaluation.target_counts_V, training.objective
        )
    metrics |= {"sample_hash": state.progress.sample_hash}
    metrics |= {"train_loss": training.final_loss(), **_counts(training.module, config, state.progress)}
    peak = torch.tensor([float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)], device=engine.device)
    dist.all_reduce(peak, op=dist.ReduceOp.MAX)
    full = engine.full_state()
    prefix = "language_model."
    weights = {name.removeprefix(prefix): value for name, value in full.items()}
    metrics["num_parameters"] = sum(value.numel() for value in weights.values())
    training.log({k: v for k, v in metrics.items() if k.startswith(("validation", "bits"))}, {})
    if dist.get_rank() == 0:
        measured = {
            "tokens_per_second": state.tokens_per_second,
            "train_seconds": state.train_seconds,
            "checkpoint_stall_seconds": training.writer.stall_seconds,
            "checkpoint_write_seconds": training.writer.write_seconds,
            "peak_memory_mib_per_rank": float(peak) / 1024,
        }
        write_export(
            job.work,
            attempt=training.attempt,
            model=training.module.language_model,
            state=weights,
            tokenizer=job.tokenizer,
            card=model_card(
                title=job.name,
                task=TASKS[config.kind],
                key=job.key,
                data_license=job.data_license,
                metrics=metrics,
                settings=config.model_dump(mode="json", exclude={"cluster", "model"}),
            ),
            history=state.history,
            result={"metrics": metrics, "measured": measured, "first_step_at": state.first_step_at},
        )
        job.mirror.push(job.work / EXPORT_NAME, last=RESULT_NAME)
    dist.barrier()


def _counts(module: TargetLoss, config: PretrainConfig, progress: Progress) -> dict[str, float | int]:
    """Size, steps, tokens and FLOPs; attention counts whole packed sequences, half of them if causal."""
    model = module.language_model.config
    causal = config.kind == "decoder"
    flops = transformer_flops(
        num_matmul_parameters=matmul_parameters(
            hidden_size=model.hidden_size,
            num_layers=model.num_hidden_layers,
            intermediate_size=model.intermediate_size,
            gated=config.architecture != "bert",
        ),
        num_tokens=progress.num_tokens,
        num_layers=model.num_hidden_layers,
        hidden_size=model.hidden_size,
        attention_span=config.sequence_length / (2 if causal else 1),
        num_head_parameters=model.hidden_size * (model.vocab_size + (0 if causal else model.hidden_size)),
        num_head_tokens=progress.num_targets,
        training=True,
    )
    return {"train_flops": flops, "steps": progress.step, "num_tokens": progress.num_tokens}
