"""Faults of `plan`."""

from __future__ import annotations

from fault import faults_in

FAULTS = (
    *faults_in(
        "python/secateurs/plan/quantization.py",
        ("2 ** (self.bits - 1) - 1\n        return", "2 ** (self.bits - 1)\n        return",
         "plan/test_quantization.py -k nearest_level"),
        ("(size * q).sum() / q.square().sum()", "size.sum() / q.sum()",
         "plan/test_quantization.py -k brute_force"),
    ),
    *faults_in(
        "python/secateurs/plan/sparsity_plan.py",
        ("masks[name].merge(mask) if name in masks else mask", "mask",
         "plan/test_plan.py -k both_keep"),
        ("            mask.check(by_name[name])\n", "            pass\n",
         "plan/test_plan.py -k does_not_fit"),
    ),
    *faults_in(
        "python/secateurs/plan/masks.py",
        ("return other if rule == Dense() else rule & other", "return other",
         "plan/test_attention_rule_mask.py -k merged_rules"),
    ),
    *faults_in(
        "python/secateurs/plan/rule_records.py",
        ("if record_of(rule) != record:", "if False:",
         "kinds/test_hostile_plans.py -k that_save_does_not_write"),
        ("    if depth > DEEPEST:\n        raise PlanError",
         "    if False:\n        raise PlanError",
         "plan/test_attention_rule_mask.py -k nested_too_deep"),
    ),
)  # fmt: skip
