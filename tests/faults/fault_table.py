# ruff: noqa: E501 - texts of other files keep their lines
"""Faults that a test must see: one piece of one file replaced, and the test that then fails.

`run.py` tries them on a copy of the package. Faults of the CUDA kernels stand in
`tests/emulator/faults.py`, for they are all built into one program.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """`old`, which stands once in `file`, becomes `new`; then `test` fails.

    Args:
        file: from the root of the repository; a fault below `csrc/cpu` takes a build.
        test: what pytest is given, words with spaces between.
    """

    file: str
    old: str
    new: str
    test: str


def _in(file: str, *rows: tuple[str, str, str]) -> tuple[Fault, ...]:
    return tuple(Fault(file, old, new, f"tests/{test}") for old, new, test in rows)


PRUNING, METHODS = "python/secateurs/pruning", "python/secateurs/pruning/methods"
ALLOCATION = f"{PRUNING}/allocation"
KERNELS = "csrc/cpu/kernels"
ALLOCATORS, CONTRACT = "pruning/test_allocators.py", "pruning/test_pruning.py"
RANKING, SESSION = "pruning/test_ranking.py", "pruning/test_session.py"
INT8, CODES = "ops/test_int8_linear.py", "conversion/test_int8.py"
LINEAR, NORM = "ops/test_block_sparse_linear.py", "ops/test_add_norm.py"

PYTHON = (
    *_in(
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
    *_in(
        f"{ALLOCATION}/global_ranking.py",
        ("torch.inf", "0.0", f"{ALLOCATORS} -k floor_is_kept"),
        ("lowest(ranked, count)", "[lowest([r], count // len(ranked))[0] for r in ranked]",
         f"{ALLOCATORS} -k single_units"),
    ),
    *_in(
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
    *_in(
        f"{ALLOCATION}/allocator.py",
        ("repr(allocator) if is_dataclass(allocator) else type(allocator).__name__",
         "repr(allocator)", f"{ALLOCATORS} -k price"),
    ),
    *_in(
        f"{METHODS}/__init__.py",
        ("if price is not None and not pruner.allocator.uses_price:", "if False:",
         f"{ALLOCATORS} -k price"),
        ("    pruner.price = price\n", "", f"{ALLOCATORS} -k price"),
        ("    elif allocator is not None:\n        pruner.allocator = allocator\n", "",
         f"{ALLOCATORS} -k by_object"),
    ),
    *_in(
        f"{PRUNING}/session.py",
        ('"allocator": self._allocator,', '"allocator": None,', f"{ALLOCATORS} -k no_other"),
        ("if self._finite:\n            self.pruner.after_step(self.step)",
         "if True:\n            self.pruner.after_step(self.step)", f"{SESSION} -k left_out"),
        ("            parameter.grad = None\n\n    def after_step", "            pass\n\n    def after_step",
         f"{SESSION} -k left_out"),
        ('"generator": self.pruner.generator.get_state(),',
         '"generator": torch.Generator().get_state(),', f"{SESSION} -k to_the_bit"),
    ),
    *_in(
        f"{PRUNING}/ranking.py",
        ("ties.cumsum(0) <= missing", "ties.cumsum(0) < missing", f"{RANKING} -k ties"),
        ("        missing -= min(missing, int(ties.sum()))\n", "", f"{RANKING} -k ties"),
        ("(key & 0xFFFF)[(key >> 16) == upper]", "(key & 0xFFFF)[(key >> 16) >= upper]",
         f"{RANKING} -k histograms"),
        ("if any(bool(score.isnan().any()) for score in scores):", "if False:",
         f"{RANKING} -k refused"),
    ),
    *_in(
        f"{PRUNING}/schedules.py",
        ("(step - self.begin) / (self.end - self.begin)", "step / self.end",
         f"{RANKING} -k formulas"),
        ("if self.end > steps:", "if self.end > steps + 1:", f"{RANKING} -k longer_than_training"),
    ),
    *_in(
        f"{PRUNING}/run_folders.py",
        ("all(sha256(files[n]) == noted[n] for n in noted)", "True",
         "kinds/test_interrupted_runs.py -k is_not_gone_on_from"),
        ("sorted(steps, key=lambda path: -steps[path])", "sorted(steps, key=lambda path: steps[path])",
         "kinds/test_interrupted_runs.py -k counts_as_a_number"),
    ),
    *_in(
        f"{METHODS}/gradient.py",
        ("gradient.double().abs().pow(power)", "gradient.double().pow(power)",
         f"{CONTRACT} -k per_example_derivative"),
        ("loss_of(output).sum() * size, 1", "loss_of(output).sum(), 1",
         f"{CONTRACT} -k per_example_derivative"),
        ("self._gone.masks[name].keep, score, -1.0", "self._gone.masks[name].keep, score, score",
         f"{CONTRACT} -k stays_gone"),
        ("gates.set_plan(self._gone)", "pass", f"{CONTRACT} -k later_rounds"),
    ),
    *_in(
        f"{METHODS}/magnitude.py",
        ('self._squares(index, "down").mean(0)', 'self._squares(index, "up").mean(1)',
         f"{CONTRACT} -k unit_owns"),
    ),
    *_in(
        f"{METHODS}/smp.py",
        ("    allocator = PerLayer()\n", "", "pruning/methods/test_smp.py -k as_many_heads"),
        ("scores * size if self._sums is None else self._sums + scores * size",
         "scores if self._sums is None else self._sums + scores",
         "pruning/methods/test_smp.py -k not_batches"),
    ),
    *_in(
        f"{METHODS}/dsp.py",
        ("-(-uniform.log()).log()", "(-uniform.log()).log()",
         "pruning/methods/test_dsp.py -k gumbel"),
        ("scores = scores + (1 - share)", "scores = scores - (1 - share)",
         "pruning/methods/test_dsp.py -k formula"),
    ),
    *_in(
        f"{METHODS}/voita.py",
        ("(location - BETA * math.log(-GAMMA / ZETA))", "location",
         "pruning/methods/test_dsp.py -k as_often_as_expected"),
    ),
    *_in(
        f"{METHODS}/seven.py",
        ("m = self.m / (1 - self.decay**self.count)", "m = self.m",
         "pruning/methods/test_seven.py -k formula"),
        ("            self.score.masked_fill_(keep == 0, GONE)\n", "            pass\n",
         "pruning/methods/test_seven.py -k scores_nothing"),
    ),
    *_in(
        f"{METHODS}/snip_identity.py",
        ("(self.bound / spectral_norm(exact, u)).clamp(max=1.0)",
         "(self.bound / spectral_norm(exact, u))",
         "pruning/methods/test_snip_identity.py -k clips_only_above"),
        ("norms / size, -1.0)", "norms, -1.0)",
         "pruning/methods/test_snip_identity.py -k added_to_the_residual"),
    ),
    *_in(
        f"{METHODS}/admm_pattern.py",
        ("self._u[name] *= before / self._rho()", "pass",
         "pruning/methods/test_admm_pattern.py -k updates_by_hand"),
        ("pulled = self._rho() / (1 + self._rho())", "pulled = self._rho()",
         "pruning/methods/test_admm_pattern.py -k pull_is_to"),
    ),
    *_in(
        "python/secateurs/plan/quantization.py",
        ("2 ** (self.bits - 1) - 1\n        return", "2 ** (self.bits - 1)\n        return",
         "plan/test_quantization.py -k nearest_level"),
        ("(size * q).sum() / q.square().sum()", "size.sum() / q.sum()",
         "plan/test_quantization.py -k brute_force"),
    ),
    *_in(
        "python/secateurs/plan/sparsity_plan.py",
        ("masks[name].merge(mask) if name in masks else mask", "mask",
         "plan/test_plan.py -k both_keep"),
        ("            mask.check(by_name[name])\n", "            pass\n",
         "plan/test_plan.py -k does_not_fit"),
    ),
    *_in(
        "python/secateurs/data/text.py",
        (r"(?<!Mrs\.)", "", "data/test_text.py -k abbreviations"),
        ('batch["labels"] = torch.tensor([e["label"] for e in part])', "pass",
         "data/test_text.py -k labels_with_their_text"),
        ('len(e["text"]) + len(e.get("text_pair", ""))', "0",
         "data/test_text.py -k similar_lengths"),
    ),
    *_in(
        "python/secateurs/data/glue.py",
        ("2 * right / either", "right / either", "training/test_task_recipe.py -k by_hand"),
        ("(2 * last - counts + 1) / 2", "(2 * last - counts) / 2 + counts",
         "training/test_task_recipe.py -k rank_correlation"),
    ),
    *_in(
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
    *_in(
        "python/secateurs/measurement/quality.py",
        ("weights = token_weights(output, batch).expand(*output.shape[:2], 1).double()",
         "weights = torch.ones(*output.shape[:2], 1).double()",
         "measurement/test_quality.py -k real_tokens"),
    ),
    *_in(
        "python/secateurs/training/trainer.py",
        ("return divergence * t**2 /", "return divergence /", "training/test_trainer.py -k formulas"),
        ("loss = loss + self.session.penalty()", "pass",
         "training/test_trainer.py -k penalty_weighs"),
    ),
    *_in(
        "python/secateurs/masking/gates.py",
        ("        self._gates.clear()\n", "", "masking/test_gates.py -k remember_nothing"),
    ),
    *_in(
        "python/secateurs/files.py",
        ("        scratch.unlink(missing_ok=True)\n\n\ndef written_by_content",
         "        pass\n\n\ndef written_by_content", "kinds/test_interrupted_saves.py -k whole_or_as_before"),
    ),
    *_in(
        "python/secateurs/checks.py",
        ("isinstance(value, bool) or not isinstance(value, numbers.Integral)",
         "not isinstance(value, numbers.Integral)", "kinds/test_unchecked_input.py"),
    ),
    *_in(
        "python/secateurs/cli/main.py",
        ("        return BAD_INPUT\n    except OSError", "        return OK\n    except OSError",
         "cli/test_cli.py -k one_sentence"),
        ('return ["prune-task", *words[1:]]', "return words", "cli/test_cli.py -k of_before"),
    ),
    *_in(
        "python/secateurs/cli/arguments.py",
        ("is not None and not has_effect:", "is not None and False:",
         "cli/test_cli.py -k one_sentence"),
        ("if len(words) < len(pairs):", "if False:", "cli/test_cli.py -k one_sentence"),
    ),
    *_in(
        "python/secateurs/cli/paths.py",
        ("if out.exists() and not (out.is_dir() and not any(out.iterdir())):", "if False:",
         "cli/test_cli.py -k folder_in_use"),
    ),
    *_in(
        "python/secateurs/cli/commands/prune.py",
        ("    if options.distill:\n        recovered", "    if False:\n        recovered",
         "cli/test_cli.py -k distils"),
        ('"allocator": options.allocator, **values', '"allocator": None, **values',
         "cli/test_cli.py -k allocator_can_be_chosen"),
    ),
    *_in(
        "python/secateurs/cli/commands/prune_task.py",
        ("distillation=Distillation() if options.imitate else None", "distillation=None",
         "training/test_task_recipe.py -k changes_the_run"),
    ),
    *_in(
        "python/secateurs/cli/commands/demo.py",
        ('(OK if result["ok"] else FAILED)', "OK", "cli/test_demo.py -k failed_check"),
    ),
    *_in(
        "python/secateurs/cli/demo.py",
        ("return torch.equal(load_file(outputs)", "return True or torch.equal(load_file(outputs)",
         "cli/test_demo.py -k one_bit"),
    ),
)  # fmt: skip

REFIT, CONVERT = "reconstruction/test_refit.py", "conversion/test_convert.py"
PROOF, ARGUMENTS = "kinds/test_unproven_layers.py", "kinds/test_foreign_arguments.py"
RECONSTRUCTION, CONVERSION = "python/secateurs/reconstruction", "python/secateurs/conversion"
ARCHITECTURES = "python/secateurs/architectures"

PYTHON += (
    *_in(
        f"{RECONSTRUCTION}/least_squares.py",
        ("gram = gram - count * mean[:, None] * mean", "pass", f"{REFIT} -k normal_equations"),
        ("damped = gram + ridge * size", "damped = gram + 0 * size", f"{REFIT} -k by_hand"),
        ("error_mean - mean @ weight if", "error_mean if", f"{REFIT} -k by_hand"),
    ),
    *_in(
        f"{RECONSTRUCTION}/refit.py",
        (
            "features[run.real][:, columns], errors[run.real]",
            "features.flatten(0, 1)[:, columns], errors.flatten(0, 1)",
            f"{REFIT} -k padding",
        ),
        (
            "target - residual - view.module(features)",
            "target - view.module(features)",
            f"{REFIT} -k closer",
        ),
        (
            "own.weight[:, columns] += weight.to(own.weight)",
            "own.weight[:, columns] += 0",
            f"{REFIT} -k closer",
        ),
        ("role not in self.keep.weights and", "", f"{REFIT} -k masks_of_their_own"),
        ("if architecture.norm_first:", "if True:", f"{REFIT} -k by_hand"),
    ),
    *_in(
        f"{ARCHITECTURES}/linears.py",
        ("number * size : (number + 1) * size", "0:size", f"{CONVERT} -k converted_equals_masked"),
        (
            "return whole.T.contiguous() if linear.transposed",
            "return whole if linear.transposed",
            "storage/test_checkpoint.py -k export_dense and gpt2",
        ),
    ),
    *_in(
        f"{CONVERSION}/modules/attention.py",
        (
            "scores_bias = scores_bias[:, self.kept_heads]",
            "pass",
            f"{CONVERT} -k converted_equals_masked",
        ),
        ("one_side * (distance > 0)", "one_side * (distance < 0)", f"{CONVERT} -k equals_masked"),
        ("return bias.masked_fill(~mask, -math.inf)", "return bias", f"{CONVERT} -k equals_masked"),
    ),
    *_in(
        f"{CONVERSION}/modules/layer.py",
        ('elif names[:1] != ["attention_mask"]:', "elif False:", f"{ARGUMENTS} -k another_order"),
        (
            "relative_bias: RelativeBias | None = None,\n    ) -> None:",
            "relative_bias: RelativeBias | None = None,\n    ) -> None:\n        relative_bias = None",
            f"{CONVERT} -k equals_masked",
        ),
    ),
    *_in(
        f"{CONVERSION}/forms.py",
        ("whole += [made.name] if form.whole else []", "pass", "conversion/test_whole_layer.py"),
        (
            "row_scales(weight) if part.scales is None else part.scales",
            "row_scales(weight) * 2",
            f"{CODES} -k identical",
        ),
        ("levels.scale, dtype", "2 * levels.scale, dtype", f"{CODES} -k levels"),
        ("if form.precision != precision:", "if False:", CODES),
    ),
    *_in(
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
    *_in(
        "python/secateurs/ops/int8_linear/reference.py",
        (
            "scale.isnan() & stored[:, group].any(1)",
            "scale.isnan()",
            f"{INT8} -k reference_ignores",
        ),
        ("(smooth - smooth.detach())", "0", f"{INT8} -k gradients"),
    ),
    *_in(
        f"{CONVERSION}/modules/int8_linear.py",
        ("weight.scales.view(torch.int32)", "weight.scales", f"{CODES} -k cast"),
    ),
    *_in(
        "python/secateurs/storage/layer_reader.py",
        ("if codes.numel() and int(codes.min()) < -TOP:", "if False:", f"{CODES} -k altered"),
        ("float(scales.min()) <= 0", "False", f"{CODES} -k altered"),
    ),
)

CPU = (
    *_in(
        f"{KERNELS}/norm/add_norm.h",
        ("if (residual) v = v + load(residual + j, n...);", "", f"{NORM} -k any_length"),
        ("const F shift = set1(mean), scale", "const F shift = set1(0), scale",
         f"{NORM} -k any_length"),
        ("sums[1] = part(sums[1], j, static_cast<int>(d - j))",
         "sums[1] = part(zero(), j, static_cast<int>(d - j))", f"{NORM} -k any_length"),
        ("p.residual + i * p.residual_stride", "p.residual + i * p.x_stride",
         f"{NORM} -k strided"),
        ("__builtin_sqrtf(square + p.eps)", "(__builtin_sqrtf(square) + p.eps)",
         f"{NORM} -k under_the_root"),
    ),
    *_in(
        f"{KERNELS}/linear/epilogue.h",
        ("load(multiplier + i * multiplier_stride + v * W, n...)", "load(multiplier + i * y_stride + v * W, n...)",
         f"{LINEAR} -k strided"),
        ("load(residual + i * residual_stride + v * W, n...)",
         "load(residual + i * multiplier_stride + v * W, n...)",
         f"{LINEAR} -k stride_of_its_own"),
        ("load(p.bias + column + v * W, n...)", "load(p.bias + v * W, n...)",
         f"{LINEAR} -k epilogue"),
    ),
    *_in(
        f"{KERNELS}/math.h",
        ("0.121945344f,  0.0945855156f", "0.121945344f,  0.0945955156f",
         f"{LINEAR} -k activation_accuracy"),
    ),
    *_in(
        f"{KERNELS}/linear/solver.h",
        ("words - w0 < depth ? words : w0 + depth", "w0 + depth - 1",
         f"{LINEAR} -k chunks_of_inputs"),
    ),
    *_in(
        f"{KERNELS}/linear/int8_product.h",
        ("p.index[b] * p.depth + done == word + half_words", "true", f"{INT8} -k any_number_of_rows"),
        ("about[i].start[both ? 2 : second]", "about[i].start[both ? 2 : 0]",
         f"{INT8} -k whole_numbers"),
        ("about.scale = top <= 1 ? 0 : __builtin_nanf(\"\");", "about.scale = 0;", f"{INT8} -k bad_input"),
        ("set1(127 / top)", "set1(126 / top)", f"{INT8} -k whole_numbers"),
        ("p.depth ? p.blocks : 0", "p.depth ? p.blocks - 1 : 0", f"{INT8} -k packed_dense"),
    ),
    *_in(
        "csrc/cpu/vectors/avx2.h",
        ("_mm256_add_epi32(sum.v, _mm256_madd_epi16(w02, x02))",
         "_mm256_adds_epi16(sum.v, _mm256_madd_epi16(w02, x02))", f"{INT8} -k saturate"),
    ),
    *_in(
        "csrc/cpu/encoder_layer.cpp",
        ("problem.scales = w.scales;", "problem.scales = w.scales + 1;", "ops/test_int8_layer.py -k parts"),
    ),
    *_in(
        f"{KERNELS}/attention/head.h",
        ("p.causal ? i + p.keys - p.queries : p.keys - 1", "p.keys - 1",
         "ops/test_attention.py -k lengths"),
        ("p.v + b * p.v_stride.batch + p.kv_of[h] * p.v_stride.head",
         "p.v + b * p.v_stride.batch + h * p.v_stride.head",
         "ops/test_attention.py -k uneven_heads"),
    ),
)  # fmt: skip

FAULTS = (*PYTHON, *CPU)
