"""From one GPU to a cluster: Slurm scripts and jobs, and their status."""
