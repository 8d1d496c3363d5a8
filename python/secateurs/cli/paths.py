"""Where a command may write, checked before its work and not after."""

from __future__ import annotations

import tempfile
from pathlib import Path

from secateurs.errors import DataError


def new_directory(path: str) -> Path:
    """Return `path` if it can become the folder of a result. Raises DataError if it is in use, or
    cannot be made."""
    out = Path(path)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"expected --out to be a new or empty directory, got {out}")
    check_room("--out", out)
    return out


def new_file(path: str) -> Path:
    """Return `path` if it can become the file of a result. Raises DataError if it cannot."""
    out = Path(path)
    if out.exists() or not may_write(out.absolute().parent):
        raise DataError(f"expected --out to be a new file in an existing folder, got {out}")
    return out


def checkpoints_beside(checkpoints: str | None, out: Path) -> Path:
    """Return the folder of the checkpoints, which is removed in the end. Raises DataError unless
    it lies apart from `out` and can be made."""
    work = Path(checkpoints or f"{out}-checkpoints")
    result, scratch = out.resolve(), work.resolve()
    if result.is_relative_to(scratch) or scratch.is_relative_to(result):
        raise DataError(f"expected --checkpoints apart from --out, got {work} and {out}")
    check_room("--checkpoints", work)
    return work


def check_room(option: str, path: Path) -> None:
    """Raise DataError unless a directory can be made at `path`."""
    above = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not may_write(above):
        raise DataError(f"expected {option} where a directory can be made, got {path}")


def check_file(option: str, path: str | None) -> None:
    """Raise DataError unless a file can be written to, or replaced at, `path`."""
    if path is None:
        return
    if not may_write(Path(path).absolute().parent):
        raise DataError(f"expected {option} in an existing folder that can be written, got {path}")
    if Path(path).is_dir():
        raise DataError(f"expected {option} to be a file, got the folder {path}")


def may_write(folder: Path) -> bool:
    """Try whether files can be made in a folder: only trying tells, for permissions are not all."""
    try:
        with tempfile.TemporaryDirectory(prefix=".secateurs-", dir=folder):
            return folder.is_dir()
    except (OSError, ValueError):
        return False
