"""Mask sources, batched sampling and output folders."""
