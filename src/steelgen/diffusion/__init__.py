"""Mask-conditioned diffusion: noise schedule, loss, guidance, solvers."""
