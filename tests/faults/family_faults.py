# ruff: noqa: E501 - texts of other files keep their lines
"""Faults in what families differ by: records, how their layers are called, and their refusals."""

from __future__ import annotations

from fault import faults_in

ARCHITECTURES, CONVERSION = "python/secateurs/architectures", "python/secateurs/conversion"
FAMILIES, GATES = "architectures/test_families.py", "masking/test_gates.py"
STACKS = "architectures/test_two_stacks.py"

FAMILY_FAULTS = (
    *faults_in(
        f"{ARCHITECTURES}/schema.py",
        ("return sorted(held, key=lambda linear: linear.part)", "return [*held]",
         f"{FAMILIES} -k exported_small and modernbert"),
        ("return self.outer_bias or self.relative_bias is not None",
         "return self.relative_bias is not None", f"{FAMILIES} -k exported_small and mpnet"),
        ("self.when is None or getattr", "True or getattr", f"{FAMILIES} -k contract and stable"),
        ("scales = (sublayer.scale for sublayer in self.sublayers)", "scales = ()",
         f"{FAMILIES} -k contract and dinov2"),
        ("(*self.norms, *attention.head_norms, *filter", "(*self.norms, *filter",
         f"{FAMILIES} -k contract and qwen3"),
    ),
    *faults_in(
        f"{ARCHITECTURES}/stock.py",
        ('getattr(attention, "use_rope", True)', "True", f"{FAMILIES} -k contract and smollm3"),
        ("scale * head_dim**-0.5 if record.queries_scaled else scale", "scale",
         f"{FAMILIES} -k contract and esm"),
    ),
    *faults_in(
        f"{ARCHITECTURES}/refused.py",
        ("if kind in IN_THE_WAY:", "if False:", f"{FAMILIES} -k in_the_way"),
        ("if any(getattr(config, name, None) for", "if any(False for", f"{FAMILIES} -k in_the_way"),
        ('name.rpartition(".")[0] in record.described', "True", f"{FAMILIES} -k more_parts"),
        ("record.causal != causal", "0", f"{FAMILIES} -k sentence_says"),
    ),
    *faults_in(
        f"{ARCHITECTURES}/records.py",
        ("if not model_type or model_type in ARCHITECTURES:", "if False:", f"{FAMILIES} -k ones_own"),
        ("record.named(model_type) for record in records", "records", f"{FAMILIES} -k sentence_says"),
    ),
    *faults_in(
        f"{CONVERSION}/modules/layer.py",
        ('elif "output_attentions" in names:', "elif False:", f"{FAMILIES} -k contract and megatron"),
        ("x = self.cross_attention(self.cross_norm(x), x, *encoded, both)", "pass",
         f"{STACKS} -k contract and mbart"),
        ("x = self.cross_norm(self.cross_attention(x, x, *encoded, both))", "pass",
         f"{STACKS} -k contract and marian"),
        ("if states is None:", "if False:", f"{STACKS} -k needs_the_states"),
        ("y = residual + scale(part(x, None, *context))", "y = residual + part(x, None, *context)",
         f"{FAMILIES} -k contract and granite"),
    ),
    *faults_in(
        f"{CONVERSION}/modules/norm.py",
        ("self.weight + self.offset if self.offset else self.weight", "self.weight",
         f"{FAMILIES} -k contract and gemma"),
    ),
    *faults_in(
        f"{CONVERSION}/modules/attention.py",
        ("if width < x.shape[-1]:", "if False:", f"{FAMILIES} -k contract and stablelm"),
        ("self.rules, self.rotary, self.biased = rules, rotary, biased",
         "self.rules, self.rotary, self.biased = rules, rotary, False", f"{FAMILIES} -k contract and mpnet"),
        ("if causal and (mask is None or mask.dim() == 2):", "if False:",
         f"{STACKS} -k contract and whole_t5 or contract and whole"),
        ("num_embeddings // (1 if self.causal else 2)", "num_embeddings // 2",
         f"{STACKS} -k contract and whole"),
        ("places = torch.arange(queries, device=device) + before",
         "places = torch.arange(queries, device=device)", f"{STACKS} -k contract and whole"),
        ("if head_norms is not None:", "if False:", f"{FAMILIES} -k contract and qwen3"),
        ("if rotary is not None and self.rotary:", "if rotary is not None:",
         f"{FAMILIES} -k contract and smollm3"),
    ),
    *faults_in(
        "python/secateurs/conversion/layer_builder.py",
        ("for name in self.architecture.told:", "for name in ():", f"{FAMILIES} -k contract and modernbert"),
    ),
    *faults_in(
        f"{CONVERSION}/remake.py",
        ('layer.ffn_norm.get_parameter("weight")', 'layer.attention_norm.get_parameter("weight")',
         f"{FAMILIES} -k contract and modernbert"),
        ("(*architecture.norms, *architecture.attention.head_norms):", "architecture.norms:",
         f"{FAMILIES} -k changed_eps"),
    ),
    *faults_in(
        f"{CONVERSION}/inherited.py",
        ("type_before_parametrizations(module)", "type(module)", f"{FAMILIES} -k contract and hubert"),
    ),
    *faults_in(
        "python/secateurs/masking/gates.py",
        ("x.unflatten(0, sizes[0]) if x.dim() == 2 else x", "x", f"{GATES} -k all_tokens_as_one"),
        ("if batched and x.dim() > 2", "if batched", f"{GATES} -k all_tokens_as_one"),
    ),
    *faults_in(
        "python/secateurs/pruning/activations.py",
        ("mask.numel() != len(states)", "True", f"{GATES} -k units_are_read"),
    ),
    *faults_in(
        "python/secateurs/reconstruction/walk.py",
        ("torch.where(factor == 0, 0.0, off / factor)", "off", f"{FAMILIES} -k factors"),
        ("scaled(layer, sublayer, output.reshape(run.dense.shape))", "output.reshape(run.dense.shape)",
         f"{FAMILIES} -k factors"),
    ),
    *faults_in(
        "python/secateurs/storage/blueprint.py",
        ("except ZeroDivisionError:", "except IndexError:", f"{FAMILIES} -k contract and modernbert"),
        ("if linear.bias is not None and stock.bias is not None:", "if linear.bias is not None:",
         f"{FAMILIES} -k contract and whisper"),
    ),
    *faults_in(
        f"{ARCHITECTURES}/sites.py",
        ("if not fitting:", "if False:", f"{FAMILIES} -k refused_by_name"),
        ('both = getattr(config, "is_encoder_decoder", False)', "both = False",
         "architectures/test_sites.py -k unsuitable"),
        ("if len(self.stacks) > 1:", "if False:", f"{STACKS} -k walks_through"),
        ("return stack, index - stack.first", "return stack, index", f"{STACKS} -k say_which"),
        ("if architecture.cross else 0", "if False else 0", f"{STACKS} -k say_which"),
    ),
    *faults_in(
        f"{ARCHITECTURES}/kept.py",
        ('for part, keep in self.units.items() if part != "neurons")',
         'for part, keep in self.units.items() if part == "heads")', f"{STACKS} -k macs"),
    ),
    *faults_in(
        f"{CONVERSION}/modules/cross_attention.py",
        ("of_cross is not None and cache.is_updated.get(self.layer_idx)", "False",
         f"{STACKS} -k contract and mbart"),
        ('getattr(cache, "self_attention_cache", cache)', "cache", f"{STACKS} -k contract and mbart"),
    ),
    *faults_in(
        "python/secateurs/pruning/activations.py",
        ('batch.get(MASKS.get(stack.name, "attention_mask"))', 'batch.get("attention_mask")',
         f"{STACKS} -k own_real_tokens"),
    ),
    *faults_in(
        "python/secateurs/data/batches.py",
        ('decoded = any(name.startswith("decoder_") for name in batch)', "decoded = False",
         f"{STACKS} -k own_real_tokens"),
        ('if read_by_decoder is not None and "labels" in moved', 'if False and "labels" in moved',
         f"{STACKS} -k from_both_stacks and kprune"),
    ),
    *faults_in(
        "python/secateurs/measurement/inputs.py",
        ("frames = (frames - 1) * stride + kernel", "frames = frames * stride + kernel",
         f"{FAMILIES} -k frames"),
        ("if tokens != made:", "if False:", "measurement/test_quality.py -k one_size"),
    ),
    *faults_in(
        f"{CONVERSION}/trial_runs.py",
        ("heard[0, samples[1] :] = 0", "pass", f"{FAMILIES} -k frames"),
    ),
)  # fmt: skip
