"""Training: distillation, the pruning trainer, tasks from data to a pruned model."""

from secateurs.training.distillation import distill

__all__ = ["distill"]
