"""Blueprints: what makes a model again of its tensors and its plan. One rebuild by them serves
load and export_dense, and tells save what could not be loaded again."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.architectures.sites import Sites, find_sites
from secateurs.conversion.rebuilding import Linears
from secateurs.conversion.remake import (
    converted_layer,
    stock_husk,
)
from secateurs.conversion.report import conversion_of
from secateurs.conversion.slicing import CompactLinear, compact_blocks
from secateurs.errors import CheckpointError, FormatError, SecateursError
from secateurs.formats import BlockSparseWeight
from secateurs.formats.int8_block_sparse import codes
from secateurs.plan import SparsityPlan
from secateurs.storage.layer_reader import PARTS, SCALES, LayerReader
from secateurs.storage.layer_writer import layer_tensors
from secateurs.storage.skeleton import (
    arguments_for,
    change_settings,
    changed_settings,
    fill,
    named_tensors,
    outside,
    skeleton,
    ties,
)

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Of a config: what is said elsewhere, or would run or fetch code.
_NOT_READ = frozenset(
    {
        "architectures",
        "attn_implementation",
        "auto_map",
        "dtype",
        "experts_implementation",
        "kernel_config",
        "model_type",
        "name_or_path",
        "output_attentions",
        "quantization_config",
        "secateurs",
        "torch_dtype",
        "transformers_version",
        "transformers_weights",
        "use_kernels",
    }
)
_EPS = ("layer_norm_eps", "rms_norm_eps")  # what configs call it


@dataclass(frozen=True)
class Restored:
    """A model with its data outside the layers, and what `rebuild` makes its layers of.

    Attributes:
        layers: stock ones, without data.
        linears: reads the compact weights of a layer, and gives it the data of its norms; once for
            each layer. Raises SecateursError unless every tensor is what class, config and plan
            say.
    """

    model: Any  # of transformers
    sites: Sites
    layers: list[nn.Module]
    linears: Linears


@dataclass(frozen=True)
class Blueprint:
    """What makes a model again, besides its tensors and its plan.

    Attributes:
        cls: its stock class.
        values: of its config, as JSON holds them.
        arguments: of its constructor, those that are not the default.
        dtype: of every floating tensor but those of `dtypes`.
        tied: names that share the tensor of another name.
        settings: numbers of modules that differ from what the config makes them.
        precision: of the linears of its layers, as `convert` takes it.
        unrounded: sites of linears that are not in that precision.
    """

    cls: type[Any]
    values: Mapping[str, Any]
    arguments: Mapping[str, bool]
    dtype: torch.dtype
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, float] = field(default_factory=dict)
    precision: str | None = None
    unrounded: Sequence[str] = ()

    def dtype_of(self, name: str) -> torch.dtype:
        """The dtype of a floating tensor."""
        return self.dtypes.get(name, self.dtype)

    def config(self) -> Any:
        """Make the config from the saved values that its class knows. Other values reach an own
        class only, never a stock one."""
        kind = self.cls.config_class
        known = kind().to_dict().keys() - _NOT_READ
        values = {name: value for name, value in self.values.items() if name in known}
        config = kind(**values, architectures=[self.cls.__name__], dtype=self.dtype)
        if not is_stock(self.cls):
            vars(config).update(self._more(config))
        return config

    def skeleton(self) -> nn.Module:
        """The model without data."""
        model = skeleton(self.cls, self.config(), self.arguments)
        vars(model.config).update(self._more(model.config))
        change_settings(model, self.settings)
        return model

    def restored(self, plan: SparsityPlan, tensors: Mapping[str, Tensor]) -> Restored:
        """Restore the model but for its layers, which are read one at a time. Raises SecateursError
        unless every tensor outside them is what class and config say."""
        model = self.skeleton()
        sites = find_sites(model)
        plan.validate(sites, sites.fingerprint())
        strange = set(self.unrounded) - {site.name for site in sites.of_kind("linear")}
        if strange:
            raise FormatError(f"expected names of linears as unrounded, got {min(strange)}")
        layers = [sites.layer(model, i) for i in range(len(sites.layers))]
        outer = {name: tensors[name] for name in outside(sites.paths, tensors)}
        fill(model, outer, self.tied, sites.paths, self.dtype_of)
        left, unread = tensors.keys() - outer.keys(), set(range(len(layers)))

        def linears(index: int) -> dict[str, CompactLinear]:
            compact = LayerReader(
                tensors,
                left,
                self.dtype_of,
                layers[index],
                sites,
                sites.keep(plan, index),
                index,
                self.precision,
                self.unrounded,
            ).read()
            unread.remove(index)
            if left and not unread:
                name = type(model).__name__
                raise FormatError(f"{name} makes no tensor {min(left)} of its config")
            return compact

        return Restored(model, sites, layers, linears)

    def unsaved(self) -> dict[str, Tensor]:
        """The tensors outside the layers that no state dict holds, as the constructor makes them
        of the config."""
        made = self.skeleton()
        names = named_tensors(made).keys() - made.state_dict().keys()
        try:
            real = self._with_layers(0)  # the layers have none of them
        except ZeroDivisionError:  # a class that scales what it draws by the number of layers
            real = self._with_layers(1)
        return {name: real[name] for name in outside(find_sites(made).paths, names)}

    def _with_layers(self, count: int) -> dict[str, Tensor]:
        """The tensors of the model as the constructor makes them, with so many layers in each
        stack."""
        config = self.config()
        for stack in find_sites(self.skeleton()).stacks:
            setattr(config, stack.architecture.count, count)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # A head that reads something of every layer has no inputs then.
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            return named_tensors(self.cls(config, **self.arguments).to(self.dtype))

    def of_stock(self) -> Blueprint:
        """The blueprint of a model that stock transformers saves and reads as it is: with what the
        config cannot say said by it, and tied where stock ties.

        Raises CheckpointError where that cannot be.
        """
        stock, values = self, dict(self.values)
        if self.settings:
            eps = next(iter(self.settings.values()))
            values |= {name: eps for name in _EPS if name in values}
            stock = replace(self, values=values, settings={})
            if changed_settings(self.skeleton(), stock.skeleton()):
                name = min(self.settings)
                raise CheckpointError(
                    f"no config of {self.cls.__name__} says {name} = {self.settings[name]} and no "
                    "other, so its dense model could not be saved"
                )
        apart = stock._tied_by_stock_alone()
        if apart:
            stock = replace(stock, values={**values, "tie_word_embeddings": False})
            apart = stock._tied_by_stock_alone()
        if apart:
            raise CheckpointError(
                f"{self.cls.__name__} ties {min(apart)} to another tensor, from which it is apart "
                "in this model, so its dense model could not be saved"
            )
        return replace(stock, tied=ties(named_tensors(stock.skeleton())))

    def _more(self, config: Any) -> dict[str, Any]:
        return {
            name: value
            for name, value in self.values.items()
            if name not in _NOT_READ and not name.startswith("_") and not hasattr(config, name)
        }

    def _tied_by_stock_alone(self) -> list[str]:
        by_stock = ties(named_tensors(self.skeleton()))
        group = self.tied
        return [n for n, first in by_stock.items() if group.get(n, n) != group.get(first, first)]


def restored_again(
    blueprint: Blueprint, plan: SparsityPlan, tensors: dict[str, Tensor]
) -> Restored:
    """The model that `load` would make of a saved one. It, and its `linears`, raise CheckpointError
    where it cannot."""
    with _loaded_again():
        restored = blueprint.restored(plan, tensors)

    def linears(index: int) -> dict[str, CompactLinear]:
        with _loaded_again():
            return restored.linears(index)

    return replace(restored, linears=linears)


@contextmanager
def _loaded_again() -> Iterator[None]:
    try:
        yield
    except SecateursError as error:
        raise CheckpointError(f"the model could not be loaded again: {error}") from None


def is_stock(cls: type[nn.Module]) -> bool:
    """Whether a class is one of transformers' own."""
    return cls.__module__.partition(".")[0] == "transformers"


def blueprint_of(model: Any) -> tuple[Blueprint, dict[str, Tensor]]:
    """The blueprint of a converted model, and the tensors it stores: those of layers compact, of
    tied ones the first.

    Raises CheckpointError for a model that its class does not make again of its config.
    """
    conversion = conversion_of(model)
    sites, cls = conversion.sites, type(model)
    held = named_tensors(model)
    without = [name for name, tensor in held.items() if tensor.device.type == "meta"]
    if without:
        raise CheckpointError(f"expected a model with data, but {min(without)} is on meta")
    if getattr(model.config, "quantization_config", None) is not None:
        raise CheckpointError("expected a model that is not quantised, got a quantization_config")
    outer = {name: held[name] for name in outside(sites.paths, held)}
    layers = {
        name: tensor
        for i in range(len(sites.layers))
        for name, tensor in layer_tensors(model, sites, conversion, i).items()
    }
    dtypes = {n: t.dtype for n, t in (outer | layers).items() if t.is_floating_point()}
    for name, dtype in dtypes.items():
        if dtype not in FLOATS:
            raise CheckpointError(f"expected one of {FLOATS} for {name}, got {dtype}")
    tied = ties(outer)
    blueprint = Blueprint(
        cls,
        {**_values(model.config), **_layer_counts(model.config, sites)},
        {},
        model.dtype,
        {name: dtype for name, dtype in dtypes.items() if dtype != model.dtype},
        tied,
    )
    arguments = arguments_for(cls, blueprint.config(), outer, sites.paths)
    blueprint = replace(blueprint, arguments=arguments)
    settings = _settings(model, blueprint.skeleton(), sites, conversion.husks)
    stored = {name: tensor for name, tensor in outer.items() if name not in tied}
    blueprint = replace(
        blueprint,
        settings=settings,
        precision=conversion.precision,
        unrounded=sorted(conversion.stays),
    )
    return blueprint, _apart(stored | _coded(layers, sites, conversion.plan))


def _settings(
    model: nn.Module, made: nn.Module, sites: Sites, husks: list[nn.Module]
) -> dict[str, float]:
    """The settings in which a converted model differs from a skeleton. Raises CheckpointError
    where it differs in more."""
    changed = changed_settings(model, made, layers=sites.paths)
    made_layers = [layer for path in sites.paths for layer in made.get_submodule(path).children()]
    if len(made_layers) != len(husks):
        raise CheckpointError(f"expected {len(made_layers)} layers, got {len(husks)}")
    for i, husk in enumerate(husks):
        path = sites.layer_path(i)
        layer = converted_layer(model, sites, i)
        ours, theirs = stock_husk(layer, husk, sites.layers[i].architecture), made_layers[i]
        has, makes = (
            {n: tuple(t.shape) for n, t in named_tensors(m).items()} for m in (ours, theirs)
        )
        for name in sorted(has.keys() | makes.keys()):
            if has.get(name) != makes.get(name):
                raise CheckpointError(
                    f"expected {path}.{name} as {type(made).__name__} makes it of its config, "
                    f"{makes.get(name, 'not at all')}, got {has.get(name, 'nothing')}"
                )
        changed |= changed_settings(ours, theirs, path=path)
    return changed


def _coded(tensors: dict[str, Tensor], sites: Sites, plan: SparsityPlan) -> dict[str, Tensor]:
    """Replace weights on levels, or with scales, by their codes, and pack weights with aligned
    blocks."""
    coded = dict(tensors)
    for i in range(len(sites.layers)):
        keep = sites.keep(plan, i)
        for linear in keep.shape.architecture.linears:
            role, path = linear.role, f"{sites.layer_path(i)}.{linear.name}"
            name, scales = f"{path}.weight", coded.get(f"{path}.{SCALES}")
            if name not in coded:
                continue
            if role in keep.levels:
                coded[name] = keep.levels[role].codes(coded[name])
            elif scales is not None:
                coded[name] = codes(coded[name], scales)
            grid, block = compact_blocks(keep, role)
            if grid is not None and block is not None:
                packed = BlockSparseWeight.pack(coded.pop(name), grid, block).unpaired()
                coded |= {f"{name}.{part}": getattr(packed, part) for part in PARTS}
    return coded


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Make tensors contiguous, and copy those that share memory: a file cannot hold shared ones."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        start = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if start in seen else tensor
        seen.add(start)
    return found


def _values(config: Any) -> dict[str, Any]:
    """What a config says, as a JSON file gives it back."""
    try:
        values: dict[str, Any] = json.loads(json.dumps(config.to_dict()))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"expected a config that JSON can hold: {error}") from None
    return values


def _layer_counts(config: Any, sites: Sites) -> dict[str, int]:
    """How many layers each stack has, under the name by which the config says it."""
    names = (stack.architecture.count for stack in sites.stacks)
    counts = (len(stack.layers) for stack in sites.stacks)
    return {config.attribute_map.get(n, n): count for n, count in zip(names, counts, strict=True)}
