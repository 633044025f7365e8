"""Reading, writing and import of ISDM checkpoints."""
