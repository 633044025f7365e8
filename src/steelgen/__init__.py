"""steelgen: labelled synthetic micrographs from small annotated datasets."""

__version__ = "0.1.0"
