"""Annotated micrographs: import, export, dataset folders and training crops."""
