"""Slurm: batch scripts, submission and status of runs."""
