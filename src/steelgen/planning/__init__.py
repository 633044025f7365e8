"""From a dataset folder to ready configs: measure the set and the machine, choose by rules, write."""
