"""The losses of every architecture against transformers' own on each document alone; starts from other networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from components.pretraining.config import KINDS, PretrainConfig, num_sentinels
from components.pretraining.networks import models
from components.pretraining.networks.document_attention import document_attention
from components.pretraining.networks.models import TargetLoss, build_model
from infra.errors import ConfigError

SPECIAL = {"pad": 0, "bos": 2, "eos": 3}
OBJECTIVES = {"encoder": "masked_lm", "encoder_decoder": "denoising", "decoder": "causal_lm"}
NETWORKS = [*KINDS.items()]


def config(architecture: str | None, kind: str, objective: str | None = None, **more: Any) -> PretrainConfig:
    model = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "architecture": architecture, **more.pop("model", {})}
    told = {"objective": objective or OBJECTIVES[kind], "model": model, "sequence_length": 48, **more}
    return PretrainConfig.model_validate(told)


def build(architecture: str, kind: str, **more: Any) -> Any:
    model = build_model(config(architecture, kind, **more), 500, SPECIAL).eval()
    with torch.no_grad():  # biases and norms too, so that none is forgotten
        for number, parameter in enumerate(model.parameters()):
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    return model


@pytest.mark.parametrize(
    ("architecture", "kind", "attention"),
    [
        (*network, attention)
        for network in NETWORKS
        for attention in ("eager", "sdpa", "documents")
        if (network[1], attention) != ("encoder_decoder", "documents")  # cross-attention takes a mask
    ],
)
def test_packed_documents_lose_what_transformers_says_of_each_alone(
    architecture: str, kind: str, attention: str, packed: Any
) -> None:
    model = build(architecture, kind)
    model.set_attn_implementation(attention)
    documents = packed.documents(kind, (9, 13, 6, 11, 17))
    batch = packed.pack([documents[:3], documents[3:]], kind, 48)
    module = TargetLoss(model).eval()
    assert module.reads_masks == (attention != "documents")
    if not module.reads_masks:
        del batch["attention_B1LL"]
    ours = float(module(**batch)[0].detach())
    assert ours == pytest.approx(sum(packed.alone(model, kind, document) for document in documents), rel=1e-5)


@pytest.mark.parametrize(("architecture", "kind"), [network for network in NETWORKS if network[1] != "encoder_decoder"])
def test_where_no_mask_is_read_none_is_made(
    architecture: str, kind: str, packed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By transformers neither: L * L of a row, where the windows of its documents would do."""
    model = build(architecture, kind)
    model.set_attn_implementation("documents")
    seen = []

    def attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **told: Any) -> Any:
        seen.append(attention_mask.numel())
        return document_attention(module, query, key, value, attention_mask, **told)

    monkeypatch.setitem(transformers.AttentionInterface._global_mapping, "documents", attend)
    batch = packed.pack([packed.documents(kind, (9, 13, 6))], kind, 48)
    del batch["attention_B1LL"]
    TargetLoss(model).eval()(**batch)
    assert seen == [1, 1]


@pytest.mark.parametrize(("architecture", "kind"), NETWORKS)
def test_a_document_does_not_see_its_neighbours(architecture: str, kind: str, packed: Any) -> None:
    model = build(architecture, kind)
    module = TargetLoss(model).eval()
    document, one, other = packed.documents(kind, (9, 13, 6))
    stranger = packed.documents(kind, (13,), seed=7)[0]
    losses = []
    for row in ([document], [one, document], [stranger, document, other]):
        both = float(module(**packed.pack([row], kind, 48))[0].detach())
        rest = [d for d in row if d is not document]
        losses.append(both - sum(packed.alone(model, kind, d) for d in rest))
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-4)
    assert losses[0] > 1


def test_next_sentence_prediction_is_that_of_bert(packed: Any) -> None:
    model = build("bert", "encoder", objective="masked_lm_nsp")
    documents = packed.documents("encoder", (9, 13, 6))
    batch = packed.pack([documents[:2], documents[2:]], "encoder", 32)
    types = [torch.arange(len(d["ids"])) >= 4 for d in documents]
    types_BL = torch.zeros(2, 32, dtype=torch.long)
    types_BL[0, :9], types_BL[0, 9:22], types_BL[1, :6] = types[0], types[1], types[2]
    labels_P = torch.tensor([0, 1, 1])
    batch |= {"token_types_BL": types_BL, "pair_positions_P": torch.tensor([0, 9, 32]), "pair_labels_P": labels_P}
    ours = TargetLoss(model).eval()(**batch).detach()
    expected = 0.0
    pairs = 0.0
    for document, kinds, label in zip(documents, types, labels_P, strict=True):
        told = {"input_ids": document["ids"][None], "token_type_ids": kinds.long()[None]}
        with torch.no_grad():
            out = model(**told)
            logits, pair = out.prediction_logits[0], out.seq_relationship_logits
        expected += float(torch.nn.functional.cross_entropy(logits, document["labels"], reduction="sum"))
        pairs += float(torch.nn.functional.cross_entropy(pair, label[None], reduction="sum"))
    assert ours.tolist() == pytest.approx([expected, pairs], rel=1e-5)


def test_a_batch_without_targets_loses_nothing_and_has_a_gradient(packed: Any) -> None:
    module = TargetLoss(build("t5", "encoder_decoder"))
    batch = packed.pack([packed.documents("encoder_decoder", (9,))], "encoder_decoder", 16)
    batch["target_positions_T"], batch["target_ids_T"] = torch.zeros(2, 0, dtype=torch.long).unbind()
    loss = module(**batch)
    loss.sum().backward()
    assert loss.tolist() == [0.0]
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters())


@pytest.mark.parametrize("output", ["losses", "predictions"])
def test_evaluation_holds_no_more_logits_than_a_piece(
    output: Any, packed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = TargetLoss(build("bert", "encoder")).eval()
    batch = packed.pack([packed.documents("encoder", (9, 13, 20))], "encoder", 48)
    whole = module(output, **batch)
    sizes, of_logits = [], models._of_logits

    def watched(logits_TV: torch.Tensor, *told: Any) -> torch.Tensor:
        sizes.append(logits_TV.numel())
        return of_logits(logits_TV, *told)

    monkeypatch.setattr(models, "MAX_LOGITS", 1600)
    monkeypatch.setattr(models, "_of_logits", watched)
    assert torch.allclose(module(output, **batch).double(), whole.double(), atol=1e-5)
    assert len(sizes) > 1
    assert max(sizes) <= 1600


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 512,
}
DECODER = SMALL | {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
SEQ2SEQ: dict[str, Any] = {
    "d_model": 32, "vocab_size": 512, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
    "decoder_start_token_id": 3,
    "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64,
}  # fmt: skip
STRANGERS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("encoder", "RobertaConfig", "RobertaForMaskedLM", {**SMALL, "max_position_embeddings": 66, "pad_token_id": 0}),
    ("encoder", "DistilBertConfig", "DistilBertForMaskedLM",
     {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "vocab_size": 512, "max_position_embeddings": 64}),
    ("encoder", "ElectraConfig", "ElectraForMaskedLM", {**SMALL, "embedding_size": 16, "max_position_embeddings": 64}),
    ("encoder", "ModernBertConfig", "ModernBertForMaskedLM",
     {**SMALL, "num_hidden_layers": 4, "local_attention": 8, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
      "cls_token_id": 2, "sep_token_id": 3}),
    ("decoder", "GPTNeoXConfig", "GPTNeoXForCausalLM", {**DECODER, "max_position_embeddings": 64}),
    ("decoder", "MistralConfig", "MistralForCausalLM", {**DECODER, "num_key_value_heads": 1}),
    ("decoder", "OPTConfig", "OPTForCausalLM",
     {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 64, "vocab_size": 512,
      "word_embed_proj_dim": 32, "max_position_embeddings": 64, "bos_token_id": 2, "eos_token_id": 3,
      "pad_token_id": 0}),
    ("decoder", "Gemma2Config", "Gemma2ForCausalLM",
     {**DECODER, "head_dim": 16, "num_key_value_heads": 1, "final_logit_softcapping": 0.05, "sliding_window": 64}),
    ("encoder_decoder", "PegasusConfig", "PegasusForConditionalGeneration", SEQ2SEQ),
    ("encoder_decoder", "MBartConfig", "MBartForConditionalGeneration", SEQ2SEQ),
    ("encoder_decoder", "T5Config", "T5ForConditionalGeneration",
     {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "vocab_size": 512, "pad_token_id": 0,
      "eos_token_id": 3, "decoder_start_token_id": 0}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "config_class", "model_class", "sizes"), STRANGERS, ids=[row[2] for row in STRANGERS])
def test_a_training_starts_from_any_checkpoint(
    kind: str, config_class: str, model_class: str, sizes: dict[str, Any], tmp_path: Path, packed: Any
) -> None:
    torch.manual_seed(5)
    source = getattr(transformers, model_class)(getattr(transformers, config_class)(**sizes)).eval()
    for parameter in source.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    source.save_pretrained(tmp_path / "start")
    model = build_model(config(None, kind, model={"init_from": str(tmp_path / "start")}), 500, SPECIAL)
    module = TargetLoss(model).eval()
    assert (module.runner.way.features is None) == (model_class in ("ElectraForMaskedLM", "Gemma2ForCausalLM"))
    documents = packed.documents(kind, (9, 13, 6, 11, 17))
    batch = packed.pack([documents[:3], documents[3:]], kind, 48)
    ours = float(module(**batch)[0].detach())
    assert ours == pytest.approx(sum(packed.alone(source, kind, document) for document in documents), rel=1e-5)


@pytest.mark.parametrize(("kind", "config_class", "model_class", "sizes"), STRANGERS, ids=[row[2] for row in STRANGERS])
def test_new_tokens_get_rows_and_the_old_ones_are_read_as_before(
    kind: str, config_class: str, model_class: str, sizes: dict[str, Any], tmp_path: Path
) -> None:
    source = getattr(transformers, model_class)(getattr(transformers, config_class)(**sizes)).eval()
    source.save_pretrained(tmp_path / "start")
    rows = source.get_input_embeddings().weight.shape[0]
    start = config(None, kind, model={"init_from": str(tmp_path / "start")})
    model, again = (build_model(start, rows + 2 - num_sentinels(start), SPECIAL).eval() for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))
    table_VD = model.get_input_embeddings().weight
    assert len(table_VD) == model.config.vocab_size == rows + 2
    torch.testing.assert_close(table_VD[-1], table_VD[:rows].mean(0))
    ids = torch.arange(5, 15)[None]
    more = {"decoder_input_ids": ids} if kind == "encoder_decoder" else {}
    wanted, found = source(input_ids=ids, **more), model(input_ids=ids, **more)
    torch.testing.assert_close(found.logits[..., :rows], wanted.logits, rtol=1e-4, atol=1e-5)


def test_a_network_that_cannot_keep_documents_apart_is_refused(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 512, "state_size": 8}
    model = transformers.MambaForCausalLM(transformers.MambaConfig(**sizes))
    with pytest.raises(ConfigError, match=r"MambaForCausalLM cannot read several documents in one row"):
        TargetLoss(model)
    model.save_pretrained(tmp_path / "start")
    with pytest.raises(ConfigError, match=r"does not tell its sizes: a mamba config has none of num_attention_heads"):
        build_model(config(None, "decoder", model={"init_from": str(tmp_path / "start")}), 500, SPECIAL)
