"""Images: files in folders and tars, and what the image processor of a model makes of them.

They are kept as the files they are, and read and resized batch by batch.
"""

from __future__ import annotations

import io
import random
import tarfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from secateurs.checks import first_line
from secateurs.errors import DataError

TARS = (".tar", ".tar.gz", ".tgz")
MOST_BYTES = 1 << 26  # of one image: larger ones are no photos


class File(NamedTuple):
    """A file of a folder or tar: the parts of its name in there, its place in words, its bytes."""

    parts: tuple[str, ...]
    where: str
    data: bytes


def files_in(path: Path, wanted: Collection[int] | None = None) -> Iterator[File]:
    """The files of a folder, in order of their names, or of a tar, in its own; all of them with
    their bytes, or only those whose numbers are `wanted`. Raises DataError for what is no file or
    too large for an image, and for what is no tar."""

    def is_wanted(number: int) -> bool:
        return wanted is None or number in wanted

    if path.is_dir():
        files = (file for file in sorted(path.rglob("*")) if not file.is_dir())
        for number, file in enumerate(files):
            if file.stat().st_size > MOST_BYTES:
                raise DataError(f"expected images in {path}, got {file}, which is too large")
            data = file.read_bytes() if is_wanted(number) else b""
            yield File(file.relative_to(path).parts, str(file), data)
        return
    try:
        with tarfile.open(path) as tar:
            members = (member for member in tar if not member.isdir())
            for number, member in enumerate(members):
                if not member.isreg() or member.size > MOST_BYTES:
                    raise DataError(f"expected images in {path}, got {member.name}")
                opened = tar.extractfile(member) if is_wanted(number) else None
                data = opened.read() if opened else b""
                yield File(Path(member.name).parts, f"{path}:{member.name}", data)
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(
            f"expected a folder or a tar of images in {path}, got {first_line(error)}"
        ) from error


def read_images(path: str | Path, most: int, seed: int = 0) -> list[bytes]:
    """The bytes of images in a folder or a tar, at any depth; of more than `most` so many, drawn at
    random. Raises DataError for none, and for one that cannot be read."""
    place = Path(path)
    count = sum(1 for _ in files_in(place, ()))
    chosen = set(random.Random(seed).sample(range(count), min(most, count)))
    found = [
        checked_image(file.data, file.where)
        for number, file in enumerate(files_in(place, chosen))
        if number in chosen
    ]
    if not found:
        raise DataError(f"expected images in {path}, got none")
    return found


def image_batches(
    processor: Any, images: Sequence[bytes], batch_size: int
) -> list[dict[str, Tensor]]:
    """Batches of what a model of images takes. Raises DataError as `pixel_values`."""
    return [
        {"pixel_values": pixel_values(processor, images[start : start + batch_size])}
        for start in range(0, len(images), batch_size)
    ]


def pixel_values(processor: Any, images: Sequence[bytes]) -> Tensor:
    """What an image processor makes of files `[B, C, H, W]`. Raises DataError where it fails, as on
    images that it leaves of different sizes."""
    opener = pillow()
    opened = [opener.open(io.BytesIO(data)).convert("RGB") for data in images]
    try:
        made: Tensor = processor(opened, return_tensors="pt")["pixel_values"]
    except Exception as error:  # processors raise whatever they come to
        sizes = sorted({f"{image.width}x{image.height}" for image in opened})
        raise DataError(
            f"the image processor cannot read images of {', '.join(sizes[:4])}: {first_line(error)}"
        ) from error
    return made


def check_size(processor: Any, shape: tuple[int, ...]) -> None:
    """Raise DataError unless an image processor makes `shape` (channels, height, width) of images
    of two sizes."""
    opener, images = pillow(), []
    for size in ((48, 40), (30, 50)):
        images.append(io.BytesIO())
        opener.new("RGB", size).save(images[-1], "PNG")
    made = tuple(pixel_values(processor, [image.getvalue() for image in images]).shape[1:])
    if made != shape:
        told, wanted = ("x".join(map(str, one)) for one in (made, shape))
        raise DataError(f"expected an image processor that makes images of {wanted}, got {told}")


def checked_image(data: bytes, where: str) -> bytes:
    """`data` if it is an image. Raises DataError, with the place."""
    try:
        with pillow().open(io.BytesIO(data)) as image:
            image.load()
    except DataError:
        raise
    except Exception as error:  # decoders raise whatever they come to
        raise DataError(f"expected an image at {where}, got {first_line(error)}") from error
    return data


def pillow() -> Any:
    """The package that reads images. Raises DataError where it is not installed."""
    try:
        from PIL import Image
    except ImportError:
        raise DataError(
            "expected the package pillow, to read images, got none: pip install 'secateurs[images]'"
        ) from None
    return Image
