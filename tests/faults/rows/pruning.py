"""Faults of `pruning`."""

from __future__ import annotations

from fault import faults_in

PRUNING = "python/secateurs/pruning"
METHODS = "python/secateurs/pruning/methods"
ALLOCATION = f"{PRUNING}/allocation"
ALLOCATORS = "pruning/test_allocators.py"
CONTRACT = "pruning/test_pruning.py"
GRADIENT = "pruning/methods/test_gradient.py"
OBS = "pruning/methods/test_obs.py"
KPRUNE = "pruning/methods/test_kprune.py"
RANKING = "pruning/test_ranking.py"
SESSION = "pruning/test_session.py"
ADMM_MASKS = "pruning/methods/test_layerwise_admm.py"
GATES = "masking/test_gates.py"

FAULTS = (
    *faults_in(
        f"{ALLOCATION}/units.py",
        ("fraction * total + 0.5", "fraction * total",
         f"{CONTRACT} -k budget_is_met and random-bert"),
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
        ("            parameter.grad = None\n\n    def after_step",
         "            pass\n\n    def after_step", f"{SESSION} -k left_out"),
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
        ("sorted(steps, key=lambda path: -steps[path])",
         "sorted(steps, key=lambda path: steps[path])",
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
        ("states if real is None else states[real]", "states", f"{OBS} -k padding"),
        ("mask.numel() != len(states)", "True", f"{GATES} -k units_are_read"),
        ('batch.get(MASKS.get(stack.name, "attention_mask"))', 'batch.get("attention_mask")',
         "architectures/test_two_stacks.py -k own_real_tokens"),
    ),
    *faults_in(
        f"{METHODS}/obs.py",
        ("moments + damping * spread * identity", "moments + damping * identity",
         f"{OBS} -k every_step"),
        ("weight -= together @ inverse[columns]", "pass", f"{OBS} -k every_step"),
        ("second - mean[:, None] * mean if centred", "second if centred", f"{OBS} -k moments"),
        ("costs[chosen].cumsum(0)", "costs[chosen]", f"{OBS} -k together"),
    ),
    *faults_in(
        f"{METHODS}/kprune.py",
        ("weight.square().mean(0)", "weight.square().sum(0)", f"{KPRUNE} -k energy"),
        ("logits / _TEMPERATURE", "logits", f"{KPRUNE} -k fisher"),
        ("squares / self._examples / 2", "squares / 2", f"{KPRUNE} -k fisher"),
        (' * (_HEADS if site.kind == "heads" else 1.0)', "",
         "pruning/methods/test_kprune.py -k energy"),
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
        f"{METHODS}/layerwise_admm.py",
        ("removed(fraction, behind) - removed(fraction, before)",
         "removed(fraction, behind - before)",
         f"{CONTRACT} -k budget_is_met and layerwise_admm-bert"),
        ("targets = (old + sums.solve(self.ridge)).split(sizes)", "targets = old.split(sizes)",
         f"{ADMM_MASKS} -k that_the_refit_gives"),
        ("view.bias.add_(bias.to(view.bias))", "pass", f"{ADMM_MASKS} -k that_the_refit_gives"),
    ),
)  # fmt: skip
