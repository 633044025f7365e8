"""Whether generated micrographs can be believed, obey their masks, are copies, and help."""
