# ruff: noqa: E501 - texts of other files keep their lines
"""Faults that a test must see: one piece of one file replaced, and the test that then fails.

`run.py` tries them on a copy of the package. Faults of the CUDA kernels stand in
`tests/emulator/faults.py`, for they are all built into one program.
"""

from __future__ import annotations

from family_faults import FAMILY_FAULTS
from fault import faults_in
from kernel_faults import KERNEL_FAULTS

PRUNING, METHODS = "python/secateurs/pruning", "python/secateurs/pruning/methods"
ALLOCATION = f"{PRUNING}/allocation"
ALLOCATORS, CONTRACT = "pruning/test_allocators.py", "pruning/test_pruning.py"
GRADIENT = "pruning/methods/test_gradient.py"
OBS, KPRUNE = "pruning/methods/test_obs.py", "pruning/methods/test_kprune.py"
RANKING, SESSION = "pruning/test_ranking.py", "pruning/test_session.py"
RULED, RULED_LAYERS = "masking/test_ruled_attention.py", "conversion/test_ruled_layers.py"
INT8, CODES = "ops/test_int8_linear.py", "conversion/test_int8.py"
ROUNDING = "conversion/test_rounding.py"

PYTHON = (
    *faults_in(
        f"{ALLOCATION}/units.py",
        ("fraction * total + 0.5", "fraction * total", f"{CONTRACT} -k budget_is_met and random-bert"),
        ("high = middle\n", "high = middle - 1\n", f"{ALLOCATORS} -k fewest"),
        ("<= 1 - fraction:", "< 1 - fraction:", f"{CONTRACT} -k fewest_units"),
        ("score.numel() - floors.get(kind, 0)", "score.numel()", f"{ALLOCATORS} -k refused"),
        ("if floor > score.numel():", "if False:", f"{ALLOCATORS} -k refused"),
        ("if kind not in kinds:", "if False:", f"{ALLOCATORS} -k refused"),
        ("of_kind, counts[kind], floors.get(kind, 0)", "of_kind, counts[kind], 0",
         f"{ALLOCATORS} -k floor_is_kept"),
        ("for kind, floor in floors.items() if floor}", "for kind, floor in floors.items()}",
         f"{ALLOCATORS} -k single_units"),
        ("importance = score.float().sqrt()", "importance = score.float()",
         f"{CONTRACT} -k vector_pattern_keeps"),
        ("(j + 0.5) / size, kind)", "(j + 1) / size, kind)", f"{ALLOCATORS} -k always_made"),
    ),
    *faults_in(
        f"{ALLOCATION}/global_ranking.py",
        ("torch.inf", "0.0", f"{ALLOCATORS} -k floor_is_kept"),
        ("lowest(ranked, count)", "[lowest([r], count // len(ranked))[0] for r in ranked]",
         f"{ALLOCATORS} -k single_units"),
    ),
    *faults_in(
        f"{ALLOCATION}/per_layer.py",
        ("(rank + half) / sizes[layer]", "(rank + 1) / sizes[layer]",
         f"{ALLOCATORS} -k uneven_layers"),
        ("float(ordered[layer][rank])", "0.0", f"{ALLOCATORS} -k single_units"),
        ("s.numel() - floor for s in layer", "s.numel() for s in layer",
         f"{ALLOCATORS} -k uneven_layers"),
        ("math.ceil(share * size - half)", "math.ceil(share * size + 3 * half)",
         f"{ALLOCATORS} -k single_units"),
        ('name.rpartition(".")[0]', "name", f"{ALLOCATORS} -k single_units"),
    ),
    *faults_in(
        f"{ALLOCATION}/allocator.py",
        ("repr(allocator) if is_dataclass(allocator) else type(allocator).__name__",
         "repr(allocator)", f"{ALLOCATORS} -k price"),
    ),
    *faults_in(
        f"{METHODS}/__init__.py",
        ("if price is not None and not pruner.allocator.uses_price:", "if False:",
         f"{ALLOCATORS} -k price"),
        ("    pruner.price = price\n", "", f"{ALLOCATORS} -k price"),
        ("    elif allocator is not None:\n        pruner.allocator = allocator\n", "",
         f"{ALLOCATORS} -k by_object"),
    ),
    *faults_in(
        f"{PRUNING}/session.py",
        ('"allocator": self._allocator,', '"allocator": None,', f"{ALLOCATORS} -k no_other"),
        ("if self._finite:\n            self.pruner.after_step(self.step)",
         "if True:\n            self.pruner.after_step(self.step)", f"{SESSION} -k left_out"),
        ("            parameter.grad = None\n\n    def after_step", "            pass\n\n    def after_step",
         f"{SESSION} -k left_out"),
        ('"generator": self.pruner.generator.get_state(),',
         '"generator": torch.Generator().get_state(),', f"{SESSION} -k to_the_bit"),
    ),
    *faults_in(
        f"{PRUNING}/ranking.py",
        ("ties.cumsum(0) <= missing", "ties.cumsum(0) < missing", f"{RANKING} -k ties"),
        ("        missing -= min(missing, int(ties.sum()))\n", "", f"{RANKING} -k ties"),
        ("(key & 0xFFFF)[(key >> 16) == upper]", "(key & 0xFFFF)[(key >> 16) >= upper]",
         f"{RANKING} -k histograms"),
        ("if any(bool(score.isnan().any()) for score in scores):", "if False:",
         f"{RANKING} -k refused"),
    ),
    *faults_in(
        f"{PRUNING}/schedules.py",
        ("(step - self.begin) / (self.end - self.begin)", "step / self.end",
         f"{RANKING} -k formulas"),
        ("if self.end > steps:", "if self.end > steps + 1:", f"{RANKING} -k longer_than_training"),
    ),
    *faults_in(
        f"{PRUNING}/run_folders.py",
        ("all(sha256(files[n]) == noted[n] for n in noted)", "True",
         "kinds/test_interrupted_runs.py -k is_not_gone_on_from"),
        ("sorted(steps, key=lambda path: -steps[path])", "sorted(steps, key=lambda path: steps[path])",
         "kinds/test_interrupted_runs.py -k counts_as_a_number"),
    ),
    *faults_in(
        f"{METHODS}/gradient.py",
        ("gradient.double().abs().pow(self._power)", "gradient.double().pow(self._power)",
         f"{GRADIENT} -k per_example_derivative"),
        ("loss_of(output).sum() * batch_size(batch)", "loss_of(output).sum()",
         f"{GRADIENT} -k per_example_derivative"),
        ("torch.where(mask.keep, score, -1.0)", "torch.where(mask.keep, score, score)",
         f"{GRADIENT} -k stays_gone"),
    ),
    *faults_in(
        f"{PRUNING}/gate_gradients.py",
        ("gates.set_plan(gone)", "pass", f"{GRADIENT} -k later_rounds"),
        (" * token_weights(out, batch)).sum()", ").sum()", f"{GRADIENT} -k curvature"),
    ),
    *faults_in(
        f"{PRUNING}/activations.py",
        ("states if real is None else states[real]", "states",
         f"{OBS} -k padding"),
    ),
    *faults_in(
        f"{METHODS}/obs.py",
        ("moments + damping * spread * identity", "moments + damping * identity", f"{OBS} -k every_step"),
        ("weight -= together @ inverse[columns]", "pass", f"{OBS} -k every_step"),
        ("second - mean[:, None] * mean if centred", "second if centred", f"{OBS} -k moments"),
        ("costs[chosen].cumsum(0)", "costs[chosen]", f"{OBS} -k together"),
    ),
    *faults_in(
        f"{METHODS}/kprune.py",
        ("weight.square().mean(0)", "weight.square().sum(0)", f"{KPRUNE} -k energy"),
        ("logits / _TEMPERATURE", "logits", f"{KPRUNE} -k fisher"),
        ("squares / self._examples / 2", "squares / 2", f"{KPRUNE} -k fisher"),
        (" * (_HEADS if kind == \"heads\" else 1.0)", "", f"{KPRUNE} -k energy"),
    ),
    *faults_in(
        "python/secateurs/search/knapsack.py",
        ("np.ceil((group - start) / width - 1e-9)", "np.floor((group - start) / width)",
         "search/test_knapsack.py -k cheapest_of_all"),
        ("    if room < 0:\n", "    if room < -1:\n", "search/test_knapsack.py -k below_the_fastest"),
        ("better = candidate < after", "better = candidate > after", "search/test_knapsack.py"),
    ),
    *faults_in(
        "python/secateurs/search/choices.py",
        ("ordered = ordered.clamp_min(0).cumsum(0)", "ordered = ordered.clamp_min(0)",
         "search/test_choices.py -k least_error"),
        ("ordered.flip(0)", "ordered", "search/test_choices.py -k least_error"),
    ),
    *faults_in(
        "python/secateurs/search/search.py",
        ("_limit(budget, table.stock) / ratio", "_limit(budget, table.stock)",
         "search/test_compress.py -k corrected"),
        ("if times.ms <= allowed and", "if", "search/test_compress.py -k nearest"),
        ("and not self._force:", "and False:", "search/test_compress.py -k noise"),
    ),
    *faults_in(
        "python/secateurs/search/sensitivity.py",
        ("(1 - _SHRUNK) * (output - mean)", "(output - mean)", "search/test_compress.py -k not_sensitive"),
        ("(logs[1] - logs[0])", "(logs[0] - logs[1])", "search/test_compress.py -k divergence"),
    ),
    *faults_in(
        "python/secateurs/search/local_search.py",
        ("if (found := distance(tried)) < least:", "if True:\n            found = distance(tried)",
         "search/test_compress.py -k more_effort"),
    ),
    *faults_in(
        f"{METHODS}/magnitude.py",
        ('self._squares(index, "down").mean(0)', 'self._squares(index, "up").mean(1)',
         f"{CONTRACT} -k unit_owns"),
    ),
    *faults_in(
        f"{METHODS}/smp.py",
        ("    allocator = PerLayer()\n", "", "pruning/methods/test_smp.py -k as_many_heads"),
        ("scores * size if self._sums is None else self._sums + scores * size",
         "scores if self._sums is None else self._sums + scores",
         "pruning/methods/test_smp.py -k not_batches"),
    ),
    *faults_in(
        f"{METHODS}/dsp.py",
        ("-(-uniform.log()).log()", "(-uniform.log()).log()",
         "pruning/methods/test_dsp.py -k gumbel"),
        ("scores = scores + (1 - share)", "scores = scores - (1 - share)",
         "pruning/methods/test_dsp.py -k formula"),
    ),
    *faults_in(
        f"{METHODS}/voita.py",
        ("(location - BETA * math.log(-GAMMA / ZETA))", "location",
         "pruning/methods/test_dsp.py -k as_often_as_expected"),
    ),
    *faults_in(
        f"{METHODS}/seven.py",
        ("m = self.m / (1 - self.decay**self.count)", "m = self.m",
         "pruning/methods/test_seven.py -k formula"),
        ("            self.score.masked_fill_(keep == 0, GONE)\n", "            pass\n",
         "pruning/methods/test_seven.py -k scores_nothing"),
    ),
    *faults_in(
        f"{METHODS}/snip_identity.py",
        ("(self.bound / spectral_norm(exact, u)).clamp(max=1.0)",
         "(self.bound / spectral_norm(exact, u))",
         "pruning/methods/test_snip_identity.py -k clips_only_above"),
        ("norms / size, -1.0)", "norms, -1.0)",
         "pruning/methods/test_snip_identity.py -k added_to_the_residual"),
    ),
    *faults_in(
        f"{METHODS}/admm_pattern.py",
        ("self._u[name] *= before / self._rho()", "pass",
         "pruning/methods/test_admm_pattern.py -k updates_by_hand"),
        ("pulled = self._rho() / (1 + self._rho())", "pulled = self._rho()",
         "pruning/methods/test_admm_pattern.py -k pull_is_to"),
    ),
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
        "python/secateurs/data/text.py",
        (r"(?<!Mrs\.)", "", "data/test_text.py -k abbreviations"),
        ('batch["labels"] = torch.tensor([e["label"] for e in part])', "pass",
         "data/test_text.py -k labels_with_their_text"),
        ('len(e["text"]) + len(e.get("text_pair", ""))', "0",
         "data/test_text.py -k similar_lengths"),
    ),
    *faults_in(
        "python/secateurs/data/glue.py",
        ("2 * right / either", "right / either", "data/test_glue.py -k by_hand"),
        ("(2 * last - counts + 1) / 2", "(2 * last - counts) / 2 + counts",
         "data/test_glue.py -k rank_correlation"),
    ),
    *faults_in(
        "python/secateurs/measurement/timing.py",
        ("        order.reverse()\n", "", "measurement/test_timing.py -k alternate"),
        ("speedup=timings[1].ms / timings[0].ms", "speedup=timings[0].ms / timings[1].ms",
         "measurement/test_timing.py -k median_speedup"),
        ("            return math.nan\n", "            continue\n",
         "measurement/test_timing.py -k nan_on_one_side"),
        ("error <= tolerance,", "True,", "measurement/test_timing.py -k wrong_output"),
        ("position = q * (len(ordered) - 1)", "position = q * len(ordered) - 1",
         "measurement/test_timing.py -k quantiles"),
    ),
    *faults_in(
        "python/secateurs/measurement/quality.py",
        ("weights = token_weights(states, batch).expand(*states.shape[:2], 1).double()",
         "weights = torch.ones(*states.shape[:2], 1).double()",
         "measurement/test_quality.py -k real_tokens"),
    ),
    *faults_in(
        "python/secateurs/training/trainer.py",
        ("return divergence * t**2 /", "return divergence /", "training/test_trainer.py -k formulas"),
        ("loss = loss + self.session.penalty()", "pass",
         "training/test_trainer.py -k penalty_weighs"),
    ),
    *faults_in(
        "python/secateurs/masking/gates.py",
        ("        self._gates.clear()\n", "", "masking/test_gates.py -k remember_nothing"),
        ("            self._opened().callback(ruled.install(self._model, self._sites, index))\n",
         "            ruled.install(self._model, self._sites, index)\n",
         "masking/test_gates.py -k what_apply_computes"),
    ),
    *faults_in(
        "python/secateurs/masking/ruled_attention.py",
        ("seen = seen.tril(keys - tokens)", "pass", f"{RULED} -k stays_causal"),
        ("seen = seen.tril(keys - tokens)", "seen = seen.tril()", f"{RULED} -k cache_moves"),
        ("+ _before(attention, given)", "", f"{RULED} -k cache_moves"),
        (".masked_fill(blind.transpose(1, 2)[..., None], 0)", "", f"{RULED} -k bert_with_rules"),
        ("self._blind.pop(get_ident(), None)", "self._blind[max(self._blind)]", f"{RULED} -k threads"),
        ("    if not isinstance(cache, DynamicCache):", "    if False:", f"{RULED} -k stand_elsewhere"),
        ("    if keys != expected:", "    if False:", f"{RULED} -k stand_elsewhere"),
    ),
    *faults_in(
        "python/secateurs/masking/masked_model.py",
        ('vars(part)["save_pretrained"] = _refuse_to_save', "pass", f"{RULED} -k not_saved_as_if"),
    ),
    *faults_in(
        "python/secateurs/architectures/kept.py",
        ("tuple(self.rules[head] for head in self.heads.nonzero()[:, 0].tolist())",
         "self.rules[: int(self.heads.sum())]", f"{RULED_LAYERS} -k sliced_take"),
        ("sum(allowed_pairs(rule, seq_len) for rule in self.kept_rules)", "pairs",
         f"{RULED} -k keys_that_are_seen"),
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
        ("    if depth > DEEPEST:\n        raise PlanError", "    if False:\n        raise PlanError",
         "plan/test_attention_rule_mask.py -k nested_too_deep"),
    ),
    *faults_in(
        "python/secateurs/conversion/transformers_attention.py",
        ("explicit <= torch.finfo(explicit.dtype).min / 2", "explicit == -torch.inf",
         f"{RULED} -k explicit"),
        ("if rules is not None and ops.recording():", "if False:",
         "kinds/test_recording.py -k other_lengths"),
        ("    causal = causal and explicit is None\n", "",
         f"{RULED_LAYERS} -k says_it_all"),
    ),
    *faults_in(
        "python/secateurs/conversion/modules/layer.py",
        ("if isinstance(attention, Attention) and attention.rules is not None:", "if False:",
         f"{RULED_LAYERS} -k explain_says"),
    ),
    *faults_in(
        "python/secateurs/storage/dense_export.py",
        ("if sites.keep(plan, i).kept_rules is not None:", "if False:",
         "storage/test_checkpoint.py -k refuses_attention_rules"),
    ),
    *faults_in(
        "python/secateurs/files.py",
        ("        scratch.unlink(missing_ok=True)\n\n\ndef written_by_content",
         "        pass\n\n\ndef written_by_content", "kinds/test_interrupted_saves.py -k whole_or_as_before"),
    ),
    *faults_in(
        "python/secateurs/checks.py",
        ("isinstance(value, bool) or not isinstance(value, numbers.Integral)",
         "not isinstance(value, numbers.Integral)", "kinds/test_unchecked_input.py"),
    ),
    *faults_in(
        "python/secateurs/cli/main.py",
        ("        return BAD_INPUT\n    except OSError", "        return OK\n    except OSError",
         "cli/test_cli_refusals.py -k one_sentence"),
        ('return ["prune-task", *words[1:]]', "return words", "cli/test_cli.py -k of_before"),
    ),
    *faults_in(
        "python/secateurs/cli/arguments.py",
        ("is not None and not has_effect:", "is not None and False:",
         "cli/test_cli_refusals.py -k one_sentence"),
        ("if len(words) < len(pairs):", "if False:", "cli/test_cli_refusals.py -k one_sentence"),
    ),
    *faults_in(
        "python/secateurs/cli/paths.py",
        ("if out.exists() and not (out.is_dir() and not any(out.iterdir())):", "if False:",
         "cli/test_cli_refusals.py -k folder_in_use"),
    ),
    *faults_in(
        "python/secateurs/cli/commands/prune.py",
        ("    if options.distill:\n        recovered", "    if False:\n        recovered",
         "cli/test_cli.py -k distils"),
        ('"allocator": options.allocator, **values', '"allocator": None, **values',
         "cli/test_cli.py -k allocator_can_be_chosen"),
    ),
    *faults_in(
        "python/secateurs/cli/commands/prune_task.py",
        ("distillation=Distillation() if options.imitate else None", "distillation=None",
         "training/test_task_recipe.py -k changes_the_run"),
    ),
    *faults_in(
        "python/secateurs/cli/commands/demo.py",
        ('(OK if result["ok"] else FAILED)', "OK", "cli/test_demo.py -k failed_check"),
    ),
    *faults_in(
        "python/secateurs/cli/demo.py",
        ("return torch.equal(load_file(outputs)", "return True or torch.equal(load_file(outputs)",
         "cli/test_demo.py -k one_bit"),
    ),
)  # fmt: skip

REFIT, CONVERT = "reconstruction/test_refit.py", "conversion/test_convert.py"
WHOLE, QUANTIZER = "conversion/test_whole_layer.py", "integrations/test_transformers_quantizer.py"
ADMM, ADMM_MASKS = "reconstruction/test_admm.py", "pruning/methods/test_layerwise_admm.py"
PROOF, ARGUMENTS = "kinds/test_unproven_layers.py", "kinds/test_foreign_arguments.py"
RECONSTRUCTION, CONVERSION = "python/secateurs/reconstruction", "python/secateurs/conversion"
ARCHITECTURES = "python/secateurs/architectures"
INTEGRATIONS = "python/secateurs/integrations"
SENTENCES, COMPACT = "integrations/test_sentence_transformers.py", "storage/test_compact_export.py"

PYTHON += (
    *faults_in(
        f"{RECONSTRUCTION}/least_squares.py",
        (
            "gram = gram - self.count * mean[:, None] * mean",
            "pass",
            f"{REFIT} -k normal_equations",
        ),
        ("return gram + ridge * size", "return gram + 0 * size", f"{REFIT} -k by_hand"),
        (
            "self.error_sum / count - weight @",
            "self.error_sum / count - 0 * weight @",
            f"{REFIT} -k by_hand",
        ),
    ),
    *faults_in(
        f"{RECONSTRUCTION}/walk.py",
        (
            "return Run(calls, mask.bool(), states, states)",
            "return Run(calls, torch.ones_like(mask.bool()), states, states)",
            f"{REFIT} -k padding",
        ),
        ("outputs = states + scaled(", "outputs = scaled(", f"{REFIT} -k closer"),
        ("if architecture.norm_first:", "if True:", f"{REFIT} -k by_hand"),
        (
            "self.sites.layer(self.pruned, index), run.pruned",
            "self.sites.layer(self.dense, index), run.pruned",
            f"{ADMM_MASKS} -k later_layers",
        ),
    ),
    *faults_in(
        f"{RECONSTRUCTION}/refit.py",
        (
            "new = torch.where(elements, weight.to(own.weight), own.weight[:, columns])",
            "new = own.weight[:, columns]",
            f"{REFIT} -k closer",
        ),
        (
            "torch.where(elements, weight.to(own.weight), own.weight[:, columns])",
            "weight.to(own.weight)",
            f"{REFIT} -k fitted_under_them",
        ),
        (
            "own.bias.add_((bias * rows).to(own.bias))",
            "own.bias.add_(bias.to(own.bias))",
            f"{REFIT} -k beside_removed_units",
        ),
        (", keep.levels.get(role))", ")", f"{REFIT} -k beside_removed_units"),
        (
            "if group.is_last or _is_bound",
            "if group.is_last and not _is_bound",
            f"{REFIT} -k fitted_under_them",
        ),
    ),
    *faults_in(
        f"{RECONSTRUCTION}/admm.py",
        (
            "self.scale = diagonal.sqrt().where(diagonal > 0, torch.ones_like(diagonal))",
            "self.scale = diagonal.sqrt()",
            f"{ADMM} -k always_zero",
        ),
        ("moved - weight * self.scale", "0 * moved", f"{ADMM} -k as_they_are_written"),
        (
            "return self._pulled + self.norm.rho *",
            "return self._pulled +",
            f"{ADMM} -k as_they_are_written",
        ),
        ("levels.nearest(weight))", "weight)", f"{ADMM} -k levels_are_exact"),
    ),
    *faults_in(
        f"{METHODS}/layerwise_admm.py",
        (
            "removed(fraction, behind) - removed(fraction, before)",
            "removed(fraction, behind - before)",
            f"{CONTRACT} -k budget_is_met and layerwise_admm-bert",
        ),
        (
            "targets = (old + sums.solve(self.ridge)).split(sizes)",
            "targets = old.split(sizes)",
            f"{ADMM_MASKS} -k that_the_refit_gives",
        ),
        ("view.bias.add_(bias.to(view.bias))", "pass", f"{ADMM_MASKS} -k that_the_refit_gives"),
    ),
    *faults_in(
        f"{ARCHITECTURES}/linears.py",
        ("number * size : (number + 1) * size", "0:size", f"{CONVERT} -k converted_equals_masked"),
        (
            "return whole.T.contiguous() if linear.transposed",
            "return whole if linear.transposed",
            "storage/test_checkpoint.py -k export_dense and gpt2",
        ),
    ),
    *faults_in(
        f"{CONVERSION}/modules/attention.py",
        (
            "scores_bias = scores_bias[:, self.kept_heads]",
            "pass",
            f"{CONVERT} -k converted_equals_masked",
        ),
        ("one_side * (distance > 0)", "one_side * (distance < 0)", f"{CONVERT} -k equals_masked"),
        ("return bias.masked_fill(~mask, -math.inf)", "return bias", f"{CONVERT} -k equals_masked"),
    ),
    *faults_in(
        f"{CONVERSION}/modules/layer.py",
        ('elif names[:1] != ["attention_mask"]:', "elif False:", f"{ARGUMENTS} -k another_order"),
        (
            "self.relative_bias, self.head_norms = relative_bias, head_norms",
            "self.relative_bias, self.head_norms = None, head_norms",
            f"{CONVERT} -k equals_masked",
        ),
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
        f"{CONVERSION}/modules/layer.py", ("self.whole.forget()", "pass", f"{WHOLE} -k go_with")
    ),
    *faults_in(
        "python/secateurs/ops/encoder_layer/cpu.py",
        ("t is None or t.is_contiguous()", "True", "ops/test_encoder_layer.py -k read_at_each"),
    ),
    *faults_in(
        f"{INTEGRATIONS}/transformers_quantizer.py",
        ("if loaded.dtype != self._dtype:", "if False:", f"{QUANTIZER} -k dtype"),
        ("if asked.__name__ != saved:", "if False:", f"{QUANTIZER} -k another_class"),
        ("if asked != (", "if False and asked != (", f"{QUANTIZER} -k cannot_follow"),
        ("given.get(name) != saved.get(name)", "False", f"{QUANTIZER} -k cannot_follow"),
        ("setattr(loaded.config, name, value)", "pass", f"{QUANTIZER} -k may_set"),
        (
            "requires_calibration = True",
            "requires_calibration = False",
            f"{QUANTIZER} -k not_quantised",
        ),
        ("if len(devices) != 1 or", "if", f"{QUANTIZER} -k cannot_follow"),
        ("_fetch(folder, name, model.config)", "pass", f"{QUANTIZER} -k hub"),
        ("loaded.generation_config = given", "pass", f"{QUANTIZER} -k how_to_generate"),
        ("model._modules.clear()", "pass", f"{QUANTIZER} -k emptied"),
    ),
    *faults_in(
        f"{INTEGRATIONS}/registration.py",
        ("if _REGISTERS in sys.modules:", "if False:", f"{QUANTIZER} -k imported_first"),
        (
            "return getattr(self._own, name)",
            "raise AttributeError(name)",
            f"{QUANTIZER} -k imported_first",
        ),
    ),
    *faults_in(
        "python/secateurs/storage/checkpoint.py",
        ('"transformers_weights": SENTINEL,', "", f"{QUANTIZER} -k gives_what_load"),
    ),
    *faults_in(
        "python/secateurs/storage/compact_export.py",
        (
            "attention.relative_bias is not None and linear",
            "False and linear",
            f"{COMPACT} -k computes and t5",
        ),
        (
            'apart = side == "heads" or not keep.grouped',
            'apart = side == "heads"',
            f"{COMPACT} -k uneven_get_copies",
        ),
        ("weight is None or not weight.numel()", "weight is None", f"{COMPACT} -k computes"),
        (
            "return weight, weight.new_zeros(rows)",
            "return weight, weight.new_ones(rows).cumsum(0)",
            f"{COMPACT} -k computes",
        ),
        (
            "heads.index_select(0, keep.kv_of.to(tensor.device))",
            "heads[[0] * len(keep.kv_of)]",
            f"{COMPACT} -k uneven_get_copies",
        ),
        ("**dict.fromkeys(_WIDTHS, width),", "", f"{COMPACT} -k computes and gpt2"),
        ('"num_key_value_groups": width // kv_width,', "", f"{COMPACT} -k uneven_get_copies"),
        (
            "module.out_features, module.in_features = module.weight.shape",
            "pass",
            f"{COMPACT} -k sizes_that_are_left",
        ),
    ),
    *faults_in(
        "python/secateurs/storage/sentence_folders.py",
        ('first["path"] != "" or not', "not", f"{SENTENCES} -k refused_before"),
        ('is_plain_name(module["path"])', "True", f"{SENTENCES} -k refused_before"),
        ("needs if isinstance(needs, dict) else {}", "{}", f"{SENTENCES} -k needs_us"),
        ("shutil.copyfile(file, copy)", "pass", f"{SENTENCES} -k embeds_as"),
    ),
    *faults_in(
        "python/secateurs/storage/model_folders.py",
        ("cls = transformers.AutoModel  #", "pass  #", f"{SENTENCES} -k head"),
    ),
    *faults_in(
        f"{CONVERSION}/inherited.py",
        ("disown(converted)\n", "pass\n", f"{QUANTIZER} -k methods_of_a_model"),
    ),
    *faults_in(
        f"{CONVERSION}/forms.py",
        ("whole += [made.name] if form.whole else []", "pass", WHOLE),
        (
            "row_scales(weight) if part.scales is None else part.scales",
            "row_scales(weight) * 2",
            f"{CODES} -k identical",
        ),
        ("levels.scale, dtype", "2 * levels.scale, dtype", f"{CODES} -k levels"),
        ("if form.precision != precision:", "if False:", CODES),
    ),
    *faults_in(
        "python/secateurs/formats/int8_block_sparse.py",
        (
            "nn.functional.pad(values, (0, 0, 0, -values.shape[1] % HALF_GROUP))",
            "values",
            "formats/test_int8_block_sparse.py",
        ),
        (
            "scales >= torch.finfo(torch.float32).tiny",
            "scales > 0",
            "formats/test_int8_block_sparse.py -k next_to_nothing",
        ),
        (
            "keep = BlockSparseWeight.pack(weight, None, block).keep()",
            "pass",
            "formats/test_int8_block_sparse.py -k small_weights",
        ),
    ),
    *faults_in(
        "python/secateurs/ops/int8_linear/reference.py",
        (
            "scale.isnan() & stored[:, group].any(1)",
            "scale.isnan()",
            f"{INT8} -k reference_ignores",
        ),
        ("(smooth - smooth.detach())", "0", f"{INT8} -k gradients"),
    ),
    *faults_in(
        f"{CONVERSION}/modules/int8_linear.py",
        ("weight.scales.view(torch.int32)", "weight.scales", f"{CODES} -k cast"),
    ),
    *faults_in(
        f"{CONVERSION}/calibration.py",
        (
            "real = mask.flatten().nonzero()[:, 0]",
            "real = torch.arange(mask.numel())",
            f"{ROUNDING} -k padding",
        ),
        ("if not bool(whole.isfinite().all()):", "if False:", f"{ROUNDING} -k not_finite"),
    ),
    *faults_in(
        f"{CONVERSION}/error_feedback.py",
        ("left[:, stop:] -= errors", "left[:, stop:] += errors", f"{ROUNDING} -k less_error"),
        ("column * kept[:, j]", "column", f"{ROUNDING} -k less_error"),
        ("out[:, order.argsort()]", "out", f"{ROUNDING} -k less_error"),
        ("if not bool(squares.any()):", "if False:", f"{ROUNDING} -k without_inputs"),
    ),
    *faults_in(
        f"{CONVERSION}/smoothing.py",
        ("steps.round()", "steps", f"{ROUNDING} -k powers_of_two"),
        ("steps - steps[used].mean()", "steps", f"{ROUNDING} -k powers_of_two"),
        (
            "linear.bias / divisor.to(linear.bias)",
            "linear.bias",
            f"{ROUNDING} -k nothing_but and bert",
        ),
        (
            'f"{path}.weight", f"{path}.bias"',
            'f"{path}.weight",',
            f"{ROUNDING} -k nothing_but and gpt2",
        ),
    ),
    *faults_in(
        f"{CONVERSION}/rounding.py",
        (
            "errors - shift, bias - shift",
            "errors - shift, bias + shift",
            f"{ROUNDING} -k each_decision",
        ),
        ("if error > max_error:", "if False:", f"{ROUNDING} -k past_the_bound"),
        ("layer.linears[role] = layer.exact[role]", "pass", f"{ROUNDING} -k stay_together"),
        ("if not len(learn):", "if False:", f"{ROUNDING} -k one_token"),
        ("not any(role in self.keep.levels for role in roles)", "True", f"{ROUNDING} -k levels"),
        ("heads[:, None] * width", "heads[:, None] * 0", f"{ROUNDING} -k nothing_but"),
    ),
    *faults_in(
        f"{CONVERSION}/layer_builder.py",
        ("made = made if why_not is None else unrounded", "pass", f"{ROUNDING} -k slower"),
        ("self.stays |= dict.fromkeys(sites, why_not)", "pass", f"{ROUNDING} -k bound or slower"),
    ),
    *faults_in(
        "python/secateurs/storage/blueprint.py",
        ("        if strange:\n", "        if False:\n", f"{ROUNDING} -k other_linears"),
    ),
    *faults_in(
        "python/secateurs/storage/layer_reader.py",
        ("if codes.numel() and int(codes.min()) < -TOP:", "if False:", f"{CODES} -k altered"),
        ("float(scales.min()) <= 0", "False", f"{CODES} -k altered"),
    ),
)

FAULTS = (*PYTHON, *FAMILY_FAULTS, *KERNEL_FAULTS)
