"""The command line: parses, loads a config, calls one function, prints. Nothing else prints."""
