"""Reading files that a stranger may have made: what is not as it should be costs one sentence.

Nothing here trusts a size that a file states before it was compared with the file's own.
"""

from __future__ import annotations

import json
import math
import os
import re
import reprlib
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import torch

from secateurs.errors import CheckpointError

MOST_JSON = 32 << 20  # bytes; id2label of 21,000 classes are 1 MB
MOST_DEPTH = 32  # objects and lists within each other
_MOST_HEADER = 32 << 20
_MOST_DIM = 2**31 - 1
_MOST_ELEMENTS = 2**48  # of a tensor whose empty sides count as 1: torch's own products overflow
_WORDS = re.compile(r"\s+")

# What safetensors calls the types that our files hold.
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60
_short.maxdict = _short.maxlist = 3
_short.maxlevel = 2


def shown(value: Any) -> str:
    """A stranger's value on one short line."""
    return _short.repr(value)


def one_line(error: BaseException) -> str:
    """What an exception of someone else says, on one line of at most 200 printable characters."""
    text = _WORDS.sub(" ", str(error)).strip() or type(error).__name__
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= 200 else f"{text[:197]}..."


@contextmanager
def opened(path: str | Path) -> Iterator[tuple[IO[bytes], int]]:
    """A regular file, open for reading, and its size in bytes.

    Raises CheckpointError for anything else, without waiting for it: a pipe, a device, a directory.
    """
    try:
        # Opening a pipe would wait for its writer; a regular file does not mind.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:  # a name with a zero in it is a ValueError
        raise CheckpointError(f"cannot read {path}: {one_line(error)}") from None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise CheckpointError(f"expected a regular file, but {path} is none")
    try:
        with open(descriptor, "rb") as file:
            yield file, found.st_size
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {one_line(error)}") from None


def read_bytes(path: str | Path, most: int) -> bytes:
    """The content of a regular file. Raises CheckpointError for anything else, and for one of more
    than `most` bytes."""
    with opened(path) as (file, size):
        # Python sets aside as much as it is asked to read.
        content = b"" if size > most else file.read(size + 1)
    if max(size, len(content)) > most:
        raise CheckpointError(f"expected at most {most} bytes in {path}, got {size}")
    return content


def check_folder(path: str | Path) -> None:
    """Raise CheckpointError for a path that is no directory, or one that holds a pipe or a device,
    which whoever reads its files could wait for without end."""
    try:
        if not Path(path).is_dir():
            raise CheckpointError(f"expected a directory with a model, {path} is none")
        for entry in Path(path).iterdir():
            mode = entry.stat().st_mode if entry.exists() else stat.S_IFREG
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise CheckpointError(f"expected a regular file, but {entry} is none")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {one_line(error)}") from None


def read_json(path: str | Path, most: int = MOST_JSON) -> dict[str, Any]:
    """The JSON object in a UTF-8 file. Raises CheckpointError for anything else."""
    return parse_json(read_bytes(path, most), str(path))


def parse_json(text: bytes | str, where: str) -> dict[str, Any]:
    """The JSON object in `text`, of which a sentence says that it is in `where`.

    Raises CheckpointError for anything else: also for one nested deeper than 32, which whoever
    walks it next would fail at.
    """
    try:
        value = json.loads(text.decode("utf-8") if isinstance(text, bytes) else text)
    except RecursionError:
        raise CheckpointError(
            f"expected JSON nested at most {MOST_DEPTH} deep in {where}"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"expected JSON in {where}: {one_line(error)}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"expected a JSON object in {where}, got {shown(value)}")
    level: list[Any] = [value]
    for _ in range(MOST_DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
    if level:
        raise CheckpointError(f"expected JSON nested at most {MOST_DEPTH} deep in {where}")
    return value


def _inside(value: Any) -> list[Any]:
    values = value.values() if isinstance(value, dict) else value
    return [v for v in values if isinstance(v, (dict, list))]


def whole(value: Any, least: int = 0, most: int = _MOST_DIM) -> bool:
    """Whether a value from JSON is a whole number in a range; true and false are none."""
    return type(value) is int and least <= value <= most


def member(
    found: Mapping[str, Any], name: str, wanted: str, fits: Callable[[Any], bool], where: str
) -> Any:
    """The value under `name`, which `fits`. Raises CheckpointError if there is none, or it does
    not: expected `wanted` as `name` in `where`."""
    if name not in found:
        raise CheckpointError(f"expected {wanted} as {name} in {where}, got none")
    if not fits(found[name]):
        raise CheckpointError(f"expected {wanted} as {name} in {where}, got {shown(found[name])}")
    return found[name]


def only(found: Mapping[str, Any], known: set[str], where: str) -> None:
    """Raise CheckpointError if an object has a name that is not known."""
    if unknown := sorted(found.keys() - known):
        raise CheckpointError(f"expected only {', '.join(sorted(known))} in {where}, got "
                              f"{shown(unknown[0])} too")  # fmt: skip


def is_label(value: Any) -> bool:
    """Whether a value is a text that a sentence can repeat as it is."""
    return isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable()


def is_plain_name(name: Any) -> bool:
    """Whether a stranger's name is that of a file in the folder itself: joined to the folder's path
    it leads nowhere else."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and name.isprintable()
        and not set(name) & set('/\\:*?"<>|')
    )


@dataclass(frozen=True)
class Stored:
    """What the header of a safetensors file says of one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int  # of its bytes, from the file's first
    end: int


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file: it fits the file's size."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, Stored]


def tensors_header(path: str | Path) -> Header:
    """The header of a safetensors file of any size; the tensors themselves are not read.

    Raises CheckpointError for anything else, and for tensors that do not lie side by side from the
    header's end to the file's.
    """
    with opened(path) as (file, size):
        return _header(file, size, str(path))


def read_tensors(path: str | Path, most: int) -> tuple[Header, dict[str, torch.Tensor]]:
    """All of a safetensors file of at most `most` bytes: its header and tensors.

    Raises CheckpointError as `tensors_header`, and for a truth value that is neither 0 nor 1.
    """
    content = read_bytes(path, most)
    stored = StoredTensors(BytesIO(content), len(content), str(path))
    return stored.header, dict(stored)


class StoredTensors(Mapping[str, torch.Tensor]):
    """The tensors of an open safetensors file, each read when it is asked for, into memory of its
    own.

    Raises CheckpointError as `tensors_header` when it is made, and for a truth value that is
    neither 0 nor 1 when that is read.
    """

    def __init__(
        self, file: IO[bytes], size: int, path: str, device: str | torch.device = "cpu"
    ) -> None:
        self.header = _header(file, size, path)
        self._file, self._path, self._device = file, path, device

    def __getitem__(self, name: str) -> torch.Tensor:
        stored = self.header.tensors[name]
        raw = torch.empty(stored.end - stored.begin, dtype=torch.uint8)
        self._file.seek(stored.begin)
        if self._file.readinto(raw.numpy().data) != len(raw):  # type: ignore[attr-defined]
            raise CheckpointError(f"{self._path} became shorter while it was read")
        if stored.dtype == torch.bool and bool((raw > 1).any()):
            raise CheckpointError(
                f"expected 0 or 1 as each truth value of {shown(name)} in {self._path}, got "
                f"{int(raw.max())}"
            )
        return raw.view(stored.dtype).view(stored.shape).to(self._device)

    def __iter__(self) -> Iterator[str]:
        return iter(self.header.tensors)

    def __len__(self) -> int:
        return len(self.header.tensors)


def _header(file: IO[bytes], size: int, path: str) -> Header:
    stated = int.from_bytes(file.read(8), "little")
    if size < 8 or stated > min(size - 8, _MOST_HEADER):
        raise CheckpointError(
            f"expected a safetensors file, but {path} of {size} bytes has no header"
        )
    found = parse_json(file.read(stated), f"the header of {path}")
    metadata = found.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"expected texts as the metadata of {path}, got {shown(metadata)}")
    start = 8 + stated
    tensors = {name: _stored(name, entry, start, path) for name, entry in found.items()}
    at = start
    for name, stored in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if stored.begin != at:
            raise CheckpointError(
                f"expected {shown(name)} to begin at byte {at} of {path}, got {stored.begin}"
            )
        at = stored.end
    if at != size:
        raise CheckpointError(
            f"expected {path} to end at byte {at}, where its tensors do, got {size}"
        )
    return Header(metadata, tensors)


def _stored(name: str, entry: Any, start: int, path: str) -> Stored:
    where = f"{shown(name)} of {path}"
    if not isinstance(entry, dict):
        raise CheckpointError(f"expected an object for {where}, got {shown(entry)}")
    only(entry, {"dtype", "shape", "data_offsets"}, where)
    dtype = _DTYPES[
        member(entry, "dtype", "a known type", lambda v: isinstance(v, str) and v in _DTYPES, where)
    ]
    shape = member(
        entry,
        "shape",
        "a list of sizes",
        lambda v: (
            isinstance(v, list)
            and len(v) <= MOST_DEPTH
            and all(map(whole, v))
            and math.prod(max(1, n) for n in v) <= _MOST_ELEMENTS
        ),
        where,
    )
    begin, end = member(
        entry,
        "data_offsets",
        "two offsets",
        lambda v: isinstance(v, list) and len(v) == 2 and all(whole(n, most=2**62) for n in v),
        where,
    )
    needed = math.prod(shape) * dtype.itemsize
    if end - begin != needed:
        raise CheckpointError(f"expected {needed} bytes for {where}, got {end - begin}")
    return Stored(dtype, tuple(shape), start + begin, start + end)
