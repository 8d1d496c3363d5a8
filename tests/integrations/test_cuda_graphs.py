"""Bucketed lengths: what a CUDA-graph runner does to shapes, run without the graph."""

from __future__ import annotations

import os

import pytest
import torch
from support.models import Prefers, relative
from support.tiny_models import CAUSAL_FAMILIES, TEXT_FAMILIES, tiny_model

from secateurs import HeadMask, SparsityPlan, apply, convert, prune
from secateurs.conversion.modules import SemiStructuredLinear
from secateurs.conversion.transformers_attention import NAME
from secateurs.errors import BackendError, DataError
from secateurs.integrations.cuda_graphs import Bucketed, capture
from secateurs.plan import BlockMask, NeuronMask

PLAN = SparsityPlan({"layers.0.heads": HeadMask(torch.tensor([True, False, True, True]))})


def eager(model, lengths):
    """A runner that calls the model where it would replay a graph, and counts its shapes."""
    return Bucketed(model, lambda _: lambda inputs: model(**inputs), lengths)


@pytest.mark.parametrize("family", TEXT_FAMILIES, indirect=True)
@pytest.mark.parametrize("length", [1, 5, 8, 9, 16])
def test_padded_runs_answer_like_the_model(model, family, length):
    model = convert(model, PLAN)
    options = {"use_cache": False} if family in CAUSAL_FAMILIES else {}
    runner = eager(model, (8, 16))
    ids = torch.randint(3, 100, (3, length))
    mask = torch.ones_like(ids)
    mask[1, length // 2 + 1 :] = 0
    with torch.no_grad():
        want = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, **options)
    got = runner(input_ids=ids, attention_mask=mask, output_hidden_states=True, **options)
    assert type(got) is type(want)
    assert got.keys() == want.keys()
    seen = mask.bool()
    for a, b in zip(got.hidden_states, want.hidden_states, strict=True):
        assert relative(a[seen], b[seen]) < 1e-5
    assert got[0].shape == want[0].shape
    whole = got[0].dim() == 2  # a classification of the whole sequence
    assert relative(got[0] if whole else got[0][seen], want[0] if whole else want[0][seen]) < 1e-5


def test_one_step_for_each_padded_shape():
    model = convert(tiny_model("bert"), PLAN)
    runner = eager(model, (8, 16))
    for batch, length in ((2, 3), (2, 7), (2, 8), (2, 9), (3, 3)):
        runner(input_ids=torch.randint(3, 100, (batch, length)))
    assert len(runner.steps) == 3


def test_a_pooled_output_as_wide_as_the_bucket_is_not_cut():
    model = convert(tiny_model("bert"), PLAN)  # hidden size 64
    got = eager(model, (64,))(input_ids=torch.randint(3, 100, (2, 5)))
    assert got.last_hidden_state.shape == (2, 5, 64)
    assert got.pooler_output.shape == (2, 64)


def test_without_a_mask_the_padding_is_hidden():
    model = convert(tiny_model("bert"), PLAN)
    ids = torch.randint(3, 100, (2, 5))
    with torch.no_grad():
        want = model(ids)[0]
    assert relative(eager(model, (16,))(input_ids=ids)[0], want) < 1e-5


def test_refusals():
    model = convert(tiny_model("llama"), PLAN)
    ids = torch.ones(1, 20, dtype=torch.long)
    with pytest.raises(BackendError, match=r"expected a model on a GPU .* got cpu"):
        capture(model, {"input_ids": ids})
    with pytest.raises(DataError, match="at most 16 tokens, got 20"):
        eager(model, (8, 16))(input_ids=ids)
    with pytest.raises(DataError, match=r"expected input_ids or inputs_embeds .* \['labels'\]"):
        eager(model, (8, 16))(labels=ids)
    with pytest.raises(DataError, match="use_cache=False"):
        eager(model, (32,))(input_ids=ids)
    with pytest.raises(DataError, match="lengths from 2"):
        eager(model, ())


def test_nothing_is_read_back_from_the_device(model, family, batch):
    """On the meta device a value that Python asks for raises: in a graph it would synchronise."""
    model = convert(model, PLAN).to("meta")
    if model.config._attn_implementation != NAME:
        pytest.skip("transformers keeps its own attention for this model, and reads the mask")
    options = {"use_cache": False} if family in CAUSAL_FAMILIES else {}
    inputs = {name: x.to("meta") for name, x in batch.items()}
    with torch.inference_mode():
        assert model(**inputs, **options)[0].device.type == "meta"


def need_gpu():
    """Skip where there is no GPU; SECATEURS_REQUIRE=cuda turns the skip into a failure."""
    if not torch.cuda.is_available():
        required = "cuda" in os.environ.get("SECATEURS_REQUIRE", "").split(",")
        (pytest.fail if required else pytest.skip)("no GPU here")


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_captured_on_a_gpu(kind):
    """Graphs of a converted model, replayed for sequences of other lengths and other contents,
    without waiting for the device."""
    need_gpu()
    plan = SparsityPlan(
        {
            **PLAN.masks,
            "layers.1.neurons": NeuronMask(torch.arange(256) % 2 == 0),
            "layers.2.down": BlockMask(torch.rand(4, 8) < 0.5, (32, 32)),
        }
    )
    dense = tiny_model(kind, hidden_size=128, intermediate_size=256)
    model = convert(dense.to("cuda", torch.bfloat16), plan)
    options = {"use_cache": False} if kind in CAUSAL_FAMILIES else {}

    def some_inputs(batch, length):
        ids = torch.randint(3, 100, (batch, length), device="cuda")
        mask = torch.ones_like(ids)
        mask[-1, length // 2 + 1 :] = 0
        return {"input_ids": ids, "attention_mask": mask, **options}

    runner = capture(model, some_inputs(3, 9), lengths=(16, 32))
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for batch, length in ((3, 9), (3, 16), (2, 20), (3, 5)):
        inputs = some_inputs(batch, length)
        with torch.no_grad():
            want = model(**inputs)[0].float()
            in_one_graph = compiled(**inputs)[0].float()
        got = runner(**inputs)[0]  # captures what is new
        torch.cuda.set_sync_debug_mode("error")
        try:
            got = runner(**inputs)[0]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        seen = inputs["attention_mask"].bool()
        assert got.shape == want.shape
        assert relative(got.float()[seen], want[seen]) < 2e-2
        assert relative(in_one_graph[seen], want[seen]) < 2e-2
    assert len(runner.steps) == 2


def test_two_of_four_by_cusparselt_captured_on_a_gpu():
    """2:4 linears as torch packs them, whatever form is fastest, alone and in a graph."""
    need_gpu()
    dense = tiny_model("bert", hidden_size=128, intermediate_size=256).to("cuda", torch.bfloat16)
    plan = prune(dense, method="magnitude", budget="patterns=0.5,pattern=2:4")
    model = convert(dense, plan, costs=Prefers("cuSPARSELt"))
    assert any(isinstance(part, SemiStructuredLinear) for part in model.modules())
    ids = torch.randint(3, 100, (8, 16), device="cuda")
    with torch.no_grad():
        want = apply(dense, plan)(ids)[0].float()
        assert relative(model(ids)[0].float(), want) < 2e-2
    runner = capture(model, {"input_ids": ids}, lengths=(16,))
    assert relative(runner(input_ids=ids)[0].float(), want) < 2e-2
