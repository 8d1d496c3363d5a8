"""A model of images on the command line: pruned on images without labels, measured, exported, and
opened by a pipeline."""

from __future__ import annotations

import io
import json

import pytest
import torch
import transformers

pytest.importorskip("PIL")
from cli.conftest import run
from PIL import Image
from support.images import image, image_folder, vit_folder

from secateurs import Budget, HeadMask, find_sites, load, prune
from secateurs.conversion.report import conversion_of
from secateurs.data.images import image_batches, read_images
from secateurs.storage.model_folders import open_image_processor, open_model

HALF = "heads=0.5,neurons=0.5"


@pytest.fixture
def vit(tmp_path):
    torch.manual_seed(0)
    return vit_folder(tmp_path / "vit")


@pytest.fixture
def photos(tmp_path):
    return image_folder(tmp_path / "photos") / "train"


@pytest.mark.filterwarnings("ignore")
def test_images_without_labels_decide_and_a_pipeline_opens_the_result(vit, photos, tmp_path):
    out = tmp_path / "out"
    arguments = ("--method", "obs", "--budget", HALF, "--images", photos, "--examples", 8)
    assert run("prune", "--model", vit, "--out", out, *arguments, "--batch-size", 3) == 0
    made = load(out)
    batches = image_batches(open_image_processor(vit), read_images(photos, 8), 3)
    dense = open_model(vit)
    plan = prune(dense, batches, method="obs", budget=Budget.of(HALF), progress=False)
    found = conversion_of(made).plan
    assert found.masks.keys() == plan.masks.keys()
    for name, mask in plan.masks.items():
        if isinstance(mask, HeadMask):
            assert torch.equal(mask.keep, found.masks[name].keep)
    classify = transformers.pipeline("image-classification", str(out))
    answers = classify(Image.open(io.BytesIO(image("red"))))
    pixels = image_batches(open_image_processor(vit), [image("red")], 1)[0]
    scores = made(**pixels).logits.softmax(-1)[0]
    assert answers[0]["score"] == pytest.approx(float(scores.max()), abs=1e-6)


@pytest.mark.usefixtures("made_up_times")
def test_a_time_is_met_at_the_tokens_that_images_have(vit, photos, tmp_path, capsys):
    out, told = tmp_path / "out", tmp_path / "told.json"
    arguments = ("--speedup", 2, "--images", photos, "--batch-size", 4, "--json", told)
    assert run("prune", "--model", vit, "--out", out, *arguments) == 0
    assert json.loads(told.read_text())["speedup"] >= 2
    assert "| 8x10 |" in (out / "README.md").read_text()
    frontier = tmp_path / "frontier"
    arguments = ("--speedups", 2, "--images", photos, "--batch-size", 4, "--no-models")
    assert run("frontier", "--model", vit, "--out", frontier, *arguments, "--peers") == 0
    assert (frontier / "frontier.png").is_file()
    capsys.readouterr()
    measured = ("--baseline", vit, "--images", photos, "--min-time", 0.01)
    assert run("measure", out, *measured, "--json", told) == 0
    result = json.loads(told.read_text())
    assert {tuple(row["shape"]) for row in result["rows"]} == {(1, 10), (8, 10)}
    assert 0 < result["cosine"]["mean"] <= 1


def test_what_makes_inputs_is_kept_without_data_too(vit, folder, tmp_path):
    arguments = ("--method", "magnitude", "--budget", HALF)
    for model, name in ((vit, "preprocessor_config.json"), (folder, "tokenizer.json")):
        out = tmp_path / f"{model.name}-out"
        assert run("prune", "--model", model, "--out", out, *arguments) == 0
        assert (out / name).is_file()


@pytest.mark.parametrize(
    ("model", "words", "told"),
    [
        ("folder", ["--images", "photos/train"], "expected a model of images in"),
        ("vit", ["--text", "text.txt"], "expected a tokenizer in"),
        ("vit", ["--images", "nowhere"], "expected a folder or a tar of images in nowhere"),
        (
            "vit",
            ["--images", "photos/train", "--max-length", 9],
            "--max-length only with --text or",
        ),
    ],
)
def test_other_data_are_refused(
    vit, folder, photos, text, tmp_path, monkeypatch, capsys, model, words, told
):
    monkeypatch.chdir(tmp_path)
    arguments = ("--method", "obs", "--budget", HALF, *words)
    where = {"folder": folder, "vit": vit}[model]
    assert run("prune", "--model", where, "--out", "out", *arguments) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore")  # of torch's own
def test_an_image_model_is_exported_for_any_number_of_images(vit, photos, tmp_path, capsys):
    out, told = tmp_path / "out", tmp_path / "told.json"
    arguments = ("--method", "obs", "--budget", HALF, "--images", photos, "--examples", 8)
    assert run("prune", "--model", vit, "--out", out, *arguments) == 0
    made = tmp_path / "made"
    export = ("export", out, "--to", "torch", "--min-time", 0.01, "--json", told)
    assert run(*export, "--out", made, "--shapes", "2x9") == 2
    assert "expected 10 tokens, those of an input of its size, got 9" in capsys.readouterr().err
    assert not made.exists()
    assert run(*export, "--out", made) == 0
    result = json.loads(told.read_text())
    assert [row["shape"] for row in result["rows"]] == [[1, 10], [8, 10]]
    assert (made / "preprocessor_config.json").is_file()
    pixels = torch.randn(5, 3, 24, 24)
    program = torch.export.load(made / result["file"]).module()
    torch.testing.assert_close(
        program(pixel_values=pixels), load(out)(pixel_values=pixels).logits, atol=1e-4, rtol=1e-4
    )
    assert len(find_sites(open_model(vit)).layers) == 3
