"""Evaluation of generated micrographs: fidelity, faithfulness, microstructure, memorization and utility."""
