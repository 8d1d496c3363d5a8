"""Faults of `conversion`."""

from __future__ import annotations

from fault import faults_in

RULED = "masking/test_ruled_attention.py"
RULED_LAYERS = "conversion/test_ruled_layers.py"
MEMORY = "conversion/test_memory.py"
CODES = "conversion/test_int8.py"
CONVERT = "conversion/test_convert.py"
WHOLE = "conversion/test_whole_layer.py"
QUANTIZER = "integrations/test_transformers_quantizer.py"
ARGUMENTS = "kinds/test_foreign_arguments.py"
CONVERSION = "python/secateurs/conversion"
FAMILIES = "architectures/test_families.py"

FAULTS = (
    *faults_in(
        f"{CONVERSION}/transformers_attention.py",
        ("explicit <= torch.finfo(explicit.dtype).min / 2", "explicit == -torch.inf",
         f"{RULED} -k explicit"),
        ("if rules is not None and ops.recording():", "if False:",
         "kinds/test_recording.py -k other_lengths"),
        ("    causal = causal and explicit is None\n", "", f"{RULED_LAYERS} -k says_it_all"),
    ),
    *faults_in(
        f"{CONVERSION}/modules/layer.py",
        ("if isinstance(attention, Attention) and attention.rules is not None:", "if False:",
         f"{RULED_LAYERS} -k explain_says"),
        ("self.relative_bias, self.head_norms = relative_bias, head_norms",
         "self.relative_bias, self.head_norms = None, head_norms", f"{CONVERT} -k equals_masked"),
        ("self.whole.forget()", "pass", f"{WHOLE} -k go_with"),
        ('elif "output_attentions" in names:', "elif False:",
         f"{FAMILIES} -k contract and megatron"),
        ("y = residual + scale(part(x, None, *context))", "y = residual + part(x, None, *context)",
         f"{FAMILIES} -k contract and granite"),
        ('elif names[:1] != ["attention_mask"] or', "elif",
         "kinds/test_foreign_arguments.py -k another_order"),
        ("x = self.cross_attention(self.cross_norm(x), x, *encoded, both)", "pass",
         "architectures/test_two_stacks.py -k contract and mbart"),
        ("x = self.cross_norm(self.cross_attention(x, x, *encoded, both))", "pass",
         "architectures/test_two_stacks.py -k contract and marian"),
        ("if states is None:", "if False:", "architectures/test_two_stacks.py -k needs_the_states"),
    ),
    *faults_in(
        f"{CONVERSION}/modules/attention.py",
        ("scores_bias = scores_bias[:, self.kept_heads]", "pass",
         f"{CONVERT} -k converted_equals_masked"),
        ("one_side * (distance > 0)", "one_side * (distance < 0)", f"{CONVERT} -k equals_masked"),
        ("return bias.masked_fill(~mask, -math.inf)", "return bias", f"{CONVERT} -k equals_masked"),
        ("if head_norms is not None:", "if False:", f"{FAMILIES} -k contract and qwen3"),
        ("if rotary is not None and self.rotary:", "if rotary is not None:",
         f"{FAMILIES} -k contract and smollm3"),
        ("if width < x.shape[-1]:", "if False:",
         "architectures/test_families.py -k contract and stablelm"),
        ("self.rules, self.rotary, self.biased = rules, rotary, biased",
         "self.rules, self.rotary, self.biased = rules, rotary, False",
         "architectures/test_families.py -k contract and mpnet"),
        ("if causal and (mask is None or mask.dim() == 2):", "if False:",
         "architectures/test_two_stacks.py -k contract and whole_t5 or contract and whole"),
        ("num_embeddings // (1 if self.causal else 2)", "num_embeddings // 2",
         "architectures/test_two_stacks.py -k contract and whole"),
        ("places = torch.arange(queries, device=device) + before",
         "places = torch.arange(queries, device=device)",
         "architectures/test_two_stacks.py -k contract and whole"),
    ),
    *faults_in(
        f"{CONVERSION}/slicing.py",
        ("compact if shares else _apart(compact, stock)", "compact", f"{MEMORY} -k share_nothing"),
    ),
    *faults_in(
        f"{CONVERSION}/portions.py",
        ("SHARE = 0.25", "SHARE = 1.0", f"{MEMORY} -k another_model"),
        ("return [range(a, b) for a, b in", "return [range(a, b - (b == 6)) for a, b in",
         f"{MEMORY} -k proven"),
        ("if len(sites.stacks) > 1:", "if False:", f"{MEMORY} -k share_nothing"),
    ),
    *faults_in(
        f"{CONVERSION}/rebuilding.py",
        ("self._templates[index] = nn.Identity()", "pass", f"{MEMORY} -k another_model"),
        ("        model.base_model.register_forward_pre_hook(_refuse_to_run)\n", "",
         f"{MEMORY} -k refuses_to_run"),
    ),
    *faults_in(
        f"{CONVERSION}/builder.py",
        ("copy_sharing(model, _packed(model, sites))", "copy_sharing(model, ())",
         f"{MEMORY} -k another_model"),
        ("        layers_of.put_for_good()", "        pass", f"{MEMORY} -k share_nothing"),
    ),
    *faults_in(
        f"{CONVERSION}/modules/prepared_layer.py",
        ("and not any(self._hooks)", "", f"{WHOLE} -k hook"),
        ("[*map(_address, self._tensors)] == self._addresses", "True", f"{WHOLE} -k data_replaced"),
        ("all(map(is_, held, self._held))", "True", f"{WHOLE} -k swapped"),
        ("== self._settings\n            and", "!= []\n            and", f"{WHOLE} -k norm"),
        ("for m, n in owners] == self._settings", "for m, n in owners] != []", f"{WHOLE} -k copy"),
        ('"_bound": None}', '"_x": None}', f"{WHOLE} -k copy_remembers"),
    ),
    *faults_in(
        f"{CONVERSION}/inherited.py",
        ("disown(converted)\n", "pass\n", f"{QUANTIZER} -k methods_of_a_model"),
        ("type_before_parametrizations(module)", "type(module)",
         f"{FAMILIES} -k contract and hubert"),
    ),
    *faults_in(
        f"{CONVERSION}/forms.py",
        ("whole += [made.name] if form.whole else []", "pass", WHOLE),
        ("row_scales(weight) if part.scales is None else part.scales", "row_scales(weight) * 2",
         f"{CODES} -k identical"),
        ("levels.scale, dtype", "2 * levels.scale, dtype", f"{CODES} -k levels"),
        ("if form.precision != precision:", "if False:", CODES),
        ("if isa in WITH_BFLOAT16_PRODUCTS", "if isa",
         "search/test_precisions.py -k left_out_and_told"),
    ),
    *faults_in(
        f"{CONVERSION}/modules/int8_linear.py",
        ("weight.scales.view(torch.int32)", "weight.scales", f"{CODES} -k cast"),
    ),
    *faults_in(
        f"{CONVERSION}/modules/norm.py",
        ("self.weight + self.offset if self.offset else self.weight", "self.weight",
         f"{FAMILIES} -k contract and gemma"),
    ),
    *faults_in(
        f"{CONVERSION}/remake.py",
        ("(*architecture.norms, *architecture.inner_norms):", "architecture.norms:",
         f"{FAMILIES} -k changed_eps"),
        ('layer.ffn_norm.get_parameter("weight")',
         'layer.attention_norm.get_parameter("weight")',
         "architectures/test_families.py -k contract and modernbert"),
    ),
    *faults_in(
        "python/secateurs/conversion/layer_builder.py",
        ("for name in self.architecture.told:", "for name in ():",
         "architectures/test_families.py -k contract and modernbert"),
        ("made = made if why_not is None else unrounded", "pass",
         "conversion/test_rounding.py -k slower"),
        ("self.stays |= dict.fromkeys(sites, why_not)", "pass",
         "conversion/test_rounding.py -k bound or slower"),
    ),
    *faults_in(
        "python/secateurs/conversion/modules/cross_attention.py",
        ("of_cross is not None and cache.is_updated.get(self.layer_idx)", "False",
         "architectures/test_two_stacks.py -k contract and mbart"),
        ('getattr(cache, "self_attention_cache", cache)', "cache",
         "architectures/test_two_stacks.py -k contract and mbart"),
    ),
    *faults_in(
        "python/secateurs/conversion/trial_runs.py",
        ("heard[0, samples[1] :] = 0", "pass", "architectures/test_families.py -k frames"),
    ),
    *faults_in(
        "python/secateurs/conversion/calibration.py",
        ("real = mask.flatten().nonzero()[:, 0]", "real = torch.arange(mask.numel())",
         "conversion/test_rounding.py -k padding"),
        ("if not bool(whole.isfinite().all()):", "if False:",
         "conversion/test_rounding.py -k not_finite"),
    ),
    *faults_in(
        "python/secateurs/conversion/error_feedback.py",
        ("left[:, stop:] -= errors", "left[:, stop:] += errors",
         "conversion/test_rounding.py -k less_error"),
        ("column * kept[:, j]", "column", "conversion/test_rounding.py -k less_error"),
        ("out[:, order.argsort()]", "out", "conversion/test_rounding.py -k less_error"),
        ("if not bool(squares.any()):", "if False:",
         "conversion/test_rounding.py -k without_inputs"),
    ),
    *faults_in(
        "python/secateurs/conversion/smoothing.py",
        ("steps.round()", "steps", "conversion/test_rounding.py -k powers_of_two"),
        ("steps - steps[used].mean()", "steps", "conversion/test_rounding.py -k powers_of_two"),
        ("linear.bias / divisor.to(linear.bias)", "linear.bias",
         "conversion/test_rounding.py -k nothing_but and bert"),
        ('f"{path}.weight", f"{path}.bias"', 'f"{path}.weight",',
         "conversion/test_rounding.py -k nothing_but and gpt2"),
    ),
    *faults_in(
        "python/secateurs/conversion/rounding.py",
        ("errors - shift, bias - shift", "errors - shift, bias + shift",
         "conversion/test_rounding.py -k each_decision"),
        ("if error > max_error:", "if False:", "conversion/test_rounding.py -k past_the_bound"),
        ("layer.linears[role] = layer.exact[role]", "pass",
         "conversion/test_rounding.py -k stay_together"),
        ("if not len(learn):", "if False:", "conversion/test_rounding.py -k one_token"),
        ("not any(role in self.keep.levels for role in roles)", "True",
         "conversion/test_rounding.py -k levels"),
        ("heads[:, None] * width", "heads[:, None] * 0",
         "conversion/test_rounding.py -k nothing_but"),
    ),
    *faults_in(
        "python/secateurs/conversion/modules/stack.py",
        ("layer._forward_hooks\n        or", "", "conversion/test_stack.py -k every_layer"),
        ("or layer._forward_pre_hooks", "", "conversion/test_stack.py -k every_layer"),
        ("or every_module._global_forward_hooks", "", "conversion/test_stack.py -k all_modules"),
        ("or every_module._global_forward_pre_hooks", "",
         "conversion/test_stack.py -k all_modules"),
        ('or "forward" in vars(layer)', "", "conversion/test_stack.py -k replaced_forward"),
        ("torch.is_grad_enabled() or", "", "conversion/test_stack.py -k gradients"),
        ('or torch.is_autocast_enabled("cpu")', "", "conversion/test_stack.py -k autocast"),
        ("for value in told", "for value in []", "conversion/test_stack.py -k refuses"),
        ("args[0] if args else None", "None", "conversion/test_stack.py -k one_call"),
    ),
)  # fmt: skip
