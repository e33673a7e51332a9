"""DeepSpeed: its engine with what the loop needs, and all that sets it up for the hardware."""
