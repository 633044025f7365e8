"""Checkpoints of ISDM, read and written."""
