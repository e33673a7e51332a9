"""An encoder-decoder's samples, cut out of packed sequences, against `generate` of transformers on each document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist

from components.pretraining.batches import Batch
from components.pretraining.config import PretrainConfig
from components.pretraining.evaluation.samples import Place, _decoder, _greedy, _restored
from components.pretraining.export import model_card
from components.pretraining.objectives.causal_lm import CausalLm
from components.pretraining.objectives.objective import Vocabulary

END, START = 3, 0
DOCUMENTS = ([2, 10, 11, 30, 12, 3], [2, 20, 21, 22, 3], [2, 40, 41, 42, 43, 44, 45, 3])
TARGETS = ([30, 7, 8, 3], [9, 3], [46, 47, 48, 49, 3])


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def network() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(1)
    sizes = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    special = {"decoder_start_token_id": START, "eos_token_id": END, "pad_token_id": 0}
    model = T5ForConditionalGeneration(T5Config(**sizes, **special, dropout_rate=0.0, tie_word_embeddings=False)).eval()
    for parameter in model.parameters():  # as it is made it says one token for ever
        torch.nn.init.normal_(parameter, std=0.5)
    return model


class RowByRow:
    """An engine without padding: each row alone, only what its masks show."""

    device = torch.device("cpu")

    def __init__(self, model: Any) -> None:
        self.model = model

    @torch.no_grad()
    def evaluate(self, inputs: Mapping[str, torch.Tensor], output: str) -> torch.Tensor:
        assert output == "predictions"
        found, width = [], inputs["decoder_input_ids_BM"].shape[1]
        for row, flat in enumerate(inputs["target_positions_T"].tolist()):
            last = flat - row * width
            assert inputs["decoder_attention_B1MM"][row, 0, last].tolist() == [at <= last for at in range(width)]
            seen_L = inputs["cross_attention_B1ML"][row, 0, last]
            assert torch.equal(inputs["attention_B1LL"][row, 0][seen_L][:, seen_L].all(), torch.tensor(True))
            logits_MV = self.model(
                input_ids=inputs["input_ids_BL"][row, seen_L][None],
                decoder_input_ids=inputs["decoder_input_ids_BM"][row, : last + 1][None],
            ).logits[0]
            found.append(int(logits_MV[-1].argmax()))
        return torch.tensor(found)


def packed(documents: list[tuple[list[int], list[int]]], length: int) -> SimpleNamespace:
    """One packed sequence of documents and targets, as the contract of a batch has it."""

    def filled(values: list[list[int]]) -> torch.Tensor:
        flat = [value for part in values for value in part]
        return torch.tensor([flat + [0] * (length - len(flat))])

    numbers_L = filled([[number + 1] * len(ids) for number, (ids, _) in enumerate(documents)])[0]
    numbers_M = filled([[number + 1] * len(ids) for number, (_, ids) in enumerate(documents)])[0]
    return SimpleNamespace(
        input_ids_BL=filled([ids for ids, _ in documents]),
        documents_BL=numbers_L[None] - 1,
        decoder_input_ids_BM=filled([[START, *ids[:-1]] for _, ids in documents]),
        cross_attention_B1ML=(numbers_M[:, None] == numbers_L[None, :])[None, None],
        target_positions_T=torch.arange(sum(len(ids) for _, ids in documents)),
        target_ids_T=torch.tensor([id_ for _, ids in documents for id_ in ids]),
    )


def test_an_encoder_decoder_restores_as_generate_does(alone: None, network: Any) -> None:
    pairs = list(zip(DOCUMENTS, TARGETS, strict=True))
    one, other = packed(pairs[:2], 24), packed(pairs[2:], 24)
    both = {name: torch.cat([getattr(one, name), getattr(other, name)]) for name in vars(one)}
    both["target_positions_T"] = torch.cat([one.target_positions_T, other.target_positions_T + 24])
    config = PretrainConfig.model_validate({"objective": "span_corruption", "sample_tokens": 10})
    objective = CausalLm(vocabulary=Vocabulary(size=64, pad=0, bos=2, eos=END, mask=4))  # for its vocabulary alone
    # rows of the batch are those of the places: the second document of the first sequence, and the other's only one
    places = [Place(sequence=n, number=k, start=0, length=5, source=0) for n, k in ((0, 1), (1, 0))]
    found = _restored(cast(Any, RowByRow(network)), cast(Batch, SimpleNamespace(**both)), objective, config, places)
    for (corrupted, restored, target), (ids, wanted) in zip(found, pairs[1:], strict=True):
        generated = network.generate(input_ids=torch.tensor([ids]), do_sample=False, max_new_tokens=10)[0, 1:].tolist()
        assert (corrupted, target) == (ids, wanted)
        assert restored == generated
    assert len({token for _, restored, _ in found for token in restored}) > 3


def test_rows_end_at_the_end_token_and_at_the_longest(alone: None) -> None:
    """The network says the row's last token plus one; rows start at 0, 10 and 20, and 3 ends one."""

    class Counter(RowByRow):
        def evaluate(self, inputs: Mapping[str, torch.Tensor], output: str) -> torch.Tensor:
            return inputs["rows_BL"].reshape(-1)[inputs["target_positions_T"]] + 1

    def greedy(num_new: int, longest: int) -> list[list[int]]:
        starts = [[0], [9, 10], [17, 18, 19, 20]]
        engine = cast(Any, Counter(None))
        return _greedy(engine, starts, lambda rows_BL: {"rows_BL": rows_BL}, end=END, num_new=num_new, longest=longest)

    assert greedy(5, 100) == [[1, 2, 3], [11, 12, 13, 14, 15], [21, 22, 23, 24, 25]]
    assert greedy(5, 4) == [[1, 2, 3], [11, 12], []]
    assert greedy(1, 100) == [[1], [11], [21]]


def test_sentinels_are_shown_by_name(tiny_data: Path) -> None:
    vocabulary = Vocabulary(size=512, pad=0, bos=2, eos=3, mask=4, num_sentinels=100)
    decode = _decoder(tiny_data / "tokenizer", vocabulary)
    assert decode([2, 512, 611, 612, 3]) == "<s><extra_id_0><extra_id_99><[612]></s>"


def test_the_card_of_a_prefix_lm_says_that_its_mask_is_not_handed_on() -> None:
    told: Any = {"title": "t", "task": "text-generation", "key": "k", "data_license": None, "metrics": {}}
    assert "causal mask alone" in model_card(**told, settings={"objective": "prefix_lm"})
    assert "causal mask alone" not in model_card(**told, settings={"objective": "causal_lm"})


def test_the_card_says_if_attention_ran_over_documents() -> None:
    told: Any = {"title": "t", "task": "text-generation", "key": "0", "data_license": None, "metrics": {}}
    for scope in ("sequence", "document"):
        card = model_card(**told, settings={"objective": "causal_lm", "attention_scope": scope})
        assert ("what stood before a document" in card) == (scope == "sequence")
