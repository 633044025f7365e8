"""One writer a format: `write_X(out, info, pairs)`. `data.exporting` finds the pairs and tells where they come from."""
