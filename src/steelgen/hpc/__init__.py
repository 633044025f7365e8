"""From one GPU to a cluster: Slurm scripts and jobs, shards, the pipeline, the doctor."""
