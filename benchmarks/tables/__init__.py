"""Markdown tables of the stored results, one function per benchmark."""
