"""One reader per annotation kind: `read_X(src, options) -> AnnotatedSet`; see `data.importing`.

Readers raise `InputError`, with the file and the value, if a source is invalid, and if an image is missing unless
`options.skip_missing`.
"""
