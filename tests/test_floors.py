"""Who may import whom: CONTRIBUTING.md draws the floors, this reads every import and include."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import secateurs

PACKAGE = Path(secateurs.__file__).parent
CSRC = Path(__file__).parents[1] / "csrc"

# Each part, and which other parts of ours it may import; errors and checks are open to all.
FLOORS = {
    "errors": set(),
    "files": set(),
    "_cuda_build": set(),  # written by the build
    "lasting": set(),
    "checks": set(),
    "ops": {"lasting"},
    "patterns": set(),
    "attention_patterns": {"lasting"},
    "levels": set(),
    "reading": set(),
    "manifest": {"reading"},
    "runs": {"reading", "files", "plan"},
    "plan": {"patterns", "attention_patterns", "levels", "files", "reading"},
    "formats": {"patterns", "ops"},
    "sites": {"plan", "levels"},
    "gates": {"plan", "sites", "levels"},
    "calibration": set(),
    "schedules": set(),
    "ranking": set(),
    "pruning": {
        "files",
        "plan",
        "patterns",
        "levels",
        "sites",
        "gates",
        "calibration",
        "schedules",
        "ranking",
    },
    "session": {"plan", "sites", "gates", "pruning", "runs"},
    "trainer": {"calibration", "session", "runs"},
    "training": {"plan", "sites", "gates", "calibration"},
    "interface": {"ops"},
    "whole": {"ops"},
    "parts": set(),
    "modules": {"ops", "formats", "interface", "whole", "parts"},
    "patterned": {"ops", "formats", "parts"},
    "apply": {"plan", "sites"},
    # What a converted model inherits reaches up, when it is called, for what does it right.
    "inherited": {"interface", "modules", "remake", "checkpoint"},
    "stock": {"sites"},
    "proof": {"plan", "sites", "gates", "interface"},
    "convert": {
        "plan",
        "formats",
        "modules",
        "patterned",
        "interface",
        "inherited",
        "sites",
        "stock",
        "proof",
        "apply",
        "cost",
    },
    "remake": {"modules", "sites", "convert", "cost"},
    "skeleton": {"inherited"},
    "blueprint": {"plan", "formats", "inherited", "sites", "convert", "remake", "skeleton"},
    "checkpoint": {
        "files",
        "reading",
        "manifest",
        "plan",
        "sites",
        "convert",
        "cost",
        "skeleton",
        "blueprint",
    },
    "environment": {"ops"},
    "measure": {"environment"},
    "cost": {"ops", "environment", "graphs"},
    "text": set(),
    "tasks": {"text"},
    "capture": {"graphs"},
    "graphs": set(),
}
TOP = {
    "__init__",
    "arguments",
    "cli",
    "demo",
    "evaluation",
    "pretrained",
    "recipe",
    "report",
}  # may import all

# Packages that only some parts may import; those not listed here are free to all.
OUTSIDE = {
    "transformers": {
        "sites", "gates", "calibration", "training", "trainer",
        "interface", "modules", "apply", "convert", "checkpoint",
    },
    "safetensors": {"plan", "checkpoint", "pruning"},
    "matplotlib": set(),
    "triton": set(),
}  # fmt: skip
# A package that only one file of a part may import.
CONFINED = {
    "triton": "triton.py",
    "secateurs._C_cpu": "cpu.py",
    "secateurs._C_cuda": "cuda.py",
    "secateurs._cuda_build": "cuda.py",
}


def imports(path: Path) -> set[str]:
    """Every name a file imports, wherever in the file, behind the module it is from."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import: they hide which floor is meant"
            # Of `from secateurs.pruning import base` only the names tell what is meant.
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


PYTHON = sorted(PACKAGE.rglob("*.py"))
NATIVE = sorted(p for p in CSRC.rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".cuh", ".inc"))


def test_every_part_has_a_floor():
    assert {part_of(path) for path in PYTHON} <= set(FLOORS) | TOP


@pytest.mark.parametrize("path", PYTHON, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_python_imports_keep_their_floor(path):
    part = part_of(path)
    for name in imports(path):
        package, _, rest = name.partition(".")
        confined = [m for m in CONFINED if name == m or name.startswith(m + ".")]
        if confined:
            assert path.name == CONFINED[confined[0]], f"only {CONFINED[confined[0]]} may"
            assert part == "ops", f"only ops may import {name}"
        elif package == "secateurs":
            other = rest.partition(".")[0]
            if part not in TOP and other != part:
                assert other in FLOORS.get(part, set()) | {"errors", "checks"}, (
                    f"{part} may not import {other}"
                )
        elif package in OUTSIDE and part not in TOP:
            assert part in OUTSIDE[package], f"{part} may not import {package}"


def test_no_method_imports_a_sibling():
    shared = {"base", "budget", "allocation", "__init__"}
    for path in (PACKAGE / "pruning").glob("*.py"):
        if path.stem == "__init__":
            continue
        siblings = {n.split(".")[2] for n in imports(path) if n.startswith("secateurs.pruning.")}
        assert siblings <= shared, f"{path.name} imports {siblings - shared}"


@pytest.mark.skipif(not NATIVE, reason="the C++ sources are not beside these tests")
@pytest.mark.parametrize("path", NATIVE, ids=lambda p: str(p.relative_to(CSRC)))
def test_native_includes_keep_their_floor(path):
    part = path.relative_to(CSRC).parts[0]
    for quoted, name in re.findall(r'^\s*#\s*include\s*([<"])([^>"]+)', path.read_text(), re.M):
        top = name.split("/")[0]
        assert top not in ("torch", "ATen", "c10"), f"{path} includes {name}"
        assert top != "pybind11" or part == "bindings", f"{path} includes {name}"
        assert top != "Python.h", f"{path} includes {name}"
        if part == "common":
            assert quoted == '"' or "." not in name, f"common includes {name}"
            assert top not in ("cpu", "cuda", "bindings"), f"common includes {name}"
        if part in ("cpu", "cuda"):
            other = "cuda" if part == "cpu" else "cpu"
            assert top not in (other, "bindings"), f"{part} includes {name}"
            assert not (part == "cpu" and top.startswith("cuda")), f"cpu includes {name}"


def test_the_reader_sees_imports_inside_functions(tmp_path):
    source = "def f():\n    from secateurs import ops\n    import transformers.utils\n"
    path = tmp_path / "example.py"
    path.write_text(source)
    assert imports(path) == {"secateurs.ops", "transformers.utils"}
