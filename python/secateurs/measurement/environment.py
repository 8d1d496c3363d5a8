"""Where are we running: versions, instruction sets, CUDA, devices, threads, commit."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from secateurs import ops
from secateurs.errors import BackendError

PACKAGES = ("secateurs", "torch", "transformers", "safetensors", "numpy", "triton")


def env_report() -> dict[str, Any]:
    """Report what a bug report or a speed claim needs, as plain JSON; absent parts are None."""
    return {
        "versions": {
            "python": platform.python_version(),
            **{package: package_version(package) for package in PACKAGES},
            "torch": str(torch.__version__),  # says how it was built too: +cpu, +cu130
        },
        "commit": git_commit(),
        "platform": platform.platform(),
        "cpu": {
            "name": device_name(torch.device("cpu")),
            "cores": os.cpu_count(),
            "usable_cores": usable_cores(),
            "threads": torch.get_num_threads(),
        },
        "kernels": ops.build_info(),
        "torch_cuda": {
            "toolkit": torch.version.cuda,
            "devices": [
                {
                    "name": torch.cuda.get_device_name(i),
                    "capability": list(torch.cuda.get_device_capability(i)),
                }
                for i in range(torch.cuda.device_count())
            ],
        },
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith("SECATEURS_")},
    }


def check_installed(packages: Sequence[str], purpose: str) -> None:
    """Raise BackendError where one of `packages` is not installed, which pip knows by the same
    names."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise BackendError(
            f"expected {' and '.join(packages)} {purpose}, {missing[0]} is not installed: "
            f"pip install {' '.join(packages)}"
        )


def format_report(report: Mapping[str, Any], indent: int = 0) -> str:
    """Nested mappings as aligned `key  value` lines."""
    lines: list[str] = []
    width = max((len(str(k)) for k in report), default=0)
    for key, value in report.items():
        if isinstance(value, Mapping) and value:
            lines += [f"{'':{indent}}{key}", format_report(value, indent + 2)]
            continue
        if isinstance(value, (list, tuple)):
            value = ", ".join(map(str, value))
        shown = "-" if value in (None, "", {}) else value
        lines.append(f"{'':{indent}}{key:<{width}}  {shown}")
    return "\n".join(lines)


def device_name(device: torch.device) -> str:
    """Marketing name of a device, the same in every JSON row: the CPU's model name or the GPU's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return _cpu_name()
    return str(device)


def describe_machine(device: torch.device) -> str:
    """Name a device and the versions that a time was measured with, in one line."""
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    packages = (f"{name} {package_version(name)}" for name in ("torch", "transformers"))
    return f"{device_name(device)}{threads}; {', '.join(packages)}"


def package_version(package: str) -> str | None:
    """The version of an installed package by its metadata; None if it is not there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def git_commit() -> str | None:
    """Commit of the running code: the one an installed wheel was built from, or that of its
    checkout, with `+` appended when the tree differs from it."""
    here = Path(__file__).resolve()
    try:
        root = Path(_git(here.parent, "rev-parse", "--show-toplevel"))
        # The virtual environment we are installed in may lie in the checkout of another project.
        if here == (root / "python" / "secateurs" / "measurement" / here.name).resolve():
            dirty = _git(root, "status", "--porcelain", "--untracked-files=no")
            return _git(root, "rev-parse", "--short=12", "HEAD") + ("+" if dirty else "")
    except (OSError, subprocess.SubprocessError):
        pass
    return ops.build_info()["cpu"].get("commit") or None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()


def usable_cores() -> int | None:
    """Cores this process may use: containers and taskset allow fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


@cache
def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
