"""Predicted activations against what autograd really saves, for each network, precision and kind of attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from components.pretraining.config import PretrainConfig
from components.pretraining.engine.hardware import FLASH_ARCHITECTURES, attention_implementation
from components.pretraining.estimates.activations import (
    BLOCK_LOGITS,
    DECODER_LAYERS,
    LAYERS,
    MAX_LOGITS,
    activation_bytes,
    decoder_length,
    layer_bytes,
)
from components.pretraining.networks import cross_entropy, document_attention
from components.pretraining.networks.document_attention import Windows
from components.pretraining.networks.models import TargetLoss, build_model

VOCAB = 512
ARCHITECTURES = ("llama", "qwen3", "gpt2", "bert", "modernbert")
OBJECTIVES = {"bert": "masked_lm", "modernbert": "masked_lm", "t5": "span_corruption", "bart": "denoising"}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def training(architecture: str, *, gpus: int = 0, layers: int = 3, **more: Any) -> PretrainConfig:
    """Two sequences of 48 tokens; with `gpus` attention is SDPA."""
    model = {"architecture": architecture, "hidden_size": 96, "num_heads": 3, "intermediate_size": 160}
    told = {
        "objective": OBJECTIVES.get(architecture, "causal_lm"),
        "model": {**model, "num_layers": layers},
        "sequence_length": 48,
        "global_batch_size": 2,
        "cluster": {"num_workers": 1, "num_gpus_per_worker": gpus},
    }
    return PretrainConfig.model_validate({**told, **more})


class Saved:
    """Bytes of the distinct storages that autograd saves in the block, without those of `module` itself."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
        self._kept: dict[int, torch.UntypedStorage] = {}
        self.hooks = saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._own:
            self._kept[storage.data_ptr()] = storage  # kept alive, so that no address comes twice
        return tensor

    @property
    def num_bytes(self) -> int:
        return sum(storage.nbytes() for storage in self._kept.values())


def network(config: PretrainConfig, layers: int) -> Any:
    """The network without its head, by transformers alone."""
    import transformers as hf

    m, implementation = config.model, attention_implementation(config, config.architecture)
    document_attention.register()
    common = {"vocab_size": VOCAB, "attn_implementation": implementation, "pad_token_id": 0, "use_cache": False}
    named = common | {
        "hidden_size": m.hidden_size,
        "intermediate_size": m.intermediate_size,
        "num_hidden_layers": layers,
        "num_attention_heads": m.num_heads,
        "num_key_value_heads": m.num_heads,
    }
    sizes = {"n_embd": 96, "n_inner": 160, "n_layer": layers, "n_head": 3, "bos_token_id": 2, "eos_token_id": 3}
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    if config.architecture == "llama":
        return hf.LlamaModel(hf.LlamaConfig(**named))
    if config.architecture == "qwen3":
        return hf.Qwen3Model(hf.Qwen3Config(**named, head_dim=32))
    if config.architecture == "gpt2":
        return hf.GPT2Model(hf.GPT2Config(**common, **sizes, **none, activation_function="gelu"))
    if config.architecture == "t5":
        more = {"d_model": 96, "d_ff": 160, "d_kv": 32, "num_heads": 3, "num_layers": layers, "dropout_rate": 0.0}
        return hf.T5Model(hf.T5Config(**common, **more, num_decoder_layers=layers, feed_forward_proj="gated-gelu"))
    if config.architecture == "bart":
        sides = {f"{side}_{k}": v for side in ("encoder", "decoder") for k, v in _BART.items()}
        more = {f"{side}_layers": layers for side in ("encoder", "decoder")} | {"dropout": 0.0, "d_model": 96}
        return hf.BartModel(hf.BartConfig(**common, **sides, **more, max_position_embeddings=64))
    return build_model(config, VOCAB, {"pad": 0, "bos": 2, "eos": 3}).base_model


_BART = {"attention_heads": 3, "ffn_dim": 160}


def mask(config: PretrainConfig, rows: int, columns: int) -> torch.Tensor:
    seen = torch.ones(2, 1, rows, columns, dtype=torch.bool)
    if config.cluster.num_gpus_per_worker:
        return seen
    return torch.where(seen, 0.0, -1e4).to(DTYPES[config.precision])


def measured_layer(config: PretrainConfig, decoded: int = 0) -> float:
    """What one more layer saves, of one sequence."""
    found = []
    length = config.sequence_length
    ids = torch.ones(2, length, dtype=torch.long)
    for layers in (2, 3):
        model = config.model.model_copy(update={"num_layers": layers})
        net = network(config.model_copy(update={"model": model}), layers).to(DTYPES[config.precision]).train()
        saved = Saved(net)
        with saved.hooks:
            if config.architecture in DECODER_LAYERS:
                states = net.encoder(input_ids=ids, attention_mask=mask(config, length, length)).last_hidden_state
                if decoded:
                    net.decoder(
                        input_ids=ids[:, :decoded],
                        attention_mask=mask(config, decoded, decoded),
                        encoder_hidden_states=states,
                        encoder_attention_mask=mask(config, decoded, length),
                    )
            else:
                seen: Any = mask(config, length, length)
                seen = {"full_attention": seen} if config.architecture == "modernbert" else seen
                told = {}
                if net.config._attn_implementation == "documents":
                    told["documents"] = Windows.of(
                        torch.arange(length).expand(2, length), causal=True, num_heads=3, dtype=net.dtype
                    )
                net(input_ids=ids, attention_mask=seen, **told)
        found.append(saved.num_bytes)
    return (found[1] - found[0]) / 2


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("gpus", [0, 1], ids=["documents", "sdpa"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_layer_saves_what_is_predicted(architecture: str, gpus: int, precision: str) -> None:
    config = training(architecture, gpus=gpus, precision=precision)
    told = layer_bytes(config, config.model, LAYERS[config.architecture], 48, 48)
    assert told == pytest.approx(measured_layer(config), rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("architecture", FLASH_ARCHITECTURES)
def test_a_layer_with_eager_attention_saves_what_is_predicted(architecture: str, precision: str) -> None:
    config = training(architecture, precision=precision, objective="prefix_lm")
    told = layer_bytes(config, config.model, LAYERS[config.architecture], 48, 48)
    assert told == pytest.approx(measured_layer(config), rel=1e-3)


@pytest.mark.parametrize(
    ("architecture", "gpus", "precision"),
    [("t5", 0, "bf16"), ("t5", 0, "fp32"), *(("bart", gpus, p) for gpus in (0, 1) for p in ("bf16", "fp32"))],
)
def test_an_encoder_and_a_decoder_layer_save_what_is_predicted(architecture: str, gpus: int, precision: str) -> None:
    config = training(architecture, gpus=gpus, precision=precision)
    encoder = layer_bytes(config, config.model, LAYERS[config.architecture], 48, 48)
    decoder = layer_bytes(config, config.model, DECODER_LAYERS[config.architecture], 24, 24 + 48)
    assert encoder == pytest.approx(measured_layer(config), rel=1e-3)
    assert encoder + decoder == pytest.approx(measured_layer(config, decoded=24), rel=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_whole_network_saves_what_is_predicted(architecture: str, checkpointing: bool) -> None:
    """Every token a target, so that the head weighs most."""
    config = training(architecture, layers=6, activation_checkpointing=checkpointing, masking_rate=0.999)
    module = TargetLoss(build_model(config, VOCAB, {"pad": 0, "bos": 2, "eos": 3})).to(torch.bfloat16).train()
    saved = Saved(module)
    ids = torch.ones(2, 48, dtype=torch.long)
    with saved.hooks:
        module(
            input_ids_BL=ids,
            positions_BL=torch.arange(48).expand(2, 48),
            attention_B1LL=torch.ones(2, 1, 48, 48, dtype=torch.bool),
            target_positions_T=torch.arange(96),
            target_ids_T=ids.reshape(-1),
        )
    told = activation_bytes(config, VOCAB, num_ranks=1)
    assert told.saved == pytest.approx(saved.num_bytes, rel=0.04)


def saved_by_the_module(config: PretrainConfig, packed: Any) -> int:
    """Of two sequences of 48 tokens."""
    model = build_model(config, VOCAB, {"pad": 0, "bos": 2, "eos": 3})
    module = TargetLoss(model).to(DTYPES[config.precision]).train()
    documents = packed.documents(config.kind, (48, 48))
    decoder_width = round(decoder_length(config))
    batch = packed.pack([[document] for document in documents], config.kind, 48, decoder_width=decoder_width)
    saved = Saved(module)
    with saved.hooks:
        module(**batch, sample_keys_B=torch.arange(2))
    return saved.num_bytes


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "t5", "bart"])
def test_dropout_saves_what_is_predicted(architecture: str, precision: str, packed: Any) -> None:
    measured, told = [], []
    for dropout in (0.0, 0.1):
        model = {"architecture": architecture, "hidden_size": 96, "num_heads": 3, "intermediate_size": 160}
        config = training(architecture, precision=precision, model={**model, "num_layers": 3, "dropout": dropout})
        if architecture == "t5":  # half as many targets as tokens, a whole number
            config = config.model_copy(update={"masking_rate": 0.375, "mean_span_length": 3.0})
        measured.append(saved_by_the_module(config, packed))
        told.append(activation_bytes(config, VOCAB, num_ranks=1).saved)
    assert told[1] - told[0] == pytest.approx(measured[1] - measured[0], rel=1e-3)


def test_bert_is_korthikanti_without_dropout() -> None:
    """34 D + 5 H L (section 4.1) less the masks of two dropouts (2 D), and of attention's its mask and output (3 H L).
    What is left over is the statistics of two norms."""
    config = training("bert", gpus=0)
    model = config.model.model_copy(update={"intermediate_size": 4 * 96})
    told = layer_bytes(config, model, LAYERS["bert"], 48, 48)
    assert told == 48 * (32 * 96 + 2 * 3 * 48 + 8)


def test_the_head_is_cut_where_the_cross_entropy_cuts_it() -> None:
    assert (MAX_LOGITS, BLOCK_LOGITS) == (cross_entropy.MAX_LOGITS, cross_entropy.BLOCK_LOGITS)
