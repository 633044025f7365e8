"""Diffusion: noise schedules, losses, guidance and solvers."""
