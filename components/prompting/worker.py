"""One process that scores prompts: loads a model once and keeps it while units of the same model arrive.

Scores are in fp32 (bf16 moves log-likelihoods by .05; fp32 by 4e-6). No Ray here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components.prompting.calibration import FloatArray
from components.prompting.encoding import PromptEncoder, PromptSpec
from infra.errors import UserError
from infra.storage.mirror import Mirror

BOUNDARY_SAMPLE = 16
"""Prompts of a unit whose label boundary is checked against whole-text tokenisation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoringUnit:
    """A block of texts under one prompt and one model."""

    name: str
    """Unique in a step; names the unit's file."""
    model_folder: Path
    spec: PromptSpec
    texts: tuple[str, ...]
    max_length: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredUnit:
    """Log-likelihoods [N, K] of a unit and its counts, which add up over units."""

    scores_NK: FloatArray
    counts: Mapping[str, float]
    prefix_lengths: Mapping[int, int]

    def save(self, path: Path) -> None:
        """Writes the unit whole or not at all."""
        text = json.dumps({"counts": dict(self.counts), "prefix_lengths": list(self.prefix_lengths.items())})
        partial = path.with_suffix(".partial")
        with partial.open("wb") as stream:
            np.savez(stream, scores=self.scores_NK, notes=np.frombuffer(text.encode(), dtype=np.uint8))
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> ScoredUnit:
        """Reads what `save` wrote; arrays only, nothing is unpickled."""
        with np.load(path, allow_pickle=False) as arrays:
            notes = json.loads(arrays["notes"].tobytes())
            return cls(scores_NK=arrays["scores"], counts=notes["counts"], prefix_lengths=dict(notes["prefix_lengths"]))


class PromptWorker:
    """Scores units.

    Args:
        num_threads: CPU threads of torch.
        batch_size: prompts in one forward pass.
        use_gpu: whether the model goes to the GPU.
        mirror: brings the models to this machine.
    """

    def __init__(self, num_threads: int, batch_size: int, use_gpu: bool, mirror: Mirror = Mirror(Path("/"))) -> None:
        import torch
        import transformers

        torch.set_num_threads(num_threads)
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self._batch_size = batch_size
        self._mirror = mirror
        self._device = "cuda" if use_gpu and torch.cuda.is_available() else "cpu"
        self._folder: Path | None = None
        self._scorer: Any = None
        self._tokenizer: Any = None

    def ready(self) -> bool:
        """Tells that the process is up and its imports are done."""
        return True

    def score(self, unit: ScoringUnit) -> ScoredUnit:
        """Log-likelihoods of the labels for every text of the unit."""
        from components.prompting.scoring import inference_flops

        self._mirror.pull(unit.model_folder)
        self._load(unit.model_folder)
        model = self._scorer.model
        encoder = PromptEncoder(self._tokenizer, unit.spec, longest_prompt(model.config, unit.max_length))
        prompts = encoder.encode(unit.texts)
        scored = self._scorer.score(prompts, encoder.label_ids)
        sample = prompts[:BOUNDARY_SAMPLE]
        shots = len(unit.spec.demonstrations)
        counts: dict[str, float] = {
            "num_tokens_run": scored.num_tokens_run,
            "num_tokens_reused": scored.num_tokens_reused,
            "num_texts_cut": sum(prompt.was_cut for prompt in prompts),
            "num_prompts_with_fewer_demonstrations": sum(prompt.num_demonstrations < shots for prompt in prompts),
            "num_demonstrations_dropped": sum(shots - prompt.num_demonstrations for prompt in prompts),
            "num_boundaries_checked": len(sample) * len(encoder.label_ids),
            "num_boundaries_merged": encoder.boundary_mismatches(sample),
            "inference_flops": inference_flops(model, scored),
        }
        return ScoredUnit(scores_NK=scored.scores_NK, counts=counts, prefix_lengths=scored.prefix_lengths)

    def _load(self, folder: Path) -> None:
        if folder == self._folder:
            return
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from components.prompting.scoring import LabelScorer

        self._scorer = None  # one model in memory at a time
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._scorer = LabelScorer(model.to(self._device), self._batch_size)
        self._folder = folder


def longest_prompt(model_config: Any, wanted: int | None) -> int:
    """Tokens a prompt with its label may have: what the user wants, within the model's positions.

    Raises:
        UserError: the user wants more than the model has.
    """
    limit = getattr(model_config, "max_position_embeddings", None)
    if wanted is not None and limit is not None and wanted > limit:
        raise UserError(f"prompt.max_length: {wanted} is more than the model's {limit} positions; lower it")
    found: Sequence[int] = [length for length in (wanted, limit) if length is not None]
    return min(found, default=2048)


def concatenate(units: Sequence[ScoredUnit]) -> ScoredUnit:
    """The units of one prompt as one, in order; counts are added."""
    return ScoredUnit(
        scores_NK=np.concatenate([unit.scores_NK for unit in units]),
        counts={name: sum(unit.counts[name] for unit in units) for name in units[0].counts},
        prefix_lengths={kept: length for unit in units for kept, length in unit.prefix_lengths.items()},
    )
