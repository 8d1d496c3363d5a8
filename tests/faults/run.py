"""Try every fault of the table on a copy of the package: the test that it names must fail.

python tests/faults/run.py                # all; some seconds for each, minutes with a build
python tests/faults/run.py --only cpu     # those whose file or test holds a word
python tests/faults/run.py --skip csrc    # those whose file does not

Prints a line for each fault. Exits with 1 when a test does not see its fault, or fails without it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from fault import Fault
from fault_table import FAULTS

ROOT = Path(__file__).parents[2]
TESTS_FAILED = 1  # of pytest's exit codes: tests ran, and some failed
OUTPUT = "output.txt"  # of pytest, in the scratch folder
BROKEN = 3  # pytest itself fails: no test has seen anything
# Instruction sets that are not built: one with vectors, and the one without, are enough; and the
# emulated one with tiles, where faults are in what uses them.
SKIPPED = [f"HAS_{isa}" for isa in ("avx_vnni", "avx512", "avx512_vnni", "amx")]
PATIENCE = 900  # seconds for one test; a fault may make a loop endless


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    faults = [
        fault
        for fault in FAULTS
        if options.only in f"{fault.file} {fault.test}"
        and not (options.skip and options.skip in fault.file)
    ]
    with tempfile.TemporaryDirectory() as folder:
        load_once()
        builds = any(f.file.startswith("csrc") for f in faults)
        scratch = Scratch(Path(folder), builds, tiles=any("tile" in f.file for f in faults))
        whole: dict[tuple[bool, str], bool] = {}
        unseen = 0
        for number, fault in enumerate(faults, 1):
            start, native = time.perf_counter(), fault.file.startswith("csrc")
            if (native, fault.test) not in whole:
                whole[native, fault.test] = scratch.run(fault.test) == 0
                if not whole[native, fault.test]:
                    print(scratch.last_output(), flush=True)
            verdict = "the test fails without it"
            if whole[native, fault.test]:
                verdict = "seen" if scratch.run_with(fault) == TESTS_FAILED else "NOT SEEN"
            unseen += verdict != "seen"
            seconds = time.perf_counter() - start
            print(
                f"{number:3}/{len(faults)} {verdict:9} {seconds:4.0f} s  {fault.file}: "
                f"{' '.join(fault.old.split())[:60]!r} by {fault.test}",
                flush=True,
            )
    print(f"{len(faults) - unseen} of {len(faults)} faults were seen")
    return int(unseen > 0)


def load_once() -> None:
    """Load what takes seconds, and is not tested, before the processes of the tests are forked."""
    for name in ("torch", "transformers", "transformers.trainer"):
        importlib.import_module(name)
    for family in ("bert", "roberta", "electra", "distilbert", "llama", "vit"):
        importlib.import_module(f"transformers.models.{family}.modeling_{family}")


class Scratch:
    """A copy of the package, and of the CPU kernels' sources where they are built.

    Args:
        builds: whether to build the kernels of the copy; else the package's own are used.
        tiles: whether to build those on emulated tiles, too.
    """

    def __init__(self, folder: Path, builds: bool, tiles: bool) -> None:
        self.folder, self._build, self._tiles = folder, folder / "build", tiles
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "python", folder / "python", ignore=ignored)
        if builds:
            shutil.copytree(ROOT / "csrc", folder / "csrc")
            for name in ("CMakeLists.txt", "pyproject.toml"):
                shutil.copy(ROOT / name, folder)
            self._configure()
            self._compile()

    def run(self, test: str) -> int:
        """The exit code of pytest on `test` and the copy, in a process of its own."""
        child = os.fork()
        if not child:
            try:
                code = self._tested(test)
            except BaseException:
                code = BROKEN
            os._exit(code)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            finished, status = os.waitpid(child, os.WNOHANG)
            if finished:
                code = os.waitstatus_to_exitcode(status)
                return TESTS_FAILED if code < 0 else code  # by a signal: the fault crashed the test
            time.sleep(0.05)
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return TESTS_FAILED

    def _tested(self, test: str) -> int:
        os.setpgid(0, 0)  # so that a test that hangs ends with all that it started
        output = os.open(self.folder / OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        package = str(self.folder / "python")
        sys.path.insert(0, package)
        os.environ["PYTHONPATH"] = package
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        sys.dont_write_bytecode = True
        os.chdir(ROOT)
        # Modules that are plugins of pytest were loaded before it.
        calm = ["-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
        return int(pytest.main(["-qx", *calm, *_words(test)]))

    def last_output(self) -> str:
        """The end of what pytest printed in the last run."""
        text = (self.folder / OUTPUT).read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-20:])

    def run_with(self, fault: Fault) -> int:
        """The exit code of pytest while the copy has `fault`."""
        path = self.folder / fault.file
        text = path.read_text(encoding="utf-8")
        if text.count(fault.old) != 1:
            raise SystemExit(f"expected once in {fault.file}: {fault.old!r}")
        path.write_text(text.replace(fault.old, fault.new), encoding="utf-8")
        try:
            if fault.file.startswith("csrc"):
                self._compile()
            return self.run(fault.test)
        finally:
            path.write_text(text, encoding="utf-8")
            if fault.file.startswith("csrc"):
                shutil.copy(self._module.with_suffix(".whole"), self._module)

    def _configure(self) -> None:
        pybind11 = subprocess.run(
            [sys.executable, "-m", "pybind11", "--cmakedir"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
        command = ["cmake", "-S", self.folder, "-B", self._build, "-G", "Ninja"]
        settings = {
            "CMAKE_BUILD_TYPE": "Release",
            "SKBUILD_PROJECT_VERSION": "0.0.0",
            "pybind11_DIR": pybind11,
            "Python_EXECUTABLE": sys.executable,
            # A body is one text for all instruction sets, but for what multiplies pairs: three of
            # them build in half of the time.
            **dict.fromkeys(SKIPPED, "OFF"),
            "SECATEURS_EMULATED_TILES": "ON" if self._tiles else "OFF",
        }
        command += [f"-D{name}={value}" for name, value in settings.items()]
        environment = {**os.environ, "SECATEURS_CUDA": "off"}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)

    def _compile(self) -> None:
        """Build the CPU module and put it into the copy of the package; the first one is kept."""
        subprocess.run(
            ["cmake", "--build", self._build, "--target", "_C_cpu"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        (built,) = (self._build / "csrc" / "cpu").glob("_C_cpu*.so")
        self._module = self.folder / "python" / "secateurs" / built.name
        # A new file: the old one may be mapped by a process that has not ended.
        self._module.unlink(missing_ok=True)
        shutil.copy(built, self._module)
        if not self._module.with_suffix(".whole").exists():
            shutil.copy(built, self._module.with_suffix(".whole"))


def _words(test: str) -> list[str]:
    """`FILE -k EXPRESSION` as words, the expression as one of them."""
    file, _, expression = test.partition(" -k ")
    return [file, *(["-k", expression] if expression else [])]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Break the code and see the tests fail.")
    parser.add_argument("--only", default="", metavar="WORD", help="in the file or the test")
    parser.add_argument("--skip", default="", metavar="WORD", help="in the file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
