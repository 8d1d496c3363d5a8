"""Reconstruction: closed-form re-fits of what a plan leaves, without labels or training."""

from secateurs.reconstruction.refit import refit

__all__ = ["refit"]
