"""Checkpoints: taken, written in the background, kept or removed, and read at any number of ranks."""
