"""How good the model is while it is trained, and how fast: validation, samples, throughput."""
