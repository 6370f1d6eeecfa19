"""Names of views that have a meaning of their own."""

CAPTION = "caption"
"""The caption of a sample, which is a view of it like its crops."""
