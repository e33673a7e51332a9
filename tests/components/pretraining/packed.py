"""Documents packed into rows by hand, and what transformers itself makes of each of them alone."""

from __future__ import annotations

from typing import Any

import torch

IGNORED = -100


def documents(
    kind: str, lengths: tuple[int, ...], vocab_size: int = 500, seed: int = 0
) -> list[dict[str, torch.Tensor]]:
    """Documents with random tokens (10 and more) and targets: `ids`, `labels` (-100 where nothing is predicted) and,
    of an encoder-decoder, `decoder_ids`."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for length in lengths:
        ids = torch.randint(10, vocab_size, (length,), generator=generator)
        document = {"ids": ids}
        if kind == "encoder":
            chosen = torch.rand(length, generator=generator) < 0.4
            chosen[0] = True
            document["labels"] = torch.where(
                chosen, torch.randint(10, vocab_size, (length,), generator=generator), IGNORED
            )
        elif kind == "decoder":
            document["labels"] = torch.cat([ids[1:], torch.tensor([IGNORED])])
        else:
            labels = torch.randint(10, vocab_size, (max(2, length // 2),), generator=generator)
            document["labels"] = labels
            document["decoder_ids"] = torch.cat([torch.tensor([3]), labels[:-1]])
        found.append(document)
    return found


def pack(rows: list[list[dict[str, torch.Tensor]]], kind: str, width: int, decoder_width: int = 24) -> dict[str, Any]:
    """A batch as `Batch.to` gives it: documents one after the other, padding at the end."""
    ids, positions, segments = _rows([[d["ids"] for d in row] for row in rows], width)
    same = _same(segments, segments)
    batch: dict[str, Any] = {
        "input_ids_BL": ids,
        "positions_BL": positions,
        "attention_B1LL": same & torch.ones(width, width, dtype=torch.bool).tril() if kind == "decoder" else same,
    }
    out_width = width
    if kind == "encoder_decoder":
        out_width = decoder_width
        decoder_ids, decoder_positions, decoder_segments = _rows(
            [[d["decoder_ids"] for d in row] for row in rows], out_width
        )
        batch |= {
            "decoder_input_ids_BM": decoder_ids,
            "decoder_positions_BM": decoder_positions,
            "decoder_attention_B1MM": _same(decoder_segments, decoder_segments)
            & torch.ones(out_width, out_width, dtype=torch.bool).tril(),
            "cross_attention_B1ML": _same(decoder_segments, segments),
        }
    labels, _, _ = _rows([[d["labels"] for d in row] for row in rows], out_width, fill=IGNORED)
    batch["target_positions_T"] = (labels.reshape(-1) != IGNORED).nonzero()[:, 0]
    batch["target_ids_T"] = labels.reshape(-1)[batch["target_positions_T"]]
    return batch


def _rows(rows: list[list[torch.Tensor]], width: int, fill: int = 0) -> tuple[torch.Tensor, ...]:
    values, positions, segments = [], [], []
    for parts in rows:
        rest = width - sum(map(len, parts))
        values.append(torch.cat([*parts, torch.full((rest,), fill)]))
        positions.append(torch.cat([torch.arange(n) for n in [*map(len, parts), rest]]))
        segments.append(
            torch.cat([torch.full((len(p),), n + 1) for n, p in enumerate(parts)] + [torch.zeros(rest)]).long()
        )
    return torch.stack(values), torch.stack(positions), torch.stack(segments)


def _same(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Who sees whom; padding sees padding of the other side, or itself."""
    return (
        (queries[:, :, None] == keys[:, None, :])[:, None]
        if queries is not keys
        else (
            (queries[:, :, None] == keys[:, None, :])
            & ((keys > 0)[:, None, :] | torch.eye(keys.shape[1], dtype=torch.bool))
        )[:, None]
    )


def alone(model: Any, kind: str, document: dict[str, torch.Tensor]) -> float:
    """Summed loss of one document by the network's own forward with labels."""
    labels = document["labels"]
    number = int((labels != IGNORED).sum())
    if kind == "decoder":  # transformers shifts these itself
        labels = document["ids"]
    told = {"decoder_input_ids": document["decoder_ids"][None]} if kind == "encoder_decoder" else {}
    with torch.no_grad():
        loss = model(input_ids=document["ids"][None], labels=labels[None], **told).loss
    return float(loss) * number
