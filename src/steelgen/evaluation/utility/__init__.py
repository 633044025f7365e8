"""The utility study: does generated data help a segmentation network on held-out real micrographs?"""
