"""Training loop, checkpoints, validation and weight averages of all generator kinds."""
