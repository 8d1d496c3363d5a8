"""Registers what opens saved folders in transformers, as soon as transformers is imported: before
secateurs or after it. Importing secateurs alone loads neither."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Sequence
from typing import Any

_REGISTERS = "transformers.quantizers.auto"  # the module that keeps who opens what
_PLUG_IN = "secateurs.integrations.transformers_quantizer"


class _Loader(importlib.abc.Loader):
    """The loader of a module, which registers our plug-in once the module has run."""

    def __init__(self, own: Any) -> None:
        self._own = own

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        made: types.ModuleType | None = self._own.create_module(spec)
        return made

    def exec_module(self, module: types.ModuleType) -> None:
        self._own.exec_module(module)
        importlib.import_module(_PLUG_IN)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the registers of transformers as the finders behind it do, with our loader."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _REGISTERS:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


def install() -> None:
    """Let transformers open saved folders: at once where it is imported, else when it will be."""
    if _REGISTERS in sys.modules:
        importlib.import_module(_PLUG_IN)
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
