"""Raw text to a corpus, and labelled rows to a task: `step.py` declares the steps, `distributed.py` runs on Ray Data.

A file is cut into units (`units.py`), read (`readers/`, on `streams.py`, `lines.py`, `arrow_layout.py`; `rows.py` is
what readers hand on) and examined (`documents.py`): cleaned (`normalise.py`, `cleaning/`), filtered (`filters/`,
`language.py`), compared with evaluation sets (`decontamination.py`, on `ngrams.py`). Results are kept by content. Over
all units duplicates are found (`duplicates.py`, `minhash.py`), and `merge.py` writes the corpus. What a word is in each
script: `scripts.py`; hashes: `hashing.py`. What is dropped: `rejects.py`. What to look at: `report.py`,
`statistics.py`, `page.py`. What later stages ask: `evaluation_sets.py`. Labelled rows: `labelled.py`. What a user sets:
`config.py`.
"""
