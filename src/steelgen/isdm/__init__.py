"""What is ISDM's (Rabensteiner 2023): its configs and its checkpoints, both ways."""
