"""What is ISDM's (Rabensteiner 2023) besides its checkpoints: configs, trees of images, studies."""
