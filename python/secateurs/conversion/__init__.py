"""Conversion: the model without what a plan removes, on our kernels."""
