"""nn.Modules only: no configs, no devices, no files."""
