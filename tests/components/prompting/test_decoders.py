"""What pretraining leaves of each decoder is scored by the worker of the prompting step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.pretraining.config import PretrainConfig
from components.pretraining.export import write_export
from components.pretraining.networks.models import build_model
from components.prompting.encoding import PromptEncoder, PromptSpec
from components.prompting.template import Demonstration, parse_template
from components.prompting.worker import PromptWorker, ScoringUnit, longest_prompt

DECODERS = [("causal_lm", "gpt2"), ("causal_lm", "qwen3"), ("prefix_lm", "llama"), ("causal_lm", "llama")]


def export(objective: str, architecture: str, tokenizer: Any, work: Path, positions: int) -> Path:
    sizes: dict[str, Any] = {"architecture": architecture, "hidden_size": 32, "num_layers": 2, "num_heads": 2}
    sizes["max_position_embeddings"] = positions
    told = {"objective": objective, "model": sizes, "sequence_length": 64}
    model = build_model(PretrainConfig.model_validate(told), len(tokenizer), {"pad": 0, "bos": 2, "eos": 3})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    tokenizer.save_pretrained(work / "tokenizer")
    write_export(
        work,
        attempt="one",
        model=model,
        state={name: parameter.detach() for name, parameter in model.named_parameters()},
        tokenizer=work / "tokenizer",
        card="",
        history=[],
        samples={"columns": [], "data": []},
        result={},
    )
    return work / "export" / "model"


@pytest.mark.parametrize("positions", [96, 300])
@pytest.mark.parametrize(("objective", "architecture"), DECODERS)
def test_the_worker_scores_an_export_up_to_its_last_position(
    objective: str, architecture: str, positions: int, byte_tokenizer: Any, tmp_path: Path
) -> None:
    """Long texts are cut to the positions that the model has; the scores are those of one plain pass for each label."""
    from transformers import AutoModelForCausalLM

    folder = export(objective, architecture, byte_tokenizer, tmp_path, positions)
    template = parse_template("Definition: {{text}}\nCategory: {{label}}", instruction="", demo_delimiter="\n\n")
    shown = tuple(Demonstration(id=str(i), text=f"a thing for purpose {i}", phrase="tool") for i in range(2))
    spec = PromptSpec(template=template, demonstrations=shown, phrases=("artifact", "person"))
    texts = ("a tool", "someone who reads " * 150)
    unit = ScoringUnit(name="one", model_folder=folder, spec=spec, texts=texts, max_length=None)
    scored = PromptWorker(1, 4, use_gpu=False).score(unit)
    assert scored.counts["num_texts_cut"] == 1
    assert scored.counts["inference_flops"] > 0
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    limit = longest_prompt(model.config, None)
    assert limit == positions
    encoder = PromptEncoder(byte_tokenizer, spec, limit)
    prompts = encoder.encode(texts)
    longest = max(len(prompt.ids) for prompt in prompts) + max(map(len, encoder.label_ids))
    assert limit - 4 < longest <= limit
    for row, prompt in enumerate(prompts):
        for column, label in enumerate(encoder.label_ids):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[*prompt.ids, *label]])).logits[0].double().log_softmax(-1)
            expected = sum(float(logits[len(prompt.ids) - 1 + i, token]) for i, token in enumerate(label))
            assert np.isclose(scored.scores_NK[row, column], expected, atol=1e-4)


@pytest.mark.parametrize(("objective", "architecture"), DECODERS)
def test_an_export_is_what_tune_decoder_starts_from(
    objective: str, architecture: str, byte_tokenizer: Any, tmp_path: Path
) -> None:
    folder = export(objective, architecture, byte_tokenizer, tmp_path, 96)
    told = {"objective": "label_lm", "model": {"init_from": str(folder)}, "sequence_length": 64}
    size = len(byte_tokenizer)
    found = build_model(PretrainConfig.model_validate(told), size, {"pad": 0, "bos": 2, "eos": 3})
    assert found.config.model_type == architecture
    from transformers import AutoModelForCausalLM

    source = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert all(torch.equal(source[name], weight) for name, weight in found.state_dict().items())
