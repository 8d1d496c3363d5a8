"""convert: a model that loses what a plan removes for real, and runs the rest on our kernels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.architectures.sites import Sites, find_sites
from secateurs.architectures.stock import check_stock
from secateurs.checks import door
from secateurs.conversion.cost import Costs, FormPicker
from secateurs.conversion.forms import PRECISIONS
from secateurs.conversion.inherited import disown
from secateurs.conversion.portions import portions_of
from secateurs.conversion.proof import observe, prove
from secateurs.conversion.rebuilding import Linears, Rebuilding, rebuild, set_layers
from secateurs.conversion.report import SiteReport, conversion_of
from secateurs.conversion.rounding import decide
from secateurs.conversion.slicing import CompactLinear, slice_layer
from secateurs.data.batches import Batch
from secateurs.errors import PlanError
from secateurs.masking.masked_model import apply, check_finite
from secateurs.plan import SparsityPlan
from secateurs.shells import copy_sharing


@door
@torch.no_grad()
def convert(
    model: nn.Module,
    plan: SparsityPlan,
    *,
    tokens: int = 256,
    costs: Costs | None = None,
    inplace: bool = False,
    precision: str | None = None,
    batches: Iterable[Batch] | None = None,
    alpha: float = 0.5,
    max_error: float = 0.05,
) -> nn.Module:
    """The model without what `plan` removes, on our kernels; computes what `apply(model, plan)`
    computes.

    Heads and neurons are sliced off, removed sub-layers skipped, block-sparse weights packed, q, k
    and v fused into one product, biases, activations and residuals fused into the products. Convert
    on the device and in the dtype the model will run in. The result is for inference; `explain`
    tells every decision.

    Args:
        model: a transformers model of a supported family; untouched unless `inplace`.
        plan: made for this model; an empty plan gives a dense model on our kernels.
        tokens: of the calls by which forms are compared.
        costs: what each form costs; by default measured here.
        inplace: convert `model` itself, without memory for another one: its dense layers go one by
            one when all are proven. If that is interrupted, the model refuses to run.
        precision: "int8": weights of linears in codes of 8 bits with a scale for each output, and
            in each call what they multiply in such codes with a scale for each token and 64 inputs
            (`ops.int8_linear`); attention and norms stay in the dtype of the model, and so does a
            linear that was measured slower in codes. None: all do.
        batches: calibration data for `precision`, dicts of tensors as the model takes them; labels
            and padding are left out. They decide the codes of each weight, its bias, and factors
            that are moved from its inputs into it, each where it lowers the error of the linear.
        alpha: how much of the range of an input such a factor moves, from 0 to 1.
        max_error: a linear whose output is off by more on the data, relative to its size, stays in
            the dtype of the model.

    Raises:
        PlanError: `precision` is none of these, or there are `batches` without one.
        DataError: `batches` that the model does not take, or that make NaN or infinity in it.
        BackendError: nothing here runs it: int8 runs on the CPU, in float32 and bfloat16.
        FamilyError: the model is not supported, its layers are not stock, or a converted one does
            not compute what it did; the model is as it was.
        PlanError: the plan does not fit the model, or a weight holds NaN or infinity.
    """
    sites = find_sites(model)
    plan.validate(sites, sites.fingerprint())
    check_finite(model, sites.paths)
    check_stock(model, sites)
    if precision is not None and precision not in PRECISIONS:
        raise PlanError(f"expected precision None or {' or '.join(PRECISIONS)}, got {precision!r}")
    if batches is not None and precision is None:
        raise PlanError("expected batches with a precision to round to, got batches alone")
    if not (0 <= alpha <= 1 and max_error > 0):
        raise PlanError(
            f"expected alpha from 0 to 1 and max_error above 0, got {alpha} and {max_error}"
        )
    picker = FormPicker(tokens=tokens, costs=costs, precision=precision)
    if not inplace:
        model = copy_sharing(model, _packed(model, sites))
    numbers = range(len(sites.layers))
    trials = portions_of(sites, plan) if inplace and precision is None else [numbers]
    stock = [sites.layer(model, i) for i in numbers]
    with _undone_on_error(model, sites):
        evidence = observe(model.eval(), sites, plan)
        templates, compact = stock, _compact(stock, sites, plan, shares=inplace)
        exact, unrounded = compact, _compact(stock, sites, plan, shares=True)
        if batches is not None:
            masked, linears = apply(model, plan).eval(), [compact(i) for i in numbers]
            layers = decide(masked, sites, plan, stock, linears, batches, alpha, max_error)
            picker.take(sites, [layer.stays for layer in layers], [layer.notes for layer in layers])
            templates = [layer.stock for layer in layers]
            exact = unrounded = [layer.exact for layer in layers].__getitem__
            compact = [layer.linears for layer in layers].__getitem__
        if precision is not None:
            # Before it is rounded, the model is held to the tolerance of its dtype.
            torch_alone = FormPicker(tokens=tokens, only="torch")
            rebuild(model, templates, sites, plan, unrounded, torch_alone)
            proof = prove(model, sites, evidence)
        layers_of = Rebuilding(model, templates, sites, plan, compact, picker, exact)
        proofs = []
        for portion in trials:
            layers_of.put(portion)
            proofs.append(prove(model, sites, evidence, precision, portion))
    if len(trials) > 1:
        layers_of.put_for_good()
    last = max(proofs, key=lambda proof: proof.difference)
    told = str(last) if precision is None else f"{proof}; in {precision}: {last}"
    conversion_of(model).reports.insert(0, SiteReport("layers", "proven", told))
    return model


def _packed(model: nn.Module, sites: Sites) -> list[Tensor]:
    """The weights and biases that only linears of layers hold: what is left of them is copied, or
    packed, one layer at a time."""
    linears = {
        id(sites.linear(model, index, role).module)
        for index, shape in enumerate(sites.layers)
        for role in shape.linears()
    }
    held: dict[bool, dict[int, Tensor]] = {True: {}, False: {}}
    for module in model.modules():
        own = held[id(module) in linears]
        own |= {id(tensor): tensor for tensor in module.parameters(recurse=False)}
    return [tensor for key, tensor in held[True].items() if key not in held[False]]


def _compact(stock: list[nn.Module], sites: Sites, plan: SparsityPlan, *, shares: bool) -> Linears:
    """What slices the linears of a layer, with the tensors of the stock one where it `shares`."""

    def linears(index: int) -> dict[str, CompactLinear]:
        return slice_layer(stock[index], sites.keep(plan, index), shares=shares)

    return linears


@contextmanager
def _undone_on_error(model: Any, sites: Sites) -> Iterator[None]:
    """Give `model` its stock layers, mode and attention back if the block raises."""
    lists = [model.get_submodule(path) for path in sites.paths]
    attention = model.config._attn_implementation
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    except BaseException:
        disown(model)
        for path, layers in zip(sites.paths, lists, strict=True):
            set_layers(model, path, layers)
        model.set_attn_implementation(attention)
        for module, training in modes.items():
            module.training = training
        raise
