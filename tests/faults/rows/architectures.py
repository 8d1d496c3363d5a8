"""Faults of `architectures`."""

from __future__ import annotations

from fault import faults_in

RULED = "masking/test_ruled_attention.py"
RULED_LAYERS = "conversion/test_ruled_layers.py"
CONVERT = "conversion/test_convert.py"
ARCHITECTURES = "python/secateurs/architectures"
FAMILIES = "architectures/test_families.py"

FAULTS = (
    *faults_in(
        f"{ARCHITECTURES}/kept.py",
        ("tuple(self.rules[head] for head in self.heads.nonzero()[:, 0].tolist())",
         "self.rules[: int(self.heads.sum())]", f"{RULED_LAYERS} -k sliced_take"),
        ("sum(allowed_pairs(rule, seq_len) for rule in self.kept_rules)", "pairs",
         f"{RULED} -k keys_that_are_seen"),
        ('for part, keep in self.units.items() if part != "neurons")',
         'for part, keep in self.units.items() if part == "heads")',
         "architectures/test_two_stacks.py -k macs"),
    ),
    *faults_in(
        f"{ARCHITECTURES}/schema.py",
        ("name in self.described or name", "name", f"{FAMILIES} -k contract and beit"),
    ),
    *faults_in(
        f"{ARCHITECTURES}/linears.py",
        ("start = 0 if number == 0 else first + (number - 1) * rest", "start = 0",
         f"{CONVERT} -k converted_equals_masked"),
        ("rest = (outputs - first) // (parts - 1)", "first = rest = outputs // parts",
         f"{FAMILIES} -k contract and phi3"),
        ("return heads[:, number]", "return heads[:, number - 1]",
         "architectures/test_families.py -k contract and gpt_neox"),
        ("torch.stack(heads, 1).flatten(0, 2)", "torch.cat(list(parts))",
         "architectures/test_families.py -k contract and gpt_neox"),
        ("return whole.T.contiguous() if one.linear.transposed",
         "return whole if one.linear.transposed",
         "storage/test_checkpoint.py -k export_dense and gpt2"),
    ),
    *faults_in(
        f"{ARCHITECTURES}/schema.py",
        ("self.when is None or getattr", "True or getattr", f"{FAMILIES} -k contract and stable"),
        ("outlets = (sublayer.outlet for sublayer in self.sublayers)", "outlets = ()",
         f"{FAMILIES} -k contract and dinov2"),
        ("(*self.attention.head_norms, *filter(None, behind))", "()", f"{FAMILIES} -k changed_eps"),
        ("(*dict.fromkeys(self.norms), *attention.head_norms,", "(*dict.fromkeys(self.norms),",
         f"{FAMILIES} -k contract and qwen3"),
        ("(*dict.fromkeys(self.norms), ", "(*self.norms, ", f"{FAMILIES} -k contract and phi"),
        ("return sorted(held, key=lambda linear: linear.part)", "return [*held]",
         "architectures/test_families.py -k exported_small and modernbert"),
        ("return self.outer_bias or self.relative_bias is not None",
         "return self.relative_bias is not None",
         "architectures/test_families.py -k exported_small and mpnet"),
    ),
    *faults_in(
        f"{ARCHITECTURES}/stock.py",
        ("if may_leave_out_caps and", "if False and",
         f"{CONVERT} -k leaves_out"),
        ('    if hasattr(module, "_hf_hook"):\n', "    if False:\n",
         "kinds/test_placed_models.py -k taken_off"),
        ('getattr(attention, "use_rope", True)', "True", f"{FAMILIES} -k contract and smollm3"),
        ("scale * head_dim**-0.5 if record.queries_scaled else scale", "scale",
         f"{FAMILIES} -k contract and esm"),
    ),
    *faults_in(
        f"{ARCHITECTURES}/refused.py",
        ("if kind in IN_THE_WAY:", "if False:", f"{FAMILIES} -k in_the_way"),
        ("if any(getattr(config, name, None) for", "if any(False for", f"{FAMILIES} -k in_the_way"),
        ("all(record.describes(name) for", "all(True for", f"{FAMILIES} -k more_parts"),
        ("record.causal != causal", "0", f"{FAMILIES} -k sentence_says"),
    ),
    *faults_in(
        f"{ARCHITECTURES}/records/__init__.py",
        ("if not model_type or model_type in ARCHITECTURES:", "if False:",
         f"{FAMILIES} -k ones_own"),
        ("record.named(model_type) for record in records", "records",
         f"{FAMILIES} -k sentence_says"),
    ),
    *faults_in(
        f"{ARCHITECTURES}/sites.py",
        ("if not fitting:", "if False:", "architectures/test_families.py -k refused_by_name"),
        ('both = getattr(config, "is_encoder_decoder", False)', "both = False",
         "architectures/test_sites.py -k unsuitable"),
        ("if len(self.stacks) > 1:", "if False:",
         "architectures/test_two_stacks.py -k walks_through"),
        ("return stack, index - stack.first", "return stack, index",
         "architectures/test_two_stacks.py -k say_which"),
        ("if architecture.cross else 0", "if False else 0",
         "architectures/test_two_stacks.py -k say_which"),
    ),
    *faults_in(
        "python/secateurs/architectures/plain_loop.py",
        ("len(loop.body) != 1 or", "", "conversion/test_stack.py -k left_alone"),
        ("len(loops) != 1 or", "", "conversion/test_stack.py -k left_alone"),
        ("id(node) not in inside", "False", "conversion/test_stack.py -k left_alone"),
        ('if node.id == "self"', "if False", "conversion/test_stack.py -k left_alone"),
        ("if sum(node.attr == layers for node in read) == 1", "if True",
         "conversion/test_stack.py -k left_alone"),
        ("call.args[0]) == states.id", "call.args[0]) != states",
         "conversion/test_stack.py -k left_alone"),
        ("all(isinstance(other, ast.Name) for other in others)", "True",
         "conversion/test_stack.py -k left_alone"),
    ),
)  # fmt: skip
