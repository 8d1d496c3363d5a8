"""The CUDA module of this checkout: one that was built elsewhere, else compiled for this machine's
GPU; exits with 0 only if it runs here.

    python -m benchmarks.on_gpu.build --prebuilt folder
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "gpu"
PACKAGE = ROOT / "python" / "secateurs"

# In a process of its own, which finds the module that stands there now.
USABLE = """
import sys, torch
from secateurs.ops._backends import cuda
print(cuda.build_info())
sys.exit(cuda.refuse(torch.zeros(1, dtype=torch.bfloat16, device="cuda")))
"""


def usable() -> bool:
    """Tell whether the module is there and takes a tensor on this GPU; it prints why not."""
    return subprocess.run([sys.executable, "-c", USABLE]).returncode == 0


def copy(prebuilt: Path) -> None:
    """Copy modules into the package. Raises FileNotFoundError if there is none."""
    modules = sorted(prebuilt.glob("_C_*.so")) if prebuilt.is_dir() else [prebuilt]
    if not modules:
        raise FileNotFoundError(f"expected modules _C_*.so in {prebuilt}, found none")
    for module in modules:
        shutil.copy(module, PACKAGE)


def build() -> bool:
    """Compile for this machine's GPU and CPU, into the package of this checkout."""
    os.environ.setdefault("SECATEURS_CUDA", "on")
    os.environ.setdefault("SECATEURS_CUDA_ARCHS", "native")
    pybind11 = subprocess.run(
        [sys.executable, "-m", "pybind11", "--cmakedir"], stdout=subprocess.PIPE, text=True
    )
    configure = ["cmake", "-S", str(ROOT), "-B", str(FOLDER), "-G", "Ninja"]
    configure += [f"-Dpybind11_DIR={pybind11.stdout.strip()}"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}", "-DSKBUILD_PROJECT_VERSION=0.1.0"]
    compile_all = ["cmake", "--build", str(FOLDER)]
    install = ["cmake", "--install", str(FOLDER), "--prefix", str(ROOT / "python")]
    return all(
        subprocess.run(command).returncode == 0 for command in (configure, compile_all, install)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prebuilt", type=Path, help="a module, or a folder of modules")
    options = parser.parse_args()
    if options.prebuilt is not None:
        try:
            copy(options.prebuilt)
            if usable():
                return 0
        except OSError as error:
            print(error, file=sys.stderr)
        print("the prebuilt module does not run here: compiling", file=sys.stderr, flush=True)
    return int(not (build() and usable()))


if __name__ == "__main__":
    sys.exit(main())
