"""How a network of transformers is run on packed rows, so that documents that share a row do not see each other.

Every network takes a 4-D mask. What else it needs differs, and this module knows it:

- Masks: `eager` attention adds them to the scores, others take booleans; ModernBERT wants one for each kind of layer.
- Positions that restart with each document: an argument (`position_ids`); the same with an offset (RoBERTa counts from
  padding_idx + 1); none (T5 has relative positions, which documents in one piece leave right); or, where the network
  numbers its row itself (BART), a hook that picks, from the position embeddings of the row, those of the restarted
  positions. A row has at least as many positions as its longest document, so all that are wanted are there.
- Flash attention takes no mask: rows become one row, whose documents it tells apart by positions that restart. Only
  decoders that hand these on get it (engine/hardware.py). So it is with `documents` (document_attention.py), which
  finds them by the same positions, in any network that hands on what its forward is given. Neither reads a mask, so
  batches need none (`reads_masks`).
- The head: most of the work of a small network, so it runs on targets alone. Its inside (`features`) is known for the
  usual networks; for others all logits are made, and those of the targets taken.

For the architectures that we build these are known (`KNOWN`). For any other (`model.init_from`) the ways are tried on
two short documents, packed against one by one, and the first that gives the network's own logits is taken: a forward
pass or a few of 16 tokens. If none does, the network is refused.

Shapes: B sequences, L tokens, S positions of the flat output (B * L, or B * M for an encoder-decoder), D width,
V vocabulary, R rows that are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from components.pretraining.config import Kind
from components.pretraining.networks.document_attention import DOCUMENTS, HIDDEN_SCORE, Windows
from infra.errors import ConfigError

POSITION_EMBEDDINGS = ("embed_positions", "position_embeddings", "wpe", "embed_position")
TRIAL_TOLERANCE = 1e-4
FLASH = "flash_attention_2"
Positions = Literal["argument", "offset_argument", "hook"]
Features = Callable[[Any, torch.Tensor], torch.Tensor]
"""What the output layer takes, from the last hidden states [R, D]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """How one network is run."""

    positions: Positions
    features: Features | None
    """None: all logits are made by the network itself."""


def _same(model: Any, hidden_RD: torch.Tensor) -> torch.Tensor:
    return hidden_RD


def _bert(model: Any, hidden_RD: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model.cls.predictions.transform(hidden_RD)
    return found


def _modernbert(model: Any, hidden_RD: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model.head(hidden_RD)
    return found


def _t5(model: Any, hidden_RD: torch.Tensor) -> torch.Tensor:
    return hidden_RD * model.model_dim**-0.5 if model.config.scale_decoder_outputs else hidden_RD


def _roberta(model: Any, hidden_RD: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model.lm_head.layer_norm(nn.functional.gelu(model.lm_head.dense(hidden_RD)))
    return found


def _distilbert(model: Any, hidden_RD: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model.vocab_layer_norm(model.activation(model.vocab_transform(hidden_RD)))
    return found


FEATURES: tuple[Features, ...] = (_same, _t5, _bert, _roberta, _distilbert, _modernbert)
KNOWN: Mapping[str, Way] = {
    "modernbert": Way(positions="argument", features=_modernbert),
    "bert": Way(positions="argument", features=_bert),
    "t5": Way(positions="hook", features=_t5),
    "bart": Way(positions="hook", features=_same),
    "llama": Way(positions="argument", features=_same),
    "qwen3": Way(positions="argument", features=_same),
    "gpt2": Way(positions="argument", features=_same),
}


def kind_of(model: Any) -> Kind:
    """Encoder, encoder-decoder or decoder."""
    if model.config.is_encoder_decoder:
        return "encoder_decoder"
    return "decoder" if model.can_generate() else "encoder"


def output_layer(model: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight [V, D] and bias [V] of the output layer. Under ZeRO 3 looking at them gathers them."""
    layer = model.get_output_embeddings()
    bias = getattr(layer, "bias", None)
    if bias is None and getattr(model, "final_logits_bias", None) is not None:
        bias = model.final_logits_bias[0].to(layer.weight.dtype)
    return layer.weight, bias


def model_mask(model: Any, attention_B1LL: torch.Tensor) -> Any:
    """The boolean mask [B, 1, L, L] (or of cross-attention) in the form that the network's attention takes."""

    def form(mask: torch.Tensor) -> torch.Tensor:
        if model.config._attn_implementation == "eager":  # which adds the mask to the scores
            return torch.where(mask, 0.0, HIDDEN_SCORE).to(model.dtype)
        return mask

    if model.config.model_type != "modernbert":
        return form(attention_B1LL)
    masks = {"full_attention": form(attention_B1LL)}
    if "sliding_attention" in model.config.layer_types:
        places = torch.arange(attention_B1LL.shape[-1], device=attention_B1LL.device)
        near_LL = (places[:, None] - places).abs() <= model.config.sliding_window
        masks["sliding_attention"] = form(attention_B1LL & near_LL)
    return masks


def reads_masks(model: Any) -> bool:
    """Whether the network's attention reads a mask, which is quadratic in the length of a row."""
    return model.config._attn_implementation not in (DOCUMENTS, FLASH)


def _unread_mask(model: Any) -> Any:
    """What stands for the mask where none is read: one number, for without any transformers would make its own."""
    if model.config._attn_implementation == FLASH:
        return None
    mask_1111 = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=model.device)
    return {"full_attention": mask_1111} if model.config.model_type == "modernbert" else mask_1111


def _in_one_row(model: Any, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """The same with all rows one after another, for flash attention."""
    if model.config._attn_implementation != FLASH:
        return inputs
    rows = ("input_ids_BL", "positions_BL", "token_types_BL")
    return {name: value.reshape(1, -1) if name in rows else value for name, value in inputs.items()}


@contextmanager
def _restarted(model: nn.Module, positions_BL: torch.Tensor) -> Iterator[None]:
    """While entered, position embeddings of whole rows become those of `positions_BL`."""

    def pick(module: nn.Module, args: Any, output_BLD: torch.Tensor) -> torch.Tensor:
        rows_BLD = output_BLD.reshape(-1, *output_BLD.shape[-2:])
        if len(rows_BLD) == 1:
            return nn.functional.embedding(positions_BL, rows_BLD[0])
        index_BLD = positions_BL[:, :, None].expand(-1, -1, rows_BLD.shape[-1])
        return rows_BLD.gather(1, index_BLD)

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if name.rpartition(".")[2] in POSITION_EMBEDDINGS:
                stack.callback(module.register_forward_hook(pick).remove)
        yield


class Runner:
    """Runs one network its way.

    Args:
        model: with a language modelling head.
        way: how; looked up or, for a network that nobody knows, found by trying.

    Raises:
        ConfigError: the network cannot keep packed documents apart in any known way.
    """

    def __init__(self, model: Any, way: Way | None = None) -> None:
        self.kind = kind_of(model)
        found = way or KNOWN.get(model.config.model_type) or find_way(model, self.kind)
        self.way: Way = found

    def hidden(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Last hidden states [S, D] of the encoder, the decoder, or the decoder of an encoder-decoder.

        Args:
            model: the network.
            inputs: of `TargetLoss.forward`.
        """
        if self.kind == "encoder_decoder":
            encoded_BLD = self._encode(model, inputs)
            decoder = model.get_decoder()
            with _restarted(decoder, inputs["decoder_positions_BM"]):
                states: torch.Tensor = decoder(
                    input_ids=inputs["decoder_input_ids_BM"],
                    attention_mask=model_mask(model, inputs["decoder_attention_B1MM"]),
                    encoder_hidden_states=encoded_BLD,
                    encoder_attention_mask=model_mask(model, inputs["cross_attention_B1ML"]),
                    use_cache=False,
                ).last_hidden_state
        else:
            inputs = _in_one_row(model, inputs)
            with self._positions(model.base_model, inputs["positions_BL"]) as more:
                states = model.base_model(**self._plain_inputs(model, inputs), **more).last_hidden_state
        return states.reshape(-1, states.shape[-1])

    def logits(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """All logits [S, V], by the network's own forward."""
        if self.kind == "encoder_decoder":
            encoded_BLD = self._encode(model, inputs)
            with _restarted(model.get_decoder(), inputs["decoder_positions_BM"]):
                logits: torch.Tensor = model(
                    encoder_outputs=(encoded_BLD,),
                    attention_mask=model_mask(model, inputs["cross_attention_B1ML"]),
                    decoder_input_ids=inputs["decoder_input_ids_BM"],
                    decoder_attention_mask=model_mask(model, inputs["decoder_attention_B1MM"]),
                    use_cache=False,
                ).logits
        else:
            inputs = _in_one_row(model, inputs)
            with self._positions(model.base_model, inputs["positions_BL"]) as more:
                logits = model(**self._plain_inputs(model, inputs), **more).logits
        return logits.reshape(-1, logits.shape[-1])

    def _encode(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        encoder = model.get_encoder()
        with _restarted(encoder, inputs["positions_BL"]):
            encoded_BLD: torch.Tensor = encoder(
                input_ids=inputs["input_ids_BL"], attention_mask=model_mask(model, inputs["attention_B1LL"])
            ).last_hidden_state
        return encoded_BLD

    def _plain_inputs(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        mask = model_mask(model, inputs["attention_B1LL"]) if reads_masks(model) else _unread_mask(model)
        told: dict[str, Any] = {"input_ids": inputs["input_ids_BL"], "attention_mask": mask}
        if model.config._attn_implementation == DOCUMENTS:
            heads, causal = model.config.num_attention_heads, self.kind == "decoder"
            told["documents"] = Windows.of(inputs["positions_BL"], causal=causal, num_heads=heads, dtype=model.dtype)
        if "token_types_BL" in inputs:
            told["token_type_ids"] = inputs["token_types_BL"]
        return told | ({"use_cache": False} if self.kind == "decoder" else {})

    @contextmanager
    def _positions(self, network: nn.Module, positions_BL: torch.Tensor) -> Iterator[dict[str, torch.Tensor]]:
        if self.way.positions == "hook":
            with _restarted(network, positions_BL):
                yield {}
        else:
            offset = 0 if self.way.positions == "argument" else int(network.config.pad_token_id or 0) + 1  # type: ignore
            yield {"position_ids": positions_BL + offset}


@torch.no_grad()
def find_way(model: Any, kind: Kind) -> Way:
    """The first way in which two packed documents get the logits that each gets alone.

    Raises:
        ConfigError: there is none.
    """
    was_training = model.training
    model.eval()
    ids = (torch.arange(12, device=model.device) * 7919 + 11) % max(1, model.config.vocab_size - 10) + 10
    documents = [ids[:5], ids[5:12]]
    expected_RV = torch.cat([_alone(model, kind, document) for document in documents])
    inputs = _packed(documents, kind)
    rows_R = torch.arange(12, device=model.device)
    reasons: list[str] = []
    choices: tuple[Positions, ...] = ("hook",) if kind == "encoder_decoder" else ("argument", "offset_argument", "hook")
    found: Way | None = None
    for positions in choices:
        runner = Runner(model, Way(positions=positions, features=None))
        for features in (*FEATURES, None):
            try:
                if features is None:
                    logits_RV = runner.logits(model, inputs)[rows_R]
                else:
                    weight_VD, bias_V = output_layer(model)
                    hidden_RD = features(model, runner.hidden(model, inputs)[rows_R])
                    logits_RV = nn.functional.linear(hidden_RD, weight_VD, bias_V)
            except (TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
                reasons.append(f"{type(error).__name__}: {error}".splitlines()[0])
                continue
            scale = float(expected_RV.abs().max()) + 1e-12
            if logits_RV.shape == expected_RV.shape and torch.allclose(
                logits_RV, expected_RV, atol=TRIAL_TOLERANCE * scale, rtol=0
            ):
                found = found or Way(positions=positions, features=features)
        if found is not None:
            break
    model.train(was_training)
    if found is None:
        raise ConfigError(
            f"model.init_from: {type(model).__name__} cannot read several documents in one row (model_type="
            f"{model.config.model_type}): in no known way do they get the logits that each gets alone"
            + (f"; one way ends with {reasons[-1]}" if reasons else "")
        )
    return found


def _alone(model: Any, kind: Kind, document_L: torch.Tensor) -> torch.Tensor:
    """The network's own logits [L, V] of one document; of an encoder-decoder, of its decoder that reads the same."""
    told = {"decoder_input_ids": document_L[None]} if kind == "encoder_decoder" else {}
    logits_1LV: torch.Tensor = model(input_ids=document_L[None], **told).logits
    return logits_1LV[0]


def _packed(documents: list[torch.Tensor], kind: Kind) -> dict[str, torch.Tensor]:
    """The documents in one row of 16, as a batch."""
    device, padding = documents[0].device, 16 - sum(map(len, documents))
    ids_BL = torch.cat([*documents, torch.zeros(padding, dtype=torch.long, device=device)])[None]
    parts = [*map(len, documents), padding]
    segments_L = torch.cat([torch.full((n,), i, device=device) for i, n in enumerate(parts)])
    positions_BL = torch.cat([torch.arange(n, device=device) for n in parts])[None]
    same_B1LL = (segments_L[:, None] == segments_L)[None, None]
    causal_B1LL = same_B1LL & torch.ones_like(same_B1LL).tril()
    inputs = {
        "input_ids_BL": ids_BL,
        "positions_BL": positions_BL,
        "attention_B1LL": causal_B1LL if kind == "decoder" else same_B1LL,
    }
    if kind == "encoder_decoder":
        inputs |= {
            "decoder_input_ids_BM": ids_BL,
            "decoder_positions_BM": positions_BL,
            "decoder_attention_B1MM": causal_B1LL,
            "cross_attention_B1ML": same_B1LL,
        }
    return inputs
