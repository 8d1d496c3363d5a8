"""Images in tests: a tiny model of them, and folders and tars of three colours."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

from PIL import Image

from support.tiny_models import tiny_model

COLOURS = {"blue": (0, 0, 200), "green": (0, 180, 0), "red": (220, 0, 0)}


def image(colour: str, number: int = 0, size: tuple[int, int] = (9, 7)) -> bytes:
    """A PNG whose red tells its number."""
    red, green, blue = COLOURS[colour]
    file = io.BytesIO()
    Image.new("RGB", size, (red + number, green, blue)).save(file, "PNG")
    return file.getvalue()


def image_folder(path: Path, each: int = 4) -> Path:
    """Images of mixed sizes: the training part as a folder, the validation part as a tar."""
    for colour in COLOURS:
        (path / "train" / colour).mkdir(parents=True)
        for number in range(each):
            data = image(colour, number, (9 + number, 7))
            (path / "train" / colour / f"{number}.png").write_bytes(data)
    files = {f"test/{colour}/{n}.png": image(colour, n) for colour in COLOURS for n in range(2)}
    return tar(path / "test_6.tar.gz", files).parent


def tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def vit_folder(path: Path) -> Path:
    """A tiny ViT with a head for three classes, and its image processor."""
    model = tiny_model("vit")
    model.config.num_labels = len(COLOURS)
    side = model.config.image_size
    type(model)(model.config).save_pretrained(path)
    settings = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "do_rescale": True,
        "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2,
        "rescale_factor": 1 / 255, "size": {"height": side, "width": side},
    }  # fmt: skip
    (path / "preprocessor_config.json").write_text(json.dumps(settings))
    return path
