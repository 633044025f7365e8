"""Annotated micrographs on disk, and the way from there to tensors."""
