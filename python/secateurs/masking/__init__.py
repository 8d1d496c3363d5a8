"""Masking: gates on a live model, and the masked model that defines what a pruned one computes."""
