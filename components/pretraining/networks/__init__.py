"""The networks: classes of transformers with random weights or from a folder, their sizes, and how they are run."""
