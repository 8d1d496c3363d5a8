"""What this machine's measurements are kept in between runs: small JSON files in one folder.

They save time and nothing else. So a file that is not there, not ours or damaged is as good as
none, and one that cannot be written is no error.
"""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

MOST_BYTES = 64 << 20  # no table of ours comes near


def folder() -> Path | None:
    """`SECATEURS_CACHE`, else `secateurs` under the user's cache directory; None for a user who has
    neither."""
    if own := os.environ.get("SECATEURS_CACHE"):
        return Path(own)
    if caches := os.environ.get("XDG_CACHE_HOME"):
        return Path(caches) / "secateurs"
    try:
        return Path.home() / ".cache" / "secateurs"
    except RuntimeError:
        return None


def read(path: Path | None) -> dict[str, Any]:
    """The JSON object in a file; empty if there is none that can be read."""
    with suppress(OSError, ValueError, RecursionError):
        # Of what is no regular file (a pipe, a device) reading may never end.
        if path is not None and path.is_file() and path.stat().st_size <= MOST_BYTES:
            content = json.loads(path.read_text(encoding="utf-8"))
            return content if isinstance(content, dict) else {}
    return {}


def write(path: Path | None, content: dict[str, Any]) -> None:
    """Replace a file by a JSON object at once: whoever reads it meanwhile finds the old one or the
    new one."""
    if path is None:
        return
    with suppress(OSError, ValueError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-")
        try:
            with open(handle, "w", encoding="utf-8") as file:
                json.dump(content, file, indent=1)
            os.replace(partial, path)
        except BaseException:
            os.unlink(partial)
            raise
