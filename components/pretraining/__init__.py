"""Pretraining: `step.py` declares the step, `distributed.py` runs it on Ray Train, `loop.py` is what each rank does.

What a batch is: `objectives/`, `batches.py`, `sampler.py`, `hashing.py`. What the network is: `networks/`. How it is
trained: `engine/` (DeepSpeed), `optimizer_step.py`, `training.py`. What survives a kill: `checkpoints/`, `notice.py`.
When it goes wrong: `health/`. How good it is: `evaluation/`. What is left: `finish.py`, `export.py`. What it will take:
`estimates/`. What a user sets, and whether it fits: `config.py`, `fit.py`.
"""
