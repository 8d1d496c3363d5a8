"""secateurs prunes trained Transformers and makes them really faster.

plan = secateurs.prune(model, batches, method="gradient", budget="heads=0.5,neurons=0.5")
fast = secateurs.convert(model, plan)
print(secateurs.explain(fast))
secateurs.save(fast, "pruned")
"""

from __future__ import annotations

import importlib
import logging
import sys
import types
from typing import TYPE_CHECKING, Any

from secateurs import _moved
from secateurs.integrations import registration

if TYPE_CHECKING:
    from secateurs.architectures.records import register_architecture as register_architecture
    from secateurs.architectures.sites import find_sites as find_sites
    from secateurs.conversion.builder import convert as convert
    from secateurs.conversion.report import explain as explain
    from secateurs.errors import SecateursError as SecateursError
    from secateurs.formats import BlockSparseWeight as BlockSparseWeight
    from secateurs.integrations.cuda_graphs import capture as capture
    from secateurs.masking.gates import Gates as Gates
    from secateurs.masking.masked_model import apply as apply
    from secateurs.measurement.environment import env_report as env_report
    from secateurs.measurement.timing import measure as measure
    from secateurs.ops import use_backend as use_backend
    from secateurs.plan import AttentionRuleMask as AttentionRuleMask
    from secateurs.plan import BlockMask as BlockMask
    from secateurs.plan import HeadMask as HeadMask
    from secateurs.plan import Levels as Levels
    from secateurs.plan import ModuleMask as ModuleMask
    from secateurs.plan import NeuronMask as NeuronMask
    from secateurs.plan import PatternMask as PatternMask
    from secateurs.plan import SparsityPlan as SparsityPlan
    from secateurs.pruning import METHODS as METHODS
    from secateurs.pruning import Budget as Budget
    from secateurs.pruning import Needs as Needs
    from secateurs.pruning import Session as Session
    from secateurs.pruning import best_heads as best_heads
    from secateurs.pruning import prune as prune
    from secateurs.pruning import score as score
    from secateurs.reconstruction import refit as refit
    from secateurs.search import compress as compress
    from secateurs.storage.checkpoint import load as load
    from secateurs.storage.checkpoint import save as save
    from secateurs.storage.compact_export import export_compact as export_compact
    from secateurs.storage.compact_import import convert_compact as convert_compact
    from secateurs.storage.dense_export import export_dense as export_dense
    from secateurs.storage.pruned_heads import open_pruned_heads as open_pruned_heads
    from secateurs.storage.pruned_heads import prune_heads as prune_heads
    from secateurs.training.distillation import distill as distill

__version__ = "0.1.0"

# Where each public name is. It is imported when it is first asked for: torch and transformers take
# seconds, and most of what is here needs only one of them, or neither.
_HOMES = {
    "METHODS": "pruning",
    "AttentionRuleMask": "plan",
    "BlockMask": "plan",
    "BlockSparseWeight": "formats",
    "Budget": "pruning",
    "Gates": "masking.gates",
    "HeadMask": "plan",
    "Levels": "plan",
    "ModuleMask": "plan",
    "Needs": "pruning",
    "NeuronMask": "plan",
    "PatternMask": "plan",
    "SecateursError": "errors",
    "Session": "pruning",
    "SparsityPlan": "plan",
    "apply": "masking.masked_model",
    "best_heads": "pruning",
    "capture": "integrations.cuda_graphs",
    "compress": "search",
    "convert": "conversion.builder",
    "convert_compact": "storage.compact_import",
    "distill": "training.distillation",
    "env_report": "measurement.environment",
    "explain": "conversion.report",
    "export_compact": "storage.compact_export",
    "export_dense": "storage.dense_export",
    "find_sites": "architectures.sites",
    "load": "storage.checkpoint",
    "measure": "measurement.timing",
    "open_pruned_heads": "storage.pruned_heads",
    "prune": "pruning",
    "prune_heads": "storage.pruned_heads",
    "refit": "reconstruction",
    "register_architecture": "architectures.records",
    "save": "storage.checkpoint",
    "score": "pruning",
    "use_backend": "ops",
}

# Folders that are used as attributes, as in `secateurs.ops.attention`.
_FOLDERS = ("formats", "ops", "plan", "pruning")

__all__ = list(_HOMES)

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    elif name in _FOLDERS:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_FOLDERS})


class _Package(types.ModuleType):
    """A package whose functions keep their names when a module of the same old name is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
_moved.install()
registration.install()
