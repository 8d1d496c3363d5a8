"""Images that decide: files at any depth of a folder or a tar, drawn at random, and what is
refused."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("PIL")
from support.images import COLOURS, image, tar, vit_folder

from secateurs.data import images as module
from secateurs.data.images import image_batches, pixel_values, read_images
from secateurs.errors import DataError
from secateurs.storage.model_folders import open_image_processor

FILES = {
    f"{folder}{colour}{number}.png": image(colour, number)
    for folder in ("", "deep/", "deep/er/")
    for colour in COLOURS
    for number in range(2)
}


@pytest.fixture(params=["folder", "tar"])
def place(request, tmp_path):
    if request.param == "tar":
        return tar(tmp_path / "images.tar.gz", FILES)
    for name, data in FILES.items():
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "images"


def test_all_images_are_read_where_there_are_no_more(place):
    assert sorted(read_images(place, 100)) == sorted(FILES.values())


def test_of_more_images_some_are_drawn_by_the_seed(place):
    drawn = [read_images(place, 5, seed) for seed in (0, 0, 1)]
    assert [len(some) for some in drawn] == [5, 5, 5]
    assert drawn[0] == drawn[1] != drawn[2]
    names = [[name for name, data in FILES.items() if data in some] for some in drawn]
    assert len({name.rpartition("/")[0] for name in names[0]}) > 1  # not the first ones


def test_batches_hold_the_pixels_of_all(place, tmp_path):
    processor = open_image_processor(vit_folder(tmp_path / "vit"))
    found = read_images(place, 7)
    batches = image_batches(processor, found, 3)
    assert [len(batch["pixel_values"]) for batch in batches] == [3, 3, 1]
    together = torch.cat([batch["pixel_values"] for batch in batches])
    assert torch.equal(together, pixel_values(processor, found))


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("notes.txt", b"none", "expected an image at .*notes.txt"),
        ("cut.png", image("red")[:40], "expected an image at .*cut.png"),
        ("large.png", b"0" * 3000, "expected images in .*large.png"),
    ],
)
def test_other_files_are_refused(place, monkeypatch, name, data, words, tmp_path):
    monkeypatch.setattr(module, "MOST_BYTES", 2000)
    if place.is_dir():
        (place / name).write_bytes(data)
    else:
        place = tar(tmp_path / "more.tar", {**FILES, name: data})
    with pytest.raises(DataError, match=words):
        read_images(place, 100)


def test_no_images_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"expected images in .*empty, got none"):
        read_images(tmp_path / "empty", 3)
    with pytest.raises(DataError, match=r"expected a folder or a tar of images in .*nothing"):
        read_images(tmp_path / "nothing", 3)
