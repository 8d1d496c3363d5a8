"""Rebuilding: converted layers made of compact weights, in place of the layers of a model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from secateurs.architectures.sites import Sites
from secateurs.architectures.stock import forget_recording
from secateurs.conversion import transformers_attention
from secateurs.conversion.cost import FormPicker
from secateurs.conversion.inherited import adopt, stock_class
from secateurs.conversion.layer_builder import LayerBuilder, fastest
from secateurs.conversion.modules import Layer, husk, stack_class
from secateurs.conversion.portions import emptied
from secateurs.conversion.report import Conversion
from secateurs.conversion.slicing import CompactLinear
from secateurs.errors import ConvertedError
from secateurs.plan import SparsityPlan

Linears = Callable[[int], dict[str, CompactLinear]]
"""Makes or reads the compact weights of one layer, by role: not before they are packed."""


def rebuild(
    model: nn.Module,
    templates: list[nn.Module],
    sites: Sites,
    plan: SparsityPlan,
    linears: Linears,
    picker: FormPicker,
) -> nn.Module:
    """Replace the layers of `model`, in place, by converted ones. The arguments are those of
    `Rebuilding`."""
    Rebuilding(model, templates, sites, plan, linears, picker).put(range(len(templates)))
    return model


class Rebuilding:
    """Makes the layers of `model` anew, and puts them in place.

    Args:
        templates: stock layers that lend their norms and their class.
        linears: the compact weights of a layer.
        exact: the same before they were rounded, for linears that would lose time in codes;
            without them no linear is taken for one.

    Attributes:
        record: of the layers that were put in place, for the model.
    """

    def __init__(
        self,
        model: Any,
        templates: list[nn.Module],
        sites: Sites,
        plan: SparsityPlan,
        linears: Linears,
        picker: FormPicker,
        exact: Linears | None = None,
    ) -> None:
        self._model, self._sites, self._plan, self._picker = model, sites, plan, picker
        self._templates, self._linears, self._exact = templates, linears, exact
        husks = [husk(template) for template in templates]
        self.record = Conversion(plan, sites, [], {}, picker.tokens, picker.precision, husks)

    def put(self, portion: Collection[int]) -> None:
        """Put the layers of these numbers in place, and layers without sub-layers around them."""
        nothing, layers = emptied(self._sites), []
        if len(portion) < len(self._templates):
            self._clear()  # the portion before this one is not needed any more
        for index in range(len(self._templates)):
            if index in portion:
                layers.append(self._layer(index, self._plan, self._picker, self.record))
            else:
                layers.append(self._layer(index, nothing, self._picker))
        self._install(layers)

    def put_for_good(self) -> None:
        """Make all layers once more, in the forms they had when they were put in place, and drop
        each template as its layer is made: there is no way back. A model in which that is
        interrupted refuses to run."""
        forms, layers = FormPicker(tokens=self._picker.tokens, fixed=self.record.forms), []
        with _running_only_when_done(self._model):
            self._clear()
            for index in range(len(self._templates)):
                layers.append(self._layer(index, self._plan, forms))
                self._templates[index] = nn.Identity()
            self._install(layers)

    def _layer(
        self, index: int, plan: SparsityPlan, picker: FormPicker, record: Conversion | None = None
    ) -> Layer:
        """One layer as `plan` leaves it; what was decided is added to `record`."""
        keep, template = self._sites.keep(plan, index), self._templates[index]
        some = plan is self._plan
        weights = self._linears(index) if some else {}
        exact = self._exact(index) if some and self._exact is not None else None
        make = partial(LayerBuilder, self._sites, index, keep, weights, picker, template, exact)
        # Where only the norms have data (a model that is read, or made again), one of theirs.
        like = max(template.parameters(), key=lambda tensor: tensor.device.type != "meta")
        built = fastest(make, like)
        if record is not None:
            record.reports += built.reports
            record.forms |= built.forms
            record.stays |= built.stays
        return built.layer

    def _install(self, layers: Sequence[nn.Module]) -> None:
        for stack in self._sites.stacks:
            own = layers[stack.first : stack.first + len(stack.layers)]
            set_layers(self._model, stack.path, nn.ModuleList(own))
        forget_recording(self._model)
        adopt(self._model, self.record)
        self._model.set_attn_implementation(transformers_attention.NAME)
        self._model.eval()

    def _clear(self) -> None:
        for path in self._sites.paths:
            set_layers(self._model, path, nn.ModuleList())


def set_layers(model: nn.Module, path: str, layers: nn.Module) -> None:
    """Put `layers` in place, and the class that suits them on the module that loops over them."""
    holder, _, name = path.rpartition(".")
    stack = model.get_submodule(holder)
    setattr(stack, name, layers)
    if stack is not model:
        stock: Any = stock_class(stack)  # no class of modules is hashable to mypy
        whole = (isinstance(each, Layer) and each.whole is not None for each in layers.children())
        stack.__class__ = stack_class(stock) if all(whole) else stock


@contextmanager
def _running_only_when_done(model: Any) -> Iterator[None]:
    """Make `model` refuse to run from then on if the block raises."""
    try:
        yield
    except BaseException:
        model.base_model.register_forward_pre_hook(_refuse_to_run)
        raise


def _refuse_to_run(*_: Any) -> None:
    raise ConvertedError(
        "expected a model, but its conversion in place was interrupted when the first of its dense "
        "layers were gone: load it again"
    )
