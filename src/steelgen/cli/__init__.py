"""Command line: parses arguments, loads a config, calls one function, prints. Nothing else prints."""
