"""A model of images: no tokens, no mask, norms in front."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from models import answer, relative
from torch import Tensor, nn
from training import optimizer, steps
from transformers import ViTConfig, ViTForImageClassification

import secateurs as sc
from secateurs import cli
from secateurs.pruning import Needs
from secateurs.session import Session

BUDGETS = {
    "heads": "heads=0.5",
    "neurons": "neurons=0.5",
    "modules": "modules=0.34",
    "blocks": "blocks=0.5,block=16",
    "weights": "weights=0.5",
    "patterns": "patterns=0.5,vector=16",
}
CASES = [(row.name, kind) for row in sc.METHODS.values() for kind in sorted(row.produces)]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=24,
        patch_size=8,
        num_labels=3,
    )
    model = ViTForImageClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


@pytest.fixture
def images() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)
    return {"pixel_values": torch.randn(4, 3, 24, 24, generator=random)}


@pytest.mark.parametrize(("method", "kind"), CASES)
def test_every_method_prunes_images_and_the_plan_converts(method, kind, model, images, tmp_path):
    batches = [{**images, "labels": torch.tensor([0, 1, 2, 1])}] * 3
    if Needs.TRAINING in sc.METHODS[method].needs:
        with Session(model, method, budget=BUDGETS[kind], steps=12) as session:
            for _ in steps(session, optimizer(session), batches, 12):
                pass
        plan = session.plan
        model.eval()
    else:
        plan = sc.prune(model, batches, method=method, budget=BUDGETS[kind])
    dense, masked = answer(model, images), answer(sc.apply(model, plan), images)
    assert relative(masked, dense) > 1e-3, "the plan removes something"
    fast = sc.convert(model, plan)
    assert relative(answer(fast, images), masked) < 1e-5
    sc.save(fast, tmp_path / "pruned")
    assert torch.equal(answer(sc.load(tmp_path / "pruned"), images), answer(fast, images))


def test_a_pruned_model_recovers_and_compiles(model, images):
    plan = sc.prune(model, [images], method="gradient", budget="heads=0.5,neurons=0.5")
    before = sc.apply(model, plan)
    after = sc.apply(sc.distill(model, plan, [images], steps=20, progress=False), plan)
    dense = answer(model, images)
    assert relative(answer(after, images), dense) < relative(answer(before, images), dense)
    fast = sc.convert(model, plan)
    compiled = torch.compile(copy.deepcopy(fast), fullgraph=True, backend="eager")
    assert relative(answer(compiled, images), answer(fast, images)) < 1e-5


def test_the_command_line_prunes_and_measures_images(model, tmp_path, capsys):
    dense, out, told = tmp_path / "dense", tmp_path / "pruned", tmp_path / "told.json"
    model.save_pretrained(dense)
    prune = ["prune", "--model", dense, "--out", out, "--method", "magnitude"]
    measure = ["measure", out, "--baseline", dense, "--min-time", "0.01", "--shapes"]
    assert run(*prune, "--budget", "heads=0.5") == 0
    assert run(*measure, "2x10", "--json", told) == 0
    assert json.loads(told.read_text())["rows"][1]["shape"] == [2, 10]
    capsys.readouterr()
    assert run(*measure, "2x128") != 0
    assert "expected 10 tokens, the patches of an image, got 128" in capsys.readouterr().err


def run(*arguments: object) -> int:
    return cli.main([*map(str, arguments), "--no-progress"])
