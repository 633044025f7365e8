"""The utility study: does generated data improve segmentation networks on held-out real micrographs?"""
