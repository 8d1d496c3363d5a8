"""Where the modules of the first release went: their old names still work, with a warning."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
import warnings
from collections.abc import Sequence

MOVED = {
    "apply": "masking.masked_model",
    "attention_patterns": "plan.attention_rules",
    "calibration": "data.batches",
    "capture": "integrations.cuda_graphs",
    "checkpoint": "storage.checkpoint",
    "convert": "conversion.builder",
    "cost": "conversion.cost",
    "demo": "cli.demo",
    "environment": "measurement.environment",
    "evaluation": "measurement.quality",
    "gates": "masking.gates",
    "levels": "plan.quantization",
    "measure": "measurement.timing",
    "modules": "conversion.modules",
    "patterned": "conversion.modules.pattern_linear",
    "patterns": "plan.weight_patterns",
    "pretrained": "storage.model_folders",
    "pruning.admm_pattern": "pruning.methods.admm_pattern",
    "pruning.budget": "pruning.allocation.budget",
    "pruning.dsp": "pruning.methods.dsp",
    "pruning.gradient": "pruning.methods.gradient",
    "pruning.magnitude": "pruning.methods.magnitude",
    "pruning.random": "pruning.methods.random",
    "pruning.seven": "pruning.methods.seven",
    "pruning.smp": "pruning.methods.smp",
    "pruning.snip_identity": "pruning.methods.snip_identity",
    "pruning.voita": "pruning.methods.voita",
    "ranking": "pruning.ranking",
    "recipe": "training.task_recipe",
    "report": "cli.tables",
    "runs": "pruning.run_folders",
    "schedules": "pruning.schedules",
    "session": "pruning.session",
    "sites": "architectures.sites",
    "tasks": "data.tasks",
    "text": "data.text",
    "trainer": "training.trainer",
    "whole": "conversion.modules.prepared_layer",
}


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a moved module by its old name, as a module with the names of the new one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package, _, old = fullname.partition(".")
        if package != "secateurs" or old not in MOVED:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def exec_module(self, module: types.ModuleType) -> None:
        new = f"secateurs.{MOVED[module.__name__.removeprefix('secateurs.')]}"
        warnings.warn(
            f"{module.__name__} is now {new}; the old name goes with the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        names = vars(importlib.import_module(new)).items()
        vars(module).update({name: value for name, value in names if not name.startswith("__")})


def install() -> None:
    """Let old names be imported from now on."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
