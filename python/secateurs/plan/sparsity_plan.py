"""SparsityPlan: what a model loses and keeps, as pure data.

A plan maps the names of *sites* (places that can lose something) to masks. It knows nothing of any
framework's modules, so it can be inspected, merged, saved and compared before any model is touched.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from secateurs.checks import brief, door, fit_fields, plain
from secateurs.errors import ArgumentError, CheckpointError, PlanError
from secateurs.files import written_whole
from secateurs.plan.masks import MASKS, AttentionRuleMask, KeepMask, Mask, TiledMask
from secateurs.plan.quantization import Levels
from secateurs.plan.rule_records import rule_of
from secateurs.plan.site import Site
from secateurs.reading import (
    is_label,
    member,
    one_line,
    only,
    parse_json,
    read_tensors,
    shown,
    whole,
)

FORMAT_VERSION = 1


MOST_BYTES = 2**32  # of a file: a mask of single weights takes a byte for each


@dataclass(frozen=True, eq=False)
class SparsityPlan:
    """Masks by site name; a site without a mask keeps everything. All masks are copied.

    Args:
        masks: site name (`layers.3.heads`, `layers.3.neurons`, `layers.3.attention`,
            `layers.3.query`, `layers.3.attention_rules`, ...) to mask.
        model: fingerprint of the model the plan was made for (`Sites.fingerprint()`); an empty one
            fits any model whose sites fit the masks.
        notes: how the plan came to be (method, budget, seed); JSON values only.
        levels: name of a linear's site to the values that what stays of its weight is rounded to.
    """

    masks: Mapping[str, Mask] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    levels: Mapping[str, Levels] = field(default_factory=dict)

    def __post_init__(self) -> None:
        fit_fields(self, PlanError)
        masks = {name: _of_kind(name, mask, Mask) for name, mask in self.masks.items()}
        levels = {name: _of_kind(name, found, Levels) for name, found in self.levels.items()}
        # Copied: neither the caller's tensors nor one mask at two sites may tie a plan to another.
        object.__setattr__(self, "masks", {name: replace(mask) for name, mask in masks.items()})
        object.__setattr__(self, "levels", levels)
        for name in ("model", "notes"):
            try:
                object.__setattr__(self, name, plain(getattr(self, name)))
            except ArgumentError as error:
                raise PlanError(f"{name} of a plan: {error}") from None

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, SparsityPlan)
            and self.masks.keys() == other.masks.keys()
            and all(mask.equal(other.masks[name]) for name, mask in self.masks.items())
            and dict(self.levels) == dict(other.levels)
        )

    __hash__ = None  # type: ignore[assignment]

    @door
    def merge(self, other: SparsityPlan) -> SparsityPlan:
        """The plan that keeps what both plans keep. Raises PlanError for plans of different models,
        or with different levels for one weight."""
        if self.model and other.model and dict(self.model) != dict(other.model):
            raise PlanError(
                f"plans to merge must be for one model, got {_brief(self.model)} and "
                f"{_brief(other.model)}"
            )
        masks = dict(self.masks)
        for name, mask in other.masks.items():
            masks[name] = masks[name].merge(mask) if name in masks else mask
        levels = {**self.levels, **other.levels}
        for name, mine in self.levels.items():
            if levels[name] != mine:
                raise PlanError(
                    f"plans to merge must round {name} alike, got {mine} and {levels[name]}"
                )
        notes = {**self.notes, **other.notes}
        return SparsityPlan(masks, self.model or other.model, notes, levels)

    @door
    def validate(self, sites: Iterable[Site], model: Mapping[str, Any]) -> None:
        """Raise PlanError unless every mask fits a site of the model with fingerprint `model`."""
        if self.model and dict(self.model) != dict(model):
            raise PlanError(f"the plan is for {_brief(self.model)}, the model is {_brief(model)}")
        found = list(sites)
        if strange := [site for site in found if not isinstance(site, Site)]:
            raise PlanError(f"expected sites of a model, got {brief(strange[0])}")
        by_name = {site.name: site for site in found}
        for name in (*self.masks, *self.levels):
            if name not in by_name:
                raise PlanError(f"the plan names site {name!r}, which the model does not have")
        for name, mask in self.masks.items():
            mask.check(by_name[name])
        for name in self.levels:
            if by_name[name].kind != "linear":
                raise PlanError(f"levels are of a linear's weight, got some for site {name!r}")

    @door
    def save(self, path: str | Path) -> None:
        """Write the plan as one safetensors file with a JSON header. Nothing half-written is left
        behind."""
        path = Path(path)
        if not path.name:
            raise CheckpointError(f"expected a file to write the plan to, got {path}")
        if self.model:  # a plan that `load` would refuse is not written
            _check_fingerprint(self.model, "the plan")
        header = {
            "format_version": FORMAT_VERSION,
            "masks": {name: mask.header() for name, mask in self.masks.items()},
            "model": dict(self.model),
            "notes": dict(self.notes),
            "levels": {name: asdict(levels) for name, levels in self.levels.items()},
        }
        tensors = {n: mask.keep for n, mask in self.masks.items() if isinstance(mask, KeepMask)}
        try:
            with written_whole(path) as scratch:
                save_file(tensors, scratch, metadata={"secateurs_plan": json.dumps(header)})
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot write the plan to {path}: {error}") from error

    @classmethod
    @door
    def load(cls, path: str | Path) -> SparsityPlan:
        """Read a plan written by `save`. Raises CheckpointError for a missing, truncated or foreign
        file, and for one that says anything that `save` does not write."""
        try:
            found, tensors = read_tensors(path, MOST_BYTES)
        except CheckpointError as error:
            raise CheckpointError(f"cannot read a plan from {path}: {error}") from None
        if "secateurs_plan" not in found.metadata:
            raise CheckpointError(f"{path} is a safetensors file, but holds no secateurs plan")
        where = f"the plan in {path}"
        header = parse_json(found.metadata["secateurs_plan"], where)
        version = member(header, "format_version", "a whole number", whole, where)
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{path} has plan format {version}, this version reads {FORMAT_VERSION}"
            )
        only(header, {"format_version", "masks", "model", "notes", "levels"}, where)
        parts = {
            name: member({"levels": {}, **header}, name, "an object", _is_object, where)
            for name in ("masks", "model", "notes", "levels")
        }
        if parts["model"]:
            _check_fingerprint(parts["model"], where)
        try:
            masks = {
                name: _read_mask(tensors.pop(name, None), entry, f"mask {shown(name)} of {path}")
                for name, entry in parts["masks"].items()
            }
            levels = {
                name: _read_levels(entry, f"levels {shown(name)} of {path}")
                for name, entry in parts["levels"].items()
            }
        except PlanError as error:
            raise CheckpointError(f"the plan in {path} is damaged: {one_line(error)}") from None
        if tensors:
            odd = shown(min(tensors))
            raise CheckpointError(f"expected a mask for each tensor in {path}, got {odd} alone")
        return cls(masks, parts["model"], parts["notes"], levels)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _read_mask(keep: Tensor | None, header: Any, where: str) -> Mask:
    if not isinstance(header, dict):
        raise CheckpointError(f"expected an object for {where}, got {shown(header)}")
    known = ", ".join(MASKS)
    kind = MASKS[member(header, "kind", f"one of {known}", lambda k: k in [*MASKS], where)]
    if issubclass(kind, AttentionRuleMask):
        only(header, {"kind", "rules"}, where)
        rules = member(header, "rules", "a list of rules", lambda v: isinstance(v, list), where)
        if keep is not None:
            raise CheckpointError(f"expected no tensor of {where}, which is of rules")
        return kind([rule_of(rule, where) for rule in rules])
    assert issubclass(kind, KeepMask)
    if keep is None:
        raise CheckpointError(f"expected a tensor for {where}, got none")
    tiled = issubclass(kind, TiledMask)
    only(header, {"kind", "block"} if tiled else {"kind"}, where)
    if keep.dim() != kind.dimensions:
        raise CheckpointError(
            f"expected {kind.dimensions} dimensions of {where}, got shape {tuple(keep.shape)}"
        )
    if not issubclass(kind, TiledMask):
        return kind(keep)
    block = member(header, "block", "two positive sizes", _is_block, where)
    return kind(keep, tuple(block))


def _is_block(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(whole(b, 1) for b in value)


def _read_levels(entry: Any, where: str) -> Levels:
    if not isinstance(entry, dict):
        raise CheckpointError(f"expected an object for {where}, got {shown(entry)}")
    only(entry, {"bits", "scale"}, where)
    bits = member(entry, "bits", "a whole number", whole, where)
    scale = member(entry, "scale", "a number", lambda v: type(v) in (int, float), where)
    return Levels(bits, scale)


def _check_fingerprint(model: Mapping[str, Any], where: str) -> None:
    """Raise CheckpointError unless this is what `Sites.fingerprint()` gives."""
    only(model, {"model_type", "hidden_size", "layers"}, where)
    member(model, "model_type", "a name", is_label, where)
    member(model, "hidden_size", "a whole number", whole, where)
    member(model, "layers", "a list of four or five sizes for each layer", _is_sizes, where)


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(sizes, list) and len(sizes) in (4, 5) and all(map(whole, sizes))
        for sizes in value
    )


def _of_kind(name: Any, value: Any, kind: type[Any]) -> Any:
    if not isinstance(name, str) or not isinstance(value, kind):
        raise PlanError(
            f"expected a {kind.__name__} by the name of its site, got {brief(value)} by "
            f"{brief(name)}"
        )
    return value


def _brief(model: Mapping[str, Any]) -> str:
    layers = model.get("layers", [])
    return (
        f"{model.get('model_type')} with {len(layers)} layers of width {model.get('hidden_size')}"
    )
