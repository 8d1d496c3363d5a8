"""Who may import whom: CONTRIBUTING.md draws the floors, this reads every import and include."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import secateurs
from secateurs import _moved

PACKAGE = Path(secateurs.__file__).parent
ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
LONGEST = 400  # lines of a file; with more, a second question has moved in

# Each floor, and the floors it may import; what is on the ground is open to all.
GROUND = {
    "errors",
    "checks",
    "files",
    "reading",
    "lasting",
    "processes",
    "shells",
    "_cuda_build",
    "__version__",
}
FLOORS: dict[str, set[str]] = {
    "plan": set(),
    "data": set(),
    "ops": set(),
    "formats": {"plan", "ops"},
    "architectures": {"plan"},
    "measurement": {"ops", "data"},
    "masking": {"plan", "architectures"},
    "reconstruction": {"plan", "data", "architectures", "masking"},
    "pruning": {"plan", "data", "architectures", "masking", "reconstruction"},
    "conversion": {
        "plan",
        "data",
        "formats",
        "ops",
        "architectures",
        "measurement",
        "masking",
        "reconstruction",
    },
    "training": {"plan", "data", "architectures", "masking", "reconstruction", "pruning"},
    "search": {
        "plan",
        "data",
        "architectures",
        "measurement",
        "masking",
        "pruning",
        "reconstruction",
        "conversion",
        "training",
    },
    "storage": {"plan", "formats", "architectures", "conversion"},
    "integrations": {"measurement", "conversion", "storage"},
}
# What names or starts everything may import all.
TOP = {"__init__", "__main__", "_moved", "cli"}
# A floor that is reached from below, by one file and only when it is called.
WHEN_CALLED = {("conversion/inherited.py", "storage")}

# Packages that only some floors may import; those not listed here are free to all.
OUTSIDE = {
    "transformers": {
        "architectures",
        "masking",
        "conversion",
        "training",
        "storage",
        "integrations",
    },
    "safetensors": {"plan", "pruning", "storage"},
    "matplotlib": set(),
    "triton": {"ops"},
}
# A module that only files of one name may import, inside ops.
CONFINED = {
    "triton": "triton.py",
    "secateurs._C_cpu": "cpu.py",
    "secateurs._C_cuda": "cuda.py",
    "secateurs._cuda_build": "cuda.py",
}
# What a fresh process that imports a module must not have loaded.
NEVER_LOADED = {
    "": {"torch", "numpy", "transformers"},
    "cli.main": {"torch", "numpy", "transformers"},
    "cli.commands": {"torch", "numpy", "transformers"},
    "plan": {"transformers"},
    "ops": {"transformers", "safetensors"},
    "formats": {"transformers"},
    "pruning": {"transformers"},
    "measurement.timing": {"transformers"},
    "measurement.peers": {"torch", "transformers"},
}


def imports(path: Path, inside_functions: bool = True) -> set[str]:
    """Every name a file imports, behind the module it is from; wherever in the file, or only where
    it is imported with the file."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if inside_functions else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import: they hide which floor is meant"
            # Of `from secateurs.pruning import base` only the names tell what is meant.
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def floor_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


PYTHON = sorted(PACKAGE.rglob("*.py"))
NATIVE_ENDINGS = (".h", ".cpp", ".cu", ".cuh", ".inc")
NATIVE = sorted(p for p in CSRC.rglob("*") if p.suffix in NATIVE_ENDINGS)


def test_every_file_has_a_floor():
    assert {floor_of(path) for path in PYTHON} <= {*FLOORS, *GROUND, *TOP}


def test_a_file_holds_one_question():
    long = {}
    for folder in ("python", "csrc", "tests", "benchmarks"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", *NATIVE_ENDINGS):
                lines = len(path.read_text(encoding="utf-8").splitlines())
                if lines > LONGEST:
                    long[path.relative_to(ROOT).as_posix()] = lines
    assert not long


def test_floors_have_no_cycle():
    def above(floor: str) -> set[str]:
        return {floor}.union(*(above(below) for below in FLOORS[floor]))

    for floor in FLOORS:
        assert all(floor not in above(below) for below in FLOORS[floor])


@pytest.mark.parametrize("path", PYTHON, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_python_imports_keep_their_floor(path):
    floor, inside = floor_of(path), path.relative_to(PACKAGE).as_posix()
    for name in imports(path):
        package, _, rest = name.partition(".")
        confined = [m for m in CONFINED if name == m or name.startswith(m + ".")]
        if confined:
            assert path.name == CONFINED[confined[0]], f"only {CONFINED[confined[0]]} may"
            assert floor == "ops", f"only ops may import {name}"
        elif floor in TOP:
            continue
        elif package == "secateurs":
            other = rest.partition(".")[0]
            allowed = GROUND if floor in GROUND else GROUND | FLOORS[floor] | {floor}
            if other not in allowed:
                assert (inside, other) in WHEN_CALLED, f"{floor} may not import {other}"
                assert name not in imports(path, inside_functions=False), "only when it is called"
        elif package in OUTSIDE:
            assert floor in OUTSIDE[package], f"{floor} may not import {package}"


def test_no_method_imports_a_sibling():
    methods = PACKAGE / "pruning" / "methods"
    for path in set(methods.glob("*.py")) - {methods / "__init__.py"}:
        siblings = {n for n in imports(path) if n.startswith("secateurs.pruning.methods")}
        assert not siblings, f"{path.name} imports {siblings}"


@pytest.mark.parametrize("module", NEVER_LOADED)
def test_a_fresh_process_loads_no_more_than_its_floor(module):
    name = f"secateurs.{module}".rstrip(".")
    script = f"import sys, {name}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert not NEVER_LOADED[module] & set(done.stdout.split())


def test_the_command_explains_itself_without_torch():
    script = (
        "import sys; from secateurs.cli.main import main\n"
        "try: main([*sys.argv[1:]])\n"
        "except SystemExit: print('loaded', *sys.modules)"
    )
    for arguments in (["--help"], ["--version"], ["prune", "--help"], ["prune-task", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
        )
        assert "torch" not in done.stdout.rpartition("loaded")[2].split()


def test_the_public_names_are_told_to_readers_of_types_too():
    """What `if TYPE_CHECKING` imports is what is found when it is asked for."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    told = {
        alias.name: node.module
        for block in blocks
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert told == {name: f"secateurs.{home}" for name, home in secateurs._HOMES.items()}
    assert all(getattr(secateurs, name) is not None for name in secateurs.__all__)


@pytest.mark.parametrize("old", _moved.MOVED)
def test_old_names_of_modules_still_work_with_a_warning(old):
    new = importlib.import_module(f"secateurs.{_moved.MOVED[old]}")
    sys.modules.pop(f"secateurs.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"secateurs.{old} is now {new.__name__}"):
        module = importlib.import_module(f"secateurs.{old}")
    public = [name for name in vars(new) if not name.startswith("__")]
    assert all(getattr(module, name) is getattr(new, name) for name in public)


def test_a_function_keeps_its_name_when_its_old_module_is_imported():
    sys.modules.pop("secateurs.convert", None)
    with pytest.warns(DeprecationWarning, match="secateurs.conversion.builder"):
        from secateurs.convert import convert
    assert secateurs.convert is convert


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


def test_benchmarks_find_all_that_they_import():
    """None of them is run here: a name that moved would be missed when one is wanted."""
    pytest.importorskip("triton")
    names = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
    # The folder stands first for each of them, as where it is run: one takes it away.
    code = (
        "import importlib, sys\n"
        f"for name in {names}:\n"
        f"    sys.path.insert(0, {str(ROOT / 'benchmarks')!r})\n"
        "    importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
