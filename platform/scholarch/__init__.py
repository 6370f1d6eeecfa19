"""Scholarch trains, distils, evaluates and promotes self-supervised vision models of the DINO family."""

__version__ = "0.1.0"
