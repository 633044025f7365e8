"""From one GPU to a cluster: Slurm scripts, shards, what was asked for against what was got, the pipeline, the doctor."""
