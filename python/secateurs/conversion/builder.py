"""convert: a model that loses what a plan removes for real, and runs the rest on our kernels."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from secateurs.architectures.sites import Sites, find_sites
from secateurs.architectures.stock import check_stock, forget_recording
from secateurs.checks import door
from secateurs.conversion import transformers_attention
from secateurs.conversion.cost import Costs, FormPicker
from secateurs.conversion.forms import PRECISIONS
from secateurs.conversion.inherited import adopt, disown, stock_class
from secateurs.conversion.layer_builder import LayerBuilder, fastest
from secateurs.conversion.modules import Layer, husk, stack_class
from secateurs.conversion.proof import observe, prove
from secateurs.conversion.report import Conversion, SiteReport, conversion_of
from secateurs.conversion.rounding import decide
from secateurs.conversion.slicing import CompactLinear, slice_linear
from secateurs.data.batches import Batch
from secateurs.errors import PlanError
from secateurs.masking.masked_model import apply, check_finite
from secateurs.plan import SparsityPlan


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
        model = copy.deepcopy(model)
    with _undone_on_error(model, sites):
        evidence = observe(model.eval(), sites, plan)
        compact = [
            {role: slice_linear(sites, model, plan, i, role) for role in shape.linears()}
            for i, shape in enumerate(sites.layers)
        ]
        stock = [sites.layer(model, i) for i in range(len(sites.layers))]
        exact = compact
        if batches is not None:
            masked = apply(model, plan).eval()
            layers = decide(masked, sites, plan, stock, compact, batches, alpha, max_error)
            picker.take(sites, [layer.stays for layer in layers], [layer.notes for layer in layers])
            stock, exact, compact = map(
                list,
                zip(*((layer.stock, layer.exact, layer.linears) for layer in layers), strict=True),
            )
        if precision is not None:
            # Before it is rounded, the model is held to the tolerance of its dtype.
            unrounded = FormPicker(tokens=tokens, only="torch")
            rebuild(model, stock, sites, plan, exact, unrounded)
            proof = prove(model, sites, evidence)
        rebuild(model, stock, sites, plan, compact, picker, exact)
        last = prove(model, sites, evidence, precision)
    told = str(last) if precision is None else f"{proof}; in {precision}: {last}"
    conversion_of(model).reports.insert(0, SiteReport("layers", "proven", told))
    return model


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
            _set_layers(model, path, layers)
        model.set_attn_implementation(attention)
        for module, training in modes.items():
            module.training = training
        raise


def _set_layers(model: nn.Module, path: str, layers: nn.Module) -> None:
    """Put `layers` in place, and the class that suits them on the module that loops over them."""
    holder, _, name = path.rpartition(".")
    stack = model.get_submodule(holder)
    setattr(stack, name, layers)
    if stack is not model:
        stock: Any = stock_class(stack)  # no class of modules is hashable to mypy
        whole = (isinstance(each, Layer) and each.whole is not None for each in layers.children())
        stack.__class__ = stack_class(stock) if all(whole) else stock


def rebuild(
    model: Any,
    templates: list[nn.Module],
    sites: Sites,
    plan: SparsityPlan,
    compact: list[dict[str, CompactLinear]],
    picker: FormPicker,
    exact: list[dict[str, CompactLinear]] | None = None,
) -> nn.Module:
    """Replace the layers of `model`, in place, by converted ones made of compact weights.

    Args:
        templates: stock layers that lend their norms and their class.
        exact: the weights before they were rounded, for linears that would lose time in codes;
            without them no linear is taken for one.
    """
    husks = [husk(template) for template in templates]
    conversion = Conversion(plan, sites, [], {}, picker.tokens, picker.precision, husks)
    layers = []
    for i, (template, weights) in enumerate(zip(templates, compact, strict=True)):
        keep, before = sites.keep(plan, i), None if exact is None else exact[i]
        make = partial(LayerBuilder, sites, i, keep, weights, picker, template, before)
        # Where only the norms have data (a model that is read, or made again), one of theirs.
        like = max(template.parameters(), key=lambda tensor: tensor.device.type != "meta")
        built = fastest(make, like)
        layers.append(built.layer)
        conversion.reports += built.reports
        conversion.forms |= built.forms
        conversion.stays |= built.stays
    for stack in sites.stacks:
        own = layers[stack.first : stack.first + len(stack.layers)]
        _set_layers(model, stack.path, nn.ModuleList(own))
    forget_recording(model)
    adopt(model, conversion)
    model.set_attn_implementation(transformers_attention.NAME)
    rebuilt: nn.Module = model.eval()
    return rebuilt
