"""What a training will take, by formula and without torch: memory, time, network, disk."""
