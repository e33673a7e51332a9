"""One fit of a classifier in plain PyTorch: cross-entropy on all weights, resumable to the bit.

Batches, dropout and learning rate are functions of (seed, step), so that k steps, a stop, and N - k more equal N steps
never stopped. Training runs under bf16 autocast with fp32 weights (on a CPU with AVX512-BF16 about 1.3 times as fast
at the same quality); everything is judged in fp32. A loss that is not finite ends a trial of the sweep as the worst,
and a final fit with an error.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch.nn import functional

from components.finetuning.config import FinetuneConfig
from components.finetuning.data import (
    EncodedSplit,
    IntArray,
    budget_rows,
    load_encoded,
    training_batches,
    validation_rows,
)
from components.finetuning.metrics import accuracy, macro_f1
from components.finetuning.models import build_classifier, predict_logits, training_flops
from components.finetuning.sweep import Unit
from components.finetuning.units import UnitResult, load_state, read_result, save_unit
from infra.errors import TrainingError
from infra.storage.mirror import Mirror

STREAM = 1_000_003
HISTORY_POINTS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What all units of a sweep share."""

    config: FinetuneConfig
    encoder: Path
    data: Path
    units: Path
    labels: tuple[str, ...]
    pad_token_id: int
    mirror: Mirror = Mirror(Path("/"))
    """Of the root that the paths lie in."""


class Fit:
    """A model, its optimizer and its place in the schedule.

    Args:
        job: what all units share.
        unit: what is trained.
    """

    def __init__(self, job: Job, unit: Unit) -> None:
        self.job = job
        self.unit = unit
        self.seed = job.config.seed + unit.seed_index
        self.device = "cuda" if job.config.cluster.num_gpus_per_worker and torch.cuda.is_available() else "cpu"
        self.split = load_encoded(job.data, "train")
        dropout = unit.hyperparameters.dropout
        self.model: Any = build_classifier(
            job.encoder,
            unit.init,
            job.labels,
            dropout=dropout,
            seed=self.seed,
            attention="eager" if self.device == "cpu" else "sdpa",
        )
        self.model.to(self.device)
        self.optimizer = make_optimizer(self.model, unit.hyperparameters.weight_decay)
        self.rows = budget_rows(self.split.ids, self.split.label_N, unit.budget, self.seed)
        self.step = 0
        self.num_tokens = 0
        self.num_texts = 0
        self.history: list[tuple[int, dict[str, float]]] = []
        self.diverged = unit.resume is not None and read_result(job.units / unit.resume).diverged
        if unit.resume is not None and not self.diverged:
            before = load_state(job.units / unit.resume, self.model, self.optimizer)
            self.step, self.num_tokens, self.num_texts = before.step, before.num_tokens, before.num_texts
            self.history = [(step, dict(point)) for step, point in before.history]

    def train(self) -> Iterator[int]:
        """Trains to the end of the unit; yields the number of texts of each step.

        Raises:
            TrainingError: the loss is not a finite number, or was not in the rung before.
        """
        hyperparameters, until = self.unit.hyperparameters, self.unit.until_step
        if self.diverged:
            self._fail(math.nan)
        every = max(1, self.unit.total_steps // HISTORY_POINTS)
        batches = training_batches(self.split.lengths_N, self.rows, hyperparameters.batch_size, self.seed)
        total_loss = torch.zeros(())
        since = self.step
        for rows_B in islice(batches, self.step, until):
            loss = self._step(rows_B)
            total_loss += loss
            self.step += 1
            if self.step % every == 0 or self.step == until:
                mean = float(total_loss) / (self.step - since)
                if not math.isfinite(mean):
                    self._fail(mean)
                self.history.append((self.step, {"train_loss": mean}))
                total_loss, since = torch.zeros(()), self.step
            yield len(rows_B)

    def _fail(self, loss: float) -> NoReturn:
        raise TrainingError(
            f"{self.unit.name}: the loss is {loss} at step {self.step} with learning rate "
            f"{self.unit.hyperparameters.learning_rate}; lower finetune.learning_rate_max"
        )

    def _step(self, rows_B: IntArray) -> torch.Tensor:
        unit, config = self.unit, self.job.config
        torch.manual_seed((self.seed * STREAM + self.step) % 2**63)
        rate = unit.hyperparameters.learning_rate * schedule(self.step, unit.total_steps, config.warmup_fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        tokens_BL, mask_BL = self.split.pad(rows_B, self.job.pad_token_id)
        label_B = torch.from_numpy(self.split.label_N[rows_B]).to(self.device)
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=config.precision == "bf16"):
            logits_BC = self.model(
                input_ids=torch.from_numpy(tokens_BL).to(self.device),
                attention_mask=torch.from_numpy(mask_BL).to(self.device),
            ).logits
        loss = functional.cross_entropy(
            logits_BC.float(), label_B, label_smoothing=unit.hyperparameters.label_smoothing
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.max_gradient_norm)
        self.optimizer.step()
        self.num_tokens += int(mask_BL.sum())
        self.num_texts += len(rows_B)
        return loss.detach().cpu()

    def judge(self, split: EncodedSplit, rows: IntArray) -> tuple[IntArray, dict[str, float]]:
        """Predicted classes [len(rows)] and accuracy, macro-F1 and loss in fp32."""
        logits = predict_logits(self.model, split, rows, self.job.pad_token_id, self.device)
        predicted_N: IntArray = logits.argmax(axis=1).astype(np.int64)
        label_N = split.label_N[rows]
        return predicted_N, {
            "accuracy": accuracy(label_N, predicted_N),
            "macro_f1": macro_f1(label_N, predicted_N, len(self.job.labels)),
            "loss": float(functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(label_N))),
        }


def make_optimizer(model: torch.nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019); biases and norms do not decay."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, fused=True)


def schedule(step: int, total_steps: int, warmup_fraction: float) -> float:
    """Share of the peak learning rate at `step`: linear up over the warmup, then linear down to 0 after the last."""
    warmup = math.ceil(warmup_fraction * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    return (total_steps - step) / max(1, total_steps - warmup)


def run_unit(job: Job, unit: Unit) -> Iterator[int]:
    """Trains and judges one unit and saves what it found; yields the texts of each step as they are done.

    Raises:
        TrainingError: a final fit diverged.
        DamagedArtifactError: the state it goes on from is not what was saved.
    """
    start = time.monotonic()
    for path in (job.encoder, job.data, *([job.units / unit.resume] if unit.resume else [])):
        job.mirror.pull(path)
    validation = load_encoded(job.data, "validation")
    rows = validation_rows(validation.ids, job.config.max_validation_rows, job.config.seed)
    fit = Fit(job, unit)
    before = fit.num_texts
    predicted_N: IntArray | None = None
    try:
        yield from fit.train()
        _, found = fit.judge(validation, rows)
        metrics = {f"validation_{name}": value for name, value in found.items()}
        diverged = False
    except TrainingError:
        if unit.judge == "test":
            raise
        metrics, diverged = {"validation_accuracy": -1.0, "validation_macro_f1": -1.0}, True
    fit.history.append((fit.step, metrics))
    if unit.judge == "test":
        test = load_encoded(job.data, "test")
        predicted_N, found = fit.judge(test, np.arange(len(test), dtype=np.int64))
        metrics |= {f"test_{name}": value for name, value in found.items() if name != "loss"}
    save_unit(
        job.units,
        unit,
        UnitResult(
            step=fit.step,
            num_tokens=fit.num_tokens,
            num_texts=fit.num_texts,
            num_texts_own=fit.num_texts - before,
            train_flops=training_flops(fit.model.config, fit.num_tokens, fit.num_texts),
            metrics=metrics,
            history=tuple(fit.history),
            diverged=diverged,
            seconds=time.monotonic() - start,
        ),
        model=fit.model,
        optimizer=fit.optimizer,
        predicted_N=predicted_N,
        mirror=job.mirror,
    )
