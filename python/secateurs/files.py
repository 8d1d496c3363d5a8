"""Files that are whole or absent: one file replaced at once, folders that several processes write
and read, and the folder of what this machine's measurements keep in between runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # no such locks on Windows
    fcntl = None  # type: ignore[assignment]

PARTIAL = ".partial"  # ends the name of a file that is being written
MOST_BYTES = 64 << 20  # of a table; none of ours comes near


@contextmanager
def written_whole(path: str | Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a scratch path beside `path` that replaces it once the block has ended.

    A block that raises leaves `path` as it was, and nothing else behind.

    Args:
        durable: wait until the disk has the file; a cache need not.

    Raises OSError if it cannot be written.
    """
    path = Path(path)
    scratch = path.with_name(f".{path.name}-{secrets.token_hex(4)}{PARTIAL}")
    try:
        yield scratch
        if durable:
            flush(scratch)
        scratch.replace(path)
        if durable:
            flush(path.parent)
    finally:
        scratch.unlink(missing_ok=True)


def written_by_content(
    directory: Path, stem: str, suffix: str, write: Callable[[Path], object]
) -> tuple[str, str]:
    """Write a file whose name tells its content, `STEM-DIGEST.SUFFIX`, and return its name and
    sha256. Two writers of one content write one file; no writer replaces the file of another."""
    scratch = directory / f".{stem}-{secrets.token_hex(4)}{PARTIAL}"
    try:
        write(scratch)
        flush(scratch)
        digest = sha256(scratch)
        name = f"{stem}-{digest[:16]}{suffix}"
        scratch.replace(directory / name)
        flush(directory)
    finally:
        scratch.unlink(missing_ok=True)
    return name, digest


@contextmanager
def held(directory: Path) -> Iterator[bool]:
    """Keep other writers of `directory` waiting; yields False where there are no such locks. The
    lock of a process that dies goes with it."""
    if fcntl is None:
        yield False
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # some network file systems
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def cache_folder() -> Path | None:
    """Where tables are kept: `SECATEURS_CACHE`, else `secateurs` under the user's cache directory;
    None for a user who has neither."""
    if own := os.environ.get("SECATEURS_CACHE"):
        return Path(own)
    if caches := os.environ.get("XDG_CACHE_HOME"):
        return Path(caches) / "secateurs"
    try:
        return Path.home() / ".cache" / "secateurs"
    except RuntimeError:
        return None


def read_table(path: Path | None) -> dict[str, Any]:
    """The JSON object that `path` holds; empty if there is none that can be read.

    A table saves time and nothing else, so one that is damaged or not ours is as good as none.
    """
    with contextlib.suppress(OSError, ValueError, RecursionError):
        # Reading a pipe or a device may never end.
        if path is not None and path.is_file() and path.stat().st_size <= MOST_BYTES:
            content = json.loads(path.read_text(encoding="utf-8"))
            return content if isinstance(content, dict) else {}
    return {}


def write_table(path: Path | None, content: dict[str, Any]) -> None:
    """Replace the table `path` by a JSON object at once; a table that cannot be written is no
    error."""
    if path is None:
        return
    with contextlib.suppress(OSError, ValueError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path, durable=False) as scratch:
            scratch.write_text(json.dumps(content, indent=1), encoding="utf-8")


def flush(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder."""
    if path.is_dir():
        # Not every system lets a folder be opened, or waits for one.
        with contextlib.suppress(OSError):
            _flush(path, os.O_RDONLY)
    else:
        _flush(path, os.O_RDWR)


def sha256(path: Path) -> str:
    """The digest of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _flush(path: Path, mode: int) -> None:
    handle = os.open(path, mode)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
