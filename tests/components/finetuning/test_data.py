"""Label budgets, batches and encoded splits are pure functions of task, tokenizer and seed."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from components.finetuning import data
from components.finetuning.models import load_tokenizer
from infra.errors import DamagedArtifactError, DataError
from infra.journal.step import Artifact

IDS = [f"{index:032x}" for index in range(200)]
LABELS = np.array([0] * 190 + [1] * 8 + [2] * 2)


def test_a_label_budget_has_every_class_and_the_same_rows_for_the_same_seed() -> None:
    rows = data.budget_rows(IDS, LABELS, 5, seed=3)
    assert len(rows) == 5
    assert set(LABELS[rows]) == {0, 1, 2}
    assert (rows == data.budget_rows(IDS, LABELS, 5, seed=3)).all()
    assert set(rows) != set(data.budget_rows(IDS, LABELS, 5, seed=4))


def test_a_larger_budget_contains_a_smaller_one() -> None:
    assert set(data.budget_rows(IDS, LABELS, 10, 0)) < set(data.budget_rows(IDS, LABELS, 50, 0))


@pytest.mark.parametrize(("budget", "count"), [("all", 200), (200, 200), (500, 200), (2, 2)])
def test_budgets_at_the_edges(budget: data.Budget, count: int) -> None:
    rows = data.budget_rows(IDS, LABELS, budget, 0)
    assert len(set(rows)) == count


def test_every_pass_holds_each_row_once_and_batches_hold_texts_of_like_length() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 1000)
    rows = np.arange(0, 1000, 2)
    batches = list(islice(data.training_batches(lengths, rows, 32, seed=1), 32))
    assert Counter(np.concatenate(batches).tolist()) == dict.fromkeys(rows.tolist(), 2)
    first, second = np.concatenate(batches[:16]), np.concatenate(batches[16:])
    assert (first != second).any()
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert padded < 1.1 * 2 * lengths[rows].sum()


def test_padding_is_on_the_right_and_masked(inputs: dict[str, Artifact]) -> None:
    tokenizer = load_tokenizer(inputs["pretrain_mlm"].path / "model")
    split = data.read_split(inputs["task"].path, "validation")
    labels = data.read_labels(inputs["task"].path)
    encoded = data.encode_split(split, labels, tokenizer, 64)
    rows = np.array([3, 0, 7])
    tokens_BL, mask_BL = encoded.pad(rows, tokenizer.pad_token_id)
    expected = tokenizer([split.texts[row] for row in rows], truncation=True, max_length=64, padding=True)
    assert tokens_BL.tolist() == expected["input_ids"]
    assert mask_BL.tolist() == expected["attention_mask"]


def test_texts_that_are_cut_are_counted_and_keep_their_end_token(inputs: dict[str, Artifact]) -> None:
    tokenizer = load_tokenizer(inputs["pretrain_mlm"].path / "model")
    split = data.TaskSplit(ids=["a", "b"], texts=["dog " * 50, "dog"], labels=["x", "x"])
    encoded = data.encode_split(split, ["x"], tokenizer, 10)
    assert encoded.num_truncated == 1
    assert encoded.lengths_N[0] == 10
    assert encoded.tokens_T[9] == tokenizer.sep_token_id


def test_what_was_saved_is_read_back_and_damage_is_named(inputs: dict[str, Artifact], tmp_path: data.Path) -> None:
    tokenizer = load_tokenizer(inputs["pretrain_mlm"].path / "model")
    split = data.read_split(inputs["task"].path, "test")
    encoded = data.encode_split(split, data.read_labels(inputs["task"].path), tokenizer, 32)
    data.save_encoded(tmp_path, "test", encoded)
    again = data.load_encoded(tmp_path, "test")
    assert again.ids == encoded.ids
    assert (again.tokens_T == encoded.tokens_T).all() and (again.starts == encoded.starts).all()
    (tmp_path / "test_tokens.npy").unlink()
    with pytest.raises(DamagedArtifactError, match="encoded test cannot be read"):
        data.load_encoded(tmp_path, "test")


def test_an_empty_split_is_the_users_to_mend(tmp_path: data.Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    empty: list[str] = []
    pq.write_table(pa.table({"id": empty, "text": empty, "label": empty}), tmp_path / "validation.parquet")
    with pytest.raises(DataError, match="the validation split has no rows"):
        data.read_split(tmp_path, "validation")
