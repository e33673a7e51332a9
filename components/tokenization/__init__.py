"""A tokenizer, and token shards: `step.py` declares the steps, `distributed.py` runs on Ray Data.

A tokenizer is trained (`training.py`, `unigram.py`, `pretokenize.py`, on `training_texts.py`) or taken over
(`existing.py`); its special tokens are in `special.py`, and `report.py` says how good it is. Documents become tokens by
unit of the corpus, kept by content (`encoding.py`, `encoder.py`), are packed (`packing.py`) and written
(`shard_writer.py`) as `shards.py` reads them; `shards_report.py` shows them. What a token means is told from
tokenizer.json: `pieces.py`, `words.py`, `scripts.py`. What a user sets: `config.py`.
"""
