"""One config object an action: the fields with their limits, loading, overrides and JSON Schema."""
