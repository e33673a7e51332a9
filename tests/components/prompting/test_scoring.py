"""Label log-likelihoods against one plain forward pass for each label, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from components.prompting.encoding import EncodedPrompt, PromptEncoder, PromptSpec
from components.prompting.scoring import LabelScorer, packing_refusal
from components.prompting.template import Demonstration, parse_template
from components.prompting.trie import LabelTrie

TEXTS = [
    "a tool used for cutting",
    'someone who reads; "a good reader"',
    "the act of moving from one place to another by sea",
    "x",
    "a vessel made of glass in which time is measured by a person who travels",
]
ONE_TOKEN = [[10], [11], [12], [13]]
CHAIN = [[10], [11, 12, 13], [14, 15]]
BRANCHING = [[10, 11, 12], [10, 11, 13], [10, 14], [15], [10, 14, 11, 12], [16, 11]]


def encoded(tokenizer: Any, shots: int) -> list[EncodedPrompt]:
    template = parse_template(
        "Definition: {{text}}\nCategory: {{label}}", instruction="Name the category.", demo_delimiter="\n\n"
    )
    demonstrations = tuple(
        Demonstration(id=str(i), text=f"a thing for purpose {i}", phrase=("tool", "person")[i % 2])
        for i in range(shots)
    )
    spec = PromptSpec(template=template, demonstrations=demonstrations, phrases=("artifact", "person"))
    return PromptEncoder(tokenizer, spec, 256).encode(TEXTS)


def naive(model: Any, prompts: Sequence[EncodedPrompt], label_ids: Sequence[Sequence[int]]) -> np.ndarray:
    """The reference: one full forward pass over each context with each label, all logits, no cache, no mask."""
    out = np.zeros((len(prompts), len(label_ids)))
    with torch.no_grad():
        for row, prompt in enumerate(prompts):
            for column, label in enumerate(label_ids):
                ids = torch.tensor([[*prompt.ids, *label]])
                log_probabilities = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
                positions = range(len(prompt.ids) - 1, ids.shape[1] - 1)
                out[row, column] = sum(float(log_probabilities[p, ids[0, p + 1]]) for p in positions)
    return out


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize("shots", [0, 2, 4])
@pytest.mark.parametrize("label_ids", [ONE_TOKEN, CHAIN, BRANCHING], ids=["one_token", "chain", "branching"])
def test_scores_equal_a_full_forward_pass_for_each_label(
    kind: str, shots: int, label_ids: list[list[int]], byte_tokenizer: Any, make_model: Callable[..., Any]
) -> None:
    model = make_model(kind, len(byte_tokenizer)).double()
    prompts = encoded(byte_tokenizer, shots)
    assert packing_refusal(model) is None
    assert all(prompt.prefix_length > shots * 5 for prompt in prompts)
    scores = LabelScorer(model, batch_size=3).score(prompts, label_ids).scores_NK
    assert np.abs(scores - naive(model, prompts, label_ids)).max() < 1e-9


def test_a_complete_vocabulary_of_one_token_labels_sums_to_one(
    byte_tokenizer: Any, make_model: Callable[..., Any]
) -> None:
    model = make_model("llama", len(byte_tokenizer)).double()
    labels = [[token] for token in range(len(byte_tokenizer))]
    scores = LabelScorer(model, 4).score(encoded(byte_tokenizer, 2), labels).scores_NK
    np.testing.assert_allclose(np.exp(scores).sum(axis=1), 1.0, atol=1e-12)


@pytest.mark.parametrize("label_ids", [ONE_TOKEN, BRANCHING], ids=["one_token", "branching"])
def test_neither_order_nor_neighbours_nor_batch_size_nor_reuse_changes_a_score(
    label_ids: list[list[int]], byte_tokenizer: Any, make_model: Callable[..., Any]
) -> None:
    model = make_model("llama", len(byte_tokenizer)).double()
    prompts = encoded(byte_tokenizer, 2)
    scorer = LabelScorer(model, 8)
    want = scorer.score(prompts, label_ids).scores_NK
    again = scorer.score(prompts, label_ids).scores_NK  # the prefix of the first call, now cached
    backwards = scorer.score(prompts[::-1], label_ids).scores_NK[::-1]
    alone = np.concatenate([LabelScorer(model, 1).score([prompt], label_ids).scores_NK for prompt in prompts])
    for other in (again, backwards, alone):
        assert np.abs(other - want).max() < 1e-12


def test_prompts_with_different_prefixes_in_one_call_keep_their_own(
    byte_tokenizer: Any, make_model: Callable[..., Any]
) -> None:
    model = make_model("llama", len(byte_tokenizer)).double()
    mixed = [p for pair in zip(encoded(byte_tokenizer, 0), encoded(byte_tokenizer, 4), strict=True) for p in pair]
    scores = LabelScorer(model, 3).score(mixed, CHAIN).scores_NK
    assert np.abs(scores - naive(model, mixed, CHAIN)).max() < 1e-9


def test_labels_are_scored_by_all_their_tokens_not_the_first(
    byte_tokenizer: Any, make_model: Callable[..., Any]
) -> None:
    model = make_model("llama", len(byte_tokenizer)).double()
    scores = LabelScorer(model, 4).score(encoded(byte_tokenizer, 0), [[10, 11], [10, 12]]).scores_NK
    assert np.all(scores[:, 0] != scores[:, 1])


def test_a_model_with_a_sliding_window_takes_the_plain_path_and_is_exact(
    byte_tokenizer: Any, make_model: Callable[..., Any]
) -> None:
    model = make_model("mistral", len(byte_tokenizer)).double()
    assert "sliding window" in (packing_refusal(model) or "")
    prompts = encoded(byte_tokenizer, 2)
    scored = LabelScorer(model, 3).score(prompts, BRANCHING)
    assert scored.num_tokens_reused == 0
    assert np.abs(scored.scores_NK - naive(model, prompts, BRANCHING)).max() < 1e-9


def test_a_model_type_nobody_checked_and_eager_attention_are_refused(make_model: Callable[..., Any]) -> None:
    model = make_model("llama", 64)
    model.config._attn_implementation = "eager"  # it would add a boolean mask to the logits
    assert "eager" in (packing_refusal(model) or "")
    model.config.model_type = "mamba"
    assert "mamba" in (packing_refusal(model) or "")


def test_logits_in_chunks_give_the_same_scores(
    byte_tokenizer: Any, make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("llama", len(byte_tokenizer)).double()
    prompts = encoded(byte_tokenizer, 2)
    want = LabelScorer(model, 4).score(prompts, BRANCHING).scores_NK
    monkeypatch.setattr("components.prompting.scoring.MAX_LOGITS", 1000)
    assert np.abs(LabelScorer(model, 4).score(prompts, BRANCHING).scores_NK - want).max() < 1e-12


def test_a_trie_runs_inner_nodes_once_and_no_leaf() -> None:
    assert LabelTrie.build(ONE_TOKEN).tokens == ()
    trie = LabelTrie.build(BRANCHING)
    assert sorted(trie.tokens) == [10, 11, 11, 14, 16]
    assert len(trie.edge_tokens) == sum(map(len, BRANCHING))
    seen = trie.visible()
    for node, parent in enumerate(trie.parents):
        assert parent <= node  # parents come first
        assert seen[node].sum() == trie.depths[node]


def test_tokens_run_and_reused_add_up_to_all_tokens(byte_tokenizer: Any, make_model: Callable[..., Any]) -> None:
    model = make_model("llama", len(byte_tokenizer))
    prompts = encoded(byte_tokenizer, 4)
    scored = LabelScorer(model, 4).score(prompts, CHAIN)
    nodes = len(LabelTrie.build(CHAIN).tokens)
    total = sum(len(prompt.ids) for prompt in prompts) + nodes * len(prompts)
    assert scored.num_tokens_run + scored.num_tokens_reused == total
    assert scored.num_positions_scored == (1 + nodes) * len(prompts)
