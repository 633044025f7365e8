"""One writer per format: `write_X(out, info, pairs)`; see `data.exporting`."""
