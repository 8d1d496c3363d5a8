"""Allocation: scores and a budget in, a plan out."""
