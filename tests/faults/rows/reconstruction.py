"""Faults of `reconstruction`."""

from __future__ import annotations

from fault import faults_in

CALLS = "reconstruction/test_layer_calls.py"
SHARED = "reconstruction/test_refit_shared_layer.py"
TWO_STACKS = "reconstruction/test_refit_two_stacks.py"
REFIT = "reconstruction/test_refit.py"
ADMM = "reconstruction/test_admm.py"
ADMM_MASKS = "pruning/methods/test_layerwise_admm.py"
RECONSTRUCTION = "python/secateurs/reconstruction"
FAMILIES = "architectures/test_families.py"

FAULTS = (
    *faults_in(
        f"{RECONSTRUCTION}/least_squares.py",
        ("self.error_sum / count - weight @", "self.error_sum / count - 0 * weight @",
         f"{REFIT} -k by_hand"),
        ("gram.addr_(mean, mean, alpha=-self.count)", "pass",
         "reconstruction/test_refit.py -k normal_equations"),
        ("gram.diagonal().add_(ridge * size)", "pass", "reconstruction/test_refit.py -k by_hand"),
    ),
    *faults_in(
        f"{RECONSTRUCTION}/layer_calls.py",
        ("stack.enter_context(_instead_of_forward(layer, lambda *_, **__: behind[0]))", "pass",
         f"{CALLS} -k only_the_first"),
        ("        if before is not None:\n            layer.forward = before\n", "",
         f"{CALLS} -k as_before"),
        ("found[-1].calls.append(LayerCall(*with_states(args, named, None)))",
         "found[-1].calls[:] = [LayerCall(*with_states(args, named, None))] * "
         "(len(found[-1].calls) + 1)",
         f"{CALLS} -k walk_meets"),
        ("if layer is layers[0]:", "if not found:", f"{CALLS} -k walk_meets and albert"),
        ("if len(found) > 1 and len(layers) > 1:", "if False:", f"{SHARED} -k in_turns"),
    ),
    *faults_in(
        f"{RECONSTRUCTION}/refit.py",
        ("for run in fit.walk.start(batch)]", "for run in fit.walk.start(batch)[:1]]",
         f"{SHARED} -k orthogonal"),
    ),
    *faults_in(
        f"{RECONSTRUCTION}/walk.py",
        ("return mask.bool()", "return torch.ones_like(mask.bool())", f"{REFIT} -k padding"),
        ("mask_of(inputs, self.sites.place(index)[0].name)", 'mask_of(inputs, "")',
         f"{TWO_STACKS} -k orthogonal"),
        ("in ((self.dense, dense), (self.pruned, pruned))",
         "in ((self.dense, dense), (self.pruned, dense))", f"{TWO_STACKS} -k orthogonal"),
        ("inner[:1] if crossing else inner", "inner", f"{TWO_STACKS} -k masks_of_cross"),
        ("stream = residual + let_out(", "stream = let_out(", f"{REFIT} -k closer"),
        ("norm = None if architecture.norm_first else", "norm = None if True else",
         f"{REFIT} -k by_hand"),
        ("pruned = self._call(self.pruned, index, run)",
         "pruned = run.pruned.calls[index](self.sites.layer(self.dense, index), run.pruned.states)",
         f"{ADMM_MASKS} -k later_layers"),
        ("return self.is_last and self.sublayer.output_norm is None", "return self.is_last",
         f"{FAMILIES} -k norms_of_their_outputs"),
        ("torch.where(factor == 0, 0.0, off / factor)", "off", f"{FAMILIES} -k factors"),
        ("let_out(layer, sublayer, output.reshape(states.shape))",
         "output.reshape(states.shape)", f"{FAMILIES} -k factors"),
    ),
    *faults_in(
        f"{RECONSTRUCTION}/refit.py",
        (", keep.levels.get(role))", ")", f"{REFIT} -k beside_removed_units"),
        ("if group.is_last or _is_bound", "if group.is_last and not _is_bound",
         f"{REFIT} -k fitted_under_them"),
        ("torch.where(self.elements, self.weight.to(old), old)", "old",
         "reconstruction/test_refit.py -k closer"),
        ("torch.where(self.elements, self.weight.to(old), old)", "self.weight.to(old)",
         "reconstruction/test_refit.py -k fitted_under_them"),
        ("bias * keep.sides(view.linear.role)[0].to(columns.device)", "bias",
         "reconstruction/test_refit.py -k beside_removed_units"),
        ("fitted = model if inplace else copy.deepcopy(model)", "fitted = copy.deepcopy(model)",
         "reconstruction/test_refit.py -k in_place"),
        ("Walk(sites, model, shell_of(model).eval())",
         "Walk(sites, model, copy.deepcopy(model).eval())",
         "reconstruction/test_refit.py -k one_layer_more"),
    ),
    *faults_in(
        f"{RECONSTRUCTION}/admm.py",
        ("self.scale = diagonal.sqrt().where(diagonal > 0, torch.ones_like(diagonal))",
         "self.scale = diagonal.sqrt()", f"{ADMM} -k always_zero"),
        ("moved - weight * self.scale", "0 * moved", f"{ADMM} -k as_they_are_written"),
        ("return self._pulled + self.norm.rho *", "return self._pulled +",
         f"{ADMM} -k as_they_are_written"),
        ("levels.nearest(weight))", "weight)", f"{ADMM} -k levels_are_exact"),
    ),
)  # fmt: skip
