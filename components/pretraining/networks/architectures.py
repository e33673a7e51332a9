"""The networks that can be built from random weights: classes and configs of transformers, nothing of ours.

| name | class | positions | norm | feed-forward | from |
|---|---|---|---|---|---|
| modernbert | ModernBertForMaskedLM | rotary | before | GeGLU | Warner et al. 2024, arXiv:2412.13663 |
| bert | BertForMaskedLM, BertForPreTraining | learned | after | GELU | Devlin et al. 2018, arXiv:1810.04805 |
| t5 | T5ForConditionalGeneration | relative | before, RMS | GeGLU | Raffel et al. 2019, arXiv:1910.10683; v1.1 |
| bart | BartForConditionalGeneration | learned | after | GELU | Lewis et al. 2019, arXiv:1910.13461 |
| llama | LlamaForCausalLM | rotary | before, RMS | SwiGLU | Touvron et al. 2023, arXiv:2302.13971 |
| qwen3 | Qwen3ForCausalLM | rotary | as llama; of queries, keys too | SwiGLU | Yang et al. 2025, arXiv:2505.09388 |
| gpt2 | GPT2LMHeadModel | learned | before | GELU | Radford et al. 2019 |

ModernBERT is the default encoder because it learns much sooner: after 900 steps of 2,048 tokens on WordNet glosses its
validation loss was 4.74, that of BERT at 1.1 times its size 5.84, unigrams give 6.86 (tests/benchmarks/LOG.md). All its
layers attend to the whole document here; its sliding windows pay beyond a thousand tokens. T5 is v1.1 (gated
feed-forward) but for its output layer, which is the embedding, scaled by D^-1/2, as in the first T5: at these sizes a
second table of V * D weights would be most of the network. No keys are shared between heads.

Embeddings and output layer are tied, which at 6M weights and a vocabulary of 8,192 saves a third.
"""

from __future__ import annotations

from typing import Any

from components.pretraining.config import ModelConfig, PretrainConfig
from components.pretraining.engine.hardware import attention_implementation
from components.pretraining.networks import document_attention
from components.pretraining.networks.dropout import dropout_fields
from components.pretraining.networks.sizes import feed_forward_size, num_positions


def make_network(config: PretrainConfig, model: ModelConfig, vocab_size: int, special: dict[str, int]) -> Any:
    """The network in fp32 with weights drawn from torch's default generator.

    Args:
        config: says which.
        model: its sizes.
        vocab_size: rows of the embedding.
        special: ids by the names `pad`, `bos`, `eos`.
    """
    import transformers

    architecture, width = config.architecture, model.hidden_size
    inner = model.intermediate_size or feed_forward_size(architecture, width)
    common: dict[str, Any] = {
        "vocab_size": vocab_size,
        "pad_token_id": special["pad"],
        "bos_token_id": special["bos"],
        "eos_token_id": special["eos"],
        "tie_word_embeddings": True,
    }
    usual: dict[str, Any] = common | {
        "hidden_size": width,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "intermediate_size": inner,
        "max_position_embeddings": num_positions(config),
    }
    made: Any
    if architecture == "modernbert":
        made = transformers.ModernBertConfig(**usual, **_modernbert_extras(model, special))
    elif architecture == "bert":
        made = transformers.BertConfig(**usual)
    elif architecture == "llama":
        made = transformers.LlamaConfig(**usual, num_key_value_heads=model.num_heads)
    elif architecture == "qwen3":
        made = transformers.Qwen3Config(**usual, num_key_value_heads=model.num_heads, head_dim=width // model.num_heads)
    elif architecture == "gpt2":
        made = transformers.GPT2Config(
            **common,
            n_embd=width,
            n_layer=model.num_layers,
            n_head=model.num_heads,
            n_inner=inner,
            activation_function="gelu",  # which gelu_new comes within 5e-4 of: a quarter of its time on a CPU
            n_positions=num_positions(config),
        )
    elif architecture == "t5":
        made = transformers.T5Config(
            **common,
            d_model=width,
            d_kv=width // model.num_heads,
            d_ff=inner,
            num_layers=model.num_layers,
            num_heads=model.num_heads,
            feed_forward_proj="gated-gelu",
        )
    else:
        made = transformers.BartConfig(
            **common,
            d_model=width,
            max_position_embeddings=num_positions(config),
            forced_eos_token_id=special["eos"],
            **{
                f"{side}_{name}": value
                for side in ("encoder", "decoder")
                for name, value in (
                    ("layers", model.num_layers),
                    ("attention_heads", model.num_heads),
                    ("ffn_dim", inner),
                )
            },
        )
    document_attention.register()
    for name, value in dropout_fields(vars(made), config.model.dropout).items():
        setattr(made, name, value)
    made._attn_implementation = attention_implementation(config, architecture)
    classes = {
        "modernbert": "ModernBertForMaskedLM",
        "bert": "BertForPreTraining" if config.objective == "masked_lm_nsp" else "BertForMaskedLM",
        "t5": "T5ForConditionalGeneration",
        "bart": "BartForConditionalGeneration",
        "llama": "LlamaForCausalLM",
        "qwen3": "Qwen3ForCausalLM",
        "gpt2": "GPT2LMHeadModel",
    }
    return getattr(transformers, classes[architecture])(made)


def _modernbert_extras(model: ModelConfig, special: dict[str, int]) -> dict[str, Any]:
    rotary = {"rope_type": "default", "rope_theta": 10_000.0}
    return {
        "cls_token_id": special["bos"],
        "sep_token_id": special["eos"],
        "layer_types": ["full_attention"] * model.num_layers,
        "rope_parameters": {"full_attention": rotary, "sliding_attention": rotary},
        "classifier_pooling": "mean",
    }
