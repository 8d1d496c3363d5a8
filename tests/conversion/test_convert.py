"""convert(m, p) computes what apply(m, p) computes: the invariant of the project."""

from __future__ import annotations

import copy

import pytest
import torch
from support.models import answer, cache_name, relative
from support.plans import PLANS, blocks, gone, skip_unless_followed
from support.tiny_models import CAUSAL_FAMILIES, tiny_model

from secateurs import (
    BlockMask,
    HeadMask,
    SecateursError,
    SparsityPlan,
    apply,
    convert,
    explain,
    find_sites,
    prune,
    use_backend,
)
from secateurs.errors import FamilyError, PlanError


@pytest.fixture(params=[name.replace(" ", "-") for name in PLANS])
def plan(request: pytest.FixtureRequest) -> SparsityPlan:
    return SparsityPlan(PLANS[request.param.replace("-", " ")])


@pytest.mark.parametrize("padded", [True, False])
def test_converted_equals_masked(model, batch, plan, padded):
    skip_unless_followed(model, plan.masks)
    if not padded:
        batch.pop("attention_mask", None)
    before = copy.deepcopy(model.state_dict())
    want = answer(apply(model, plan), batch)
    assert relative(answer(convert(model, plan), batch), want) < 1e-5
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_reference_backend_agrees(model, batch, plan):
    skip_unless_followed(model, plan.masks)
    want = answer(apply(model, plan), batch)
    fast = convert(model, plan)
    with use_backend("reference"):
        assert relative(answer(fast, batch), want) < 1e-5


def test_where_no_kernel_runs_the_linears_stay_dense_and_say_so():
    model = tiny_model("bert").bfloat16()
    plan = SparsityPlan({"layers.0.up": blocks(3, 6, 4)})
    with use_backend("reference"):
        fast = convert(model, plan)
    report = {r.site: r for r in explain(fast)}["layers.0.up"]
    assert report.action == "torch"
    assert "no kernel for block-sparse" in report.reason
    assert "reference is forced" in report.reason


def test_a_plan_changes_what_the_model_says(model, batch):
    """Otherwise the comparisons above would compare a model with itself."""
    plan = SparsityPlan(PLANS["uneven"])
    assert relative(answer(apply(model, plan), batch), answer(model, batch)) > 1e-3


def test_hidden_states_are_returned(batch):
    model, plan = tiny_model("bert"), SparsityPlan(PLANS["uneven"])
    want = apply(model, plan)(**batch, output_hidden_states=True).hidden_states
    got = convert(model, plan)(**batch, output_hidden_states=True).hidden_states
    assert len(got) == len(want) == 4
    keep = batch["attention_mask"].bool()
    for a, b in zip(got, want, strict=True):
        assert relative(a[keep], b[keep]) < 1e-5


@pytest.mark.parametrize("family", CAUSAL_FAMILIES)
@pytest.mark.parametrize("cache", ["dynamic", "static", "beams"])
@pytest.mark.parametrize("name", ["uneven", "no heads in the first layer", "no middle layer"])
def test_generation_with_a_cache(name, cache, family):
    model, plan = tiny_model(family), SparsityPlan(PLANS[name])
    prompt = torch.randint(3, 100, (2, 6), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(prompt)
    mask[1, :2] = 0  # left padding
    options = {
        "attention_mask": mask,
        "max_new_tokens": 8,
        "do_sample": False,
        "pad_token_id": 0,
        **({"num_beams": 3} if cache == "beams" else {"cache_implementation": cache}),
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    want = apply(model, plan).generate(prompt, **options)
    got = convert(model, plan).generate(prompt, **options)
    assert torch.equal(got.sequences, want.sequences)
    assert relative(torch.stack(got.logits), torch.stack(want.logits)) < 1e-4


def test_chunked_prefill_with_a_cache_sees_the_past():
    model, plan = tiny_model("llama"), SparsityPlan(PLANS["uneven"])
    fast, tokens = convert(model, plan), torch.randint(3, 100, (2, 12))
    with torch.no_grad():
        whole = apply(model, plan)(tokens).logits
        first = fast(tokens[:, :5], use_cache=True)
        name = cache_name(fast)
        second = fast(tokens[:, 5:], **{name: getattr(first, name)})
    assert relative(torch.cat([first.logits, second.logits], 1), whole) < 1e-5


def test_an_explicit_mask_is_obeyed(batch):
    model, plan = tiny_model("bert"), SparsityPlan(PLANS["uneven"])
    mask = torch.rand(3, 1, 9, 9, generator=torch.Generator().manual_seed(3)) < 0.7
    mask |= torch.eye(9).bool()
    inputs = {"input_ids": batch["input_ids"], "attention_mask": mask}
    with torch.no_grad():
        want = apply(model, plan)(**inputs)[0]
        assert relative(convert(model, plan)(**inputs)[0], want) < 1e-5


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu", "quick_gelu"])
def test_every_activation_fused_or_not(batch, activation):
    model = tiny_model("bert", hidden_act=activation)
    plan = SparsityPlan(PLANS["uneven"])
    want = answer(apply(model, plan), batch)
    assert relative(answer(convert(model, plan), batch), want) < 1e-5


@pytest.mark.parametrize("family", ["bert", "llama", "vit"], indirect=True)
@pytest.mark.parametrize("name", ["empty", "uneven", "blocks", "attention rules"])
def test_bfloat16(model, batch, name):
    plan = SparsityPlan(PLANS[name])
    want = answer(apply(model, plan), batch)
    fast = convert(model.bfloat16(), plan)
    given = {k: v.bfloat16() if v.is_floating_point() else v for k, v in batch.items()}
    assert relative(answer(fast, given).float(), want) < 5e-2
    actions = {report.site: report.action for report in explain(fast)}
    assert actions["layers.2.output"] == "dense panels"
    assert actions["layers.1.up"] == ("block-sparse" if name == "blocks" else "dense panels")


def test_explain_says_what_was_done_and_why():
    model = tiny_model("bert")
    masks = {
        **PLANS["no heads in a layer"],
        **PLANS["no ffn in the last layer"],
        "layers.0.up": blocks(3, 6, 4),
        "layers.0.query": BlockMask(torch.ones(4, 4).bool(), (16, 16)),
    }
    reports = {r.site: r for r in explain(convert(model, SparsityPlan(masks)))}
    assert reports["layers.1.attention"].action == "removed"
    assert "output bias stays" in reports["layers.1.attention"].reason
    assert reports["layers.2.ffn"].action == "removed"
    assert reports["layers.0.up"].action == "block-sparse"
    assert "break-even" in reports["layers.0.query+key+value"].reason
    assert "layers.0.up" in str(explain(convert(model, SparsityPlan(masks))))


def test_explain_refuses_a_stock_model():
    with pytest.raises(PlanError, match="made by secateurs"):
        explain(tiny_model("bert"))


@pytest.mark.parametrize("verb", [apply, convert])
def test_bad_plans_and_weights_leave_the_model_unchanged(verb):
    model = tiny_model("bert")
    state = copy.deepcopy(model.state_dict())
    other = prune(
        tiny_model("bert", intermediate_size=64), method="random", budget="heads=0.5", seed=0
    )
    for plan in (other, SparsityPlan({"layers.0.heads": HeadMask(gone(5))})):
        with pytest.raises(PlanError):
            verb(model, plan, inplace=True)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    with torch.no_grad():
        find_sites(model) and model.encoder.layer[1].output.dense.weight[3, 4].fill_(float("nan"))
    with pytest.raises(SecateursError, match=r"layer\.1\.output\.dense\.weight holds NaN"):
        verb(model, SparsityPlan())


def test_inplace_returns_the_model_itself():
    model = tiny_model("bert")
    assert convert(model, SparsityPlan(), inplace=True) is model


def test_a_model_caps_its_scores_under_our_attention_too(batch):
    model, uncapped = tiny_model("gemma2"), tiny_model("gemma2")
    for layer in uncapped.model.layers:
        layer.self_attn.attn_logit_softcapping = None
    want = answer(model, batch)
    assert relative(answer(uncapped, batch), want) > 1e-3
    fast = convert(model, SparsityPlan())  # registers the attention
    assert relative(answer(fast, batch), want) < 1e-5
    report = {r.site: r for r in explain(fast)}["layers.0.scores"]
    assert report.reason == "scores are capped at 0.5, which no kernel does"
    model.set_attn_implementation("secateurs")
    assert relative(answer(model, batch), want) < 1e-5
    assert relative(answer(convert(model, SparsityPlan()), batch), want) < 1e-5


def test_a_cap_that_transformers_leaves_out_is_refused():
    model = tiny_model("gemma2")
    model.config._attn_implementation = "sdpa"
    with pytest.raises(FamilyError, match="expected attn_implementation='eager' of a model that"):
        convert(model, SparsityPlan())


def test_dropout_in_the_registered_attention_is_refused():
    convert(tiny_model("bert"), SparsityPlan())  # registers the attention
    model = tiny_model("bert")
    model.set_attn_implementation("secateurs")
    ids = torch.ones(1, 4, dtype=torch.long)
    want = tiny_model("bert")(ids)[0]
    assert relative(model(ids)[0].detach(), want.detach()) < 1e-5
    with pytest.raises(SecateursError, match="without dropout"):
        model.train()(ids)
