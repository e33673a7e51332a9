"""The objectives: what the network sees and what it is to predict, one file each."""
