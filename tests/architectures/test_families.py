"""The contract on families that are one record each: one test that goes the whole way."""

from __future__ import annotations

import pytest
import torch
from support.models import answer, relative
from support.plans import PLANS
from support.tiny_models import RECORD_FAMILIES, TEXT_FAMILIES, tiny_batch, tiny_model

from secateurs import (
    SparsityPlan,
    apply,
    convert,
    export_dense,
    find_sites,
    load,
    prune,
    refit,
    save,
)
from secateurs.architectures.records import ARCHITECTURES

OPTIONS = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}


@pytest.mark.parametrize("kind", RECORD_FAMILIES)
def test_a_family_keeps_the_whole_contract(kind, tmp_path):
    model = tiny_model(kind)
    batch, batches = tiny_batch(model), [tiny_batch(model, seed=seed) for seed in range(2, 6)]
    budget = "heads=0.5,neurons=0.5"
    chosen = prune(model, method="gradient", budget=budget, batches=batches, progress=False)
    magnitude = prune(model, method="magnitude", budget=budget)
    whole = answer(model, batch)
    for plan in (chosen, magnitude, SparsityPlan(PLANS["no heads in the first layer"])):
        want = answer(apply(model, plan), batch)
        assert relative(want, whole) > 1e-3
        fast = convert(model, plan)
        assert relative(answer(fast, batch), want) < 1e-5
        save(fast, tmp_path / "m")
        again = load(tmp_path / "m")
        assert type(again) is type(fast)
        assert torch.equal(answer(again, batch), answer(fast, batch))
        dense = export_dense(fast)
        assert relative(answer(dense, batch), want) < 1e-5
        dense.save_pretrained(tmp_path / "dense")
        stock = type(model).from_pretrained(tmp_path / "dense").eval()
        assert relative(answer(stock, batch), want) < 1e-5
        if model.can_generate():
            prompt = torch.randint(3, 100, (2, 6), generator=torch.Generator().manual_seed(2))
            want, got = (m.generate(prompt, **OPTIONS) for m in (apply(model, plan), fast))
            assert torch.equal(got, want)
    fitted = refit(model, chosen, batches, progress=False)
    off = [
        relative(answer(apply(m, chosen), b), answer(model, b))
        for b in batches
        for m in (model, fitted)
    ]
    assert sum(off[1::2]) < sum(off[::2])
    want = answer(apply(fitted, chosen), batch)
    assert relative(answer(convert(fitted, chosen), batch), want) < 1e-5


def test_every_record_is_that_of_a_tiny_model():
    kinds = (*TEXT_FAMILIES, "vit", *RECORD_FAMILIES)
    tested = {find_sites(tiny_model(kind)).architecture for kind in kinds}
    assert tested == {record for records in ARCHITECTURES.values() for record in records}
