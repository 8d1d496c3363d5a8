"""Files that are whole or absent: one file replaced at once, and folders that several processes
write and read."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # no such locks on Windows
    fcntl = None  # type: ignore[assignment]

PARTIAL = ".partial"  # ends the name of a file that is being written


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
