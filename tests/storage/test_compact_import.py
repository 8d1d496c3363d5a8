"""convert_compact: models of export_compact, trained at their small size, converted again."""

from __future__ import annotations

import pytest
import torch
from support.models import answer, relative
from support.plans import PLANS
from support.tiny_models import tiny_model

from secateurs import (
    HeadMask,
    SparsityPlan,
    convert,
    convert_compact,
    export_compact,
    load,
    save,
)
from secateurs.errors import PlanError
from secateurs.plan.quantization import Levels

UNEVEN = SparsityPlan(PLANS["uneven"])


def trained(compact, batch):
    """One step on all weights that have a gradient."""
    optimizer = torch.optim.SGD(compact.train().parameters(), lr=0.05)
    compact(**batch)[0].square().mean().backward()
    optimizer.step()
    return compact.eval()


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2", "t5", "qwen2"], indirect=True)
def test_it_computes_what_the_trained_model_does_and_saves(model, batch, family, tmp_path):
    fast = convert(model, UNEVEN)
    compact = export_compact(fast)
    assert relative(answer(convert_compact(compact), batch), answer(fast, batch)) < 1e-5
    if family in ("qwen2", "t5"):
        return  # their copies, or their zeros, would be trained apart
    trained(compact, batch)
    again = convert_compact(compact)
    wanted = answer(compact, batch)
    assert relative(answer(again, batch), wanted) < 1e-5
    assert relative(answer(fast, batch), wanted) > 1e-3
    save(again, tmp_path)
    assert torch.equal(answer(load(tmp_path), batch), answer(again, batch))


def test_copies_of_a_head_that_training_made_differ_are_refused(batch):
    model = tiny_model("llama", num_attention_heads=4, num_key_value_heads=2)
    plan = SparsityPlan({"layers.1.heads": HeadMask(torch.tensor([1, 0, 1, 1]).bool())})
    compact = export_compact(convert(model, plan))
    convert_compact(compact)
    compact.model.layers[1].self_attn.k_proj.weight.data[-1] += 1
    with pytest.raises(PlanError, match="equal copies of each shared head in key"):
        convert_compact(compact)


@pytest.mark.parametrize("plan", [SparsityPlan(PLANS["blocks"]), "levels"])
def test_weights_that_left_their_mask_or_levels_are_refused(plan, batch):
    if plan == "levels":
        plan = SparsityPlan({}, levels={"layers.0.up": Levels(4, 0.05)})
    compact = export_compact(convert(tiny_model("bert"), plan))
    convert_compact(compact)
    trained(compact, batch)
    with pytest.raises(PlanError, match="under its mask and on its levels"):
        convert_compact(compact)


def test_models_of_other_makers_are_refused():
    with pytest.raises(PlanError, match=r"made by secateurs\.export_compact, got BertModel"):
        convert_compact(tiny_model("bert"))
    compact = export_compact(convert(tiny_model("bert"), UNEVEN))
    query = compact.encoder.layer[0].attention.self
    query.query = torch.nn.Linear(64, 17)
    with pytest.raises(PlanError, match=r"query of shape \(48, 64\), as export_compact made it"):
        convert_compact(compact)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # asked by peft
def test_adapters_are_merged_first():
    peft = pytest.importorskip("peft")
    compact = export_compact(convert(tiny_model("bert"), UNEVEN))
    settings = peft.LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False)
    adapted = peft.get_peft_model(compact, settings)
    with pytest.raises(PlanError, match="merge adapters first"):
        convert_compact(adapted.get_base_model())
    ids = {"input_ids": torch.arange(3, 12)[None]}
    wanted = answer(adapted.eval(), ids)
    merged = convert_compact(adapted.merge_and_unload())
    assert relative(answer(merged, ids), wanted) < 1e-5
