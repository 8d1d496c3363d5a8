"""Images with classes: folders and tars of them, and what is refused."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("PIL")
from support.images import COLOURS, image, image_folder, tar, vit_folder

from secateurs.data.images import check_size
from secateurs.data.tasks import find_task
from secateurs.errors import DataError
from secateurs.storage.model_folders import open_image_processor


@pytest.fixture
def folder(tmp_path):
    return image_folder(tmp_path / "colours")


def test_classes_are_folders_and_come_in_turns(folder):
    task = find_task("images:colours", folder.parent)
    assert (task.classes, task.labels) == (("blue", "green", "red"), 3)
    train = task.read("train", folder.parent)
    assert [row["label"] for row in train] == [0, 1, 2] * 4
    assert train[4]["image"] == image("green", 1, (10, 7))
    held_out = find_task("images", folder).read("validation", folder)
    assert [row["label"] for row in held_out] == [0, 1, 2] * 2
    assert held_out[3]["image"] == image("blue", 1)


def test_images_of_any_size_make_one_batch(folder, tmp_path):
    task = find_task("images", folder)
    processor = open_image_processor(vit_folder(tmp_path / "vit"))
    rows = task.read("train", folder)[:6]
    batch = task.collate(processor, task.encode(processor, rows, 0))
    assert batch["labels"].tolist() == [0, 1, 2] * 2
    for place, row in enumerate(rows):
        red, green, blue = (value / 255 * 2 - 1 for value in COLOURS[task.classes[row["label"]]])
        red += place // 3 / 255 * 2
        pixels = batch["pixel_values"][place]
        want = torch.tensor([red, green, blue])[:, None, None].expand(pixels.shape)
        torch.testing.assert_close(pixels, want, atol=1e-5, rtol=0)


def test_a_processor_must_make_what_the_model_takes(folder, tmp_path):
    processor = open_image_processor(vit_folder(tmp_path / "vit"))
    side = processor.size["height"]
    check_size(processor, (3, side, side))
    with pytest.raises(DataError, match=f"images of 3x8x8, got 3x{side}x{side}"):
        check_size(processor, (3, 8, 8))
    processor.do_resize = False
    with pytest.raises(DataError, match="cannot read images of 30x50, 48x40"):
        check_size(processor, (3, side, side))
    with pytest.raises(DataError, match="expected an image processor in"):
        open_image_processor(folder)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("train/blue/odd.png", b"no image", "expected an image at .*odd.png"),
        ("train/blue/odd.png", image("red")[:45], "expected an image at .*odd.png"),
        ("train/odd.png", image("red"), "as CLASS/NAME in .*train, got .*odd.png"),
        ("train/blue/more/odd.png", image("red"), "as CLASS/NAME in .*train, got .*odd.png"),
    ],
)
def test_what_is_no_image_of_a_class_is_refused(folder, name, data, words):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    with pytest.raises(DataError, match=words):
        find_task("images", folder).read("train", folder)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"test/pink/0.png": image("red")}, "classes out of .*blue, green, red.* got pink"),
        ({"0.png": image("red")}, r"as CLASS/NAME in .*test_6.tar.gz, got .*0.png"),
        ({}, "as CLASS/NAME in .*test_6.tar.gz, got none"),
    ],
)
def test_a_tar_must_hold_the_classes(folder, files, words):
    tar(folder / "test_6.tar.gz", files)
    with pytest.raises(DataError, match=words):
        find_task("images", folder).read("validation", folder)


def test_parts_that_are_not_there_are_refused(folder, tmp_path):
    task, path = find_task("images", folder), folder / "test_6.tar.gz"
    path.write_bytes(path.read_bytes()[:90])
    with pytest.raises(DataError, match="expected a folder or a tar of images in"):
        task.read("validation", folder)
    path.unlink()
    with pytest.raises(DataError, match=r"expected one file validation\*\.tar .* got 0"):
        task.read("validation", folder)
    with pytest.raises(DataError, match=r"expected one file train\*\.tar"):
        find_task("images", tmp_path)
    (tmp_path / "one" / "train" / "blue").mkdir(parents=True)
    (tmp_path / "one" / "train" / "blue" / "0.png").write_bytes(image("blue"))
    with pytest.raises(DataError, match="two classes or more"):
        find_task("images", tmp_path / "one")
    with pytest.raises(DataError, match="or a data set of the hub: images:NAME"):
        find_task("images")


def test_without_pillow_it_says_so(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r"expected the package pillow.*secateurs\[images\]"):
        find_task("images", folder).read("train", folder)


def test_the_hub_gives_its_files_as_they_are(monkeypatch):
    """A stand-in for `datasets` with no validation part."""

    class Column:
        def __init__(self, decode=True):
            self.decode = decode

    class Rows(list):
        features = {"img": Column(), "label": SimpleNamespace(names=["blue", "red"])}  # noqa: RUF012

        def cast_column(self, name, column):
            assert (name, column.decode) == ("img", False)
            return self

    def load_dataset(path, *, split):
        assert path == "somebody/colours"
        if split == "validation":
            raise ValueError("no such split")
        return Rows([{"img": {"bytes": image("red"), "path": None}, "label": label}])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    label = 1
    task = find_task("images:somebody/colours")
    assert task.classes == ("blue", "red")
    for split in ("train", "validation"):
        assert task.read(split) == [{"image": image("red"), "label": 1}]
    label = -1
    with pytest.raises(
        DataError, match="expected a class at images:somebody/colours train:0, got -1"
    ):
        task.read("train")
