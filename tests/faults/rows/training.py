"""Faults of `training`."""

from __future__ import annotations

from fault import faults_in

FAULTS = (
    *faults_in(
        "python/secateurs/training/trainer.py",
        ("return divergence * t**2 /", "return divergence /",
         "training/test_trainer.py -k formulas"),
        ("loss = loss + self.session.penalty()", "pass",
         "training/test_trainer.py -k penalty_weighs"),
        ("            self.session.begin(num_training_steps)\n", "",
         "pruning/methods/test_dsp.py -k trainer_gives"),
    ),
    *faults_in(
        "python/secateurs/training/task_recipe.py",
        ("        if wanted.dim() > 1:", "        if False:",
         "training/test_kinds_of_tasks.py -k one_by_one"),
        ("        if refits:\n", "        if False:\n",
         "training/test_task_recipe.py -k re_fitted_before"),
    ),
)  # fmt: skip
