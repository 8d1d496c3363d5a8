"""export_compact: stock models of smaller linears, which compute what converted ones do."""

from __future__ import annotations

import pytest
import torch
from support.models import answer, relative
from support.plans import PLANS, RULED, skip_unless_followed
from support.tiny_models import CAUSAL_FAMILIES, tiny_model
from torch import nn

from secateurs import HeadMask, SparsityPlan, apply, convert, export_compact
from secateurs.errors import CheckpointError, PlanError
from secateurs.plan.quantization import Levels

UNEVEN = SparsityPlan(PLANS["uneven"])


@pytest.mark.parametrize("name", [name for name in PLANS if name not in RULED])
def test_it_computes_what_the_masked_model_does(model, batch, name):
    skip_unless_followed(model, PLANS[name])
    plan = SparsityPlan(PLANS[name])
    compact = export_compact(convert(model, plan))
    assert type(compact) is type(model)
    assert not compact.training
    ours = [type(m) for m in compact.modules() if type(m).__module__.startswith("secateurs")]
    assert not ours
    assert compact.config._attn_implementation == model.config._attn_implementation
    assert relative(answer(compact, batch), answer(apply(model, plan), batch)) < 1e-5


def test_linears_have_the_sizes_that_are_left():
    compact = export_compact(convert(tiny_model("bert"), UNEVEN))
    first, second, third = compact.encoder.layer
    assert first.attention.self.query.weight.shape == (48, 64)
    assert second.attention.self.query.weight.shape == (16, 64)
    assert second.attention.output.dense.weight.shape == (64, 16)
    assert first.intermediate.dense.weight.shape == (32, 64)
    assert third.output.dense.weight.shape == (64, 1)
    for module in compact.modules():
        if isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == tuple(module.weight.shape)


@pytest.mark.parametrize(
    ("heads", "copies"),
    [
        ([1, 0, 1, 1], 3),
        ([1, 0, 0, 1], 2),
        ([0, 0, 1, 1], 1),
        ([0, 0, 0, 0], 1),
        ([1, 1, 1, 1, 0, 0, 1, 0], 5),
    ],
)
def test_shared_heads_whose_groups_are_uneven_get_copies(heads, copies, batch):
    """Two key/value heads, for two or four query heads each."""
    model = tiny_model("llama", num_attention_heads=len(heads), num_key_value_heads=2)
    plan = SparsityPlan({"layers.1.heads": HeadMask(torch.tensor(heads).bool())})
    compact = export_compact(convert(model, plan))
    attention = compact.model.layers[1].self_attn
    assert len(attention.k_proj.weight) == 64 // len(heads) * copies
    assert relative(answer(compact, batch), answer(apply(model, plan), batch)) < 1e-5


@pytest.mark.parametrize("family", CAUSAL_FAMILIES)
def test_generation_is_the_masked_models(family):
    model = tiny_model(family)
    ids = torch.randint(3, 100, (2, 6), generator=torch.Generator().manual_seed(0))
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    wanted = apply(model, UNEVEN).generate(ids, **options)
    assert torch.equal(export_compact(convert(model, UNEVEN)).generate(ids, **options), wanted)


def test_levels_are_the_values_they_stand_for(batch):
    model, plan = tiny_model("bert"), SparsityPlan({}, levels={"layers.0.up": Levels(4, 0.05)})
    compact = export_compact(convert(model, plan))
    assert relative(answer(compact, batch), answer(apply(model, plan), batch)) < 1e-5


def test_it_trains_at_its_small_size(batch):
    fast = convert(tiny_model("bert"), UNEVEN)
    before, compact = answer(fast, batch), export_compact(fast).train()
    optimizer = torch.optim.SGD(compact.parameters(), lr=1e-2)
    compact(**batch)[0].square().mean().backward()
    missing = [n for n, p in compact.named_parameters() if p.grad is None]
    assert all("pooler" in name for name in missing)
    optimizer.step()
    assert torch.equal(answer(fast, batch), before), "it shares no memory with the converted model"
    assert not torch.allclose(answer(compact.eval(), batch), before)


@pytest.mark.parametrize("family", ["bert", "vit", "llama"], indirect=True)
def test_torch_export_takes_it(model, batch, family):
    options = {"use_cache": False} if family in CAUSAL_FAMILIES else {}
    compact = export_compact(convert(model, UNEVEN))
    program = torch.export.export(compact, (), {**batch, **options})
    assert not [str(n.target) for n in program.graph.nodes if "secateurs" in str(n.target)]
    assert relative(answer(program.module(), {**batch, **options}), answer(compact, batch)) < 1e-6


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")  # torch's own
def test_onnx_runtime_computes_the_same(batch, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    compact = export_compact(convert(tiny_model("bert"), UNEVEN))
    torch.onnx.export(compact, (), tmp_path / "m.onnx", kwargs=batch, dynamo=True)
    session = runtime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    got = session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})[0]
    real = batch["attention_mask"].bool()
    assert relative(torch.from_numpy(got)[real], answer(compact, batch)) < 1e-5


def test_no_folder_of_it_is_opened_as_another_model(tmp_path):
    compact = export_compact(convert(tiny_model("bert"), UNEVEN))
    compact.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="mismatch"):
        type(compact).from_pretrained(tmp_path)


@pytest.mark.parametrize("name", RULED)
def test_attention_rules_are_refused(name):
    with pytest.raises(CheckpointError, match="attention_rules hides keys"):
        export_compact(convert(tiny_model("bert"), SparsityPlan(PLANS[name])))


def test_a_dense_model_is_refused():
    with pytest.raises(PlanError, match=r"made by secateurs\.convert"):
        export_compact(tiny_model("bert"))
