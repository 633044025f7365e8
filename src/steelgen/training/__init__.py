"""The training loop and its upkeep: EMA, checkpoints, previews, stopping."""
