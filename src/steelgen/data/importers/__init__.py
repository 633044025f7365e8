"""One reader a kind of annotation: `read_X(src, options) -> AnnotatedSet`. `data.importing` draws and writes."""
