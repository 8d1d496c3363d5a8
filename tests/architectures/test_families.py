"""The contract on families that are one record each: one test that goes the whole way."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.models import answer, relative
from support.plans import PLANS
from support.tiny_models import (
    RECORD_FAMILIES,
    TEXT_FAMILIES,
    TWO_STACKS,
    tiny_batch,
    tiny_model,
)
from torch import nn
from transformers import (
    CLIPConfig,
    DebertaV2Config,
    DPRConfig,
    LiltConfig,
    LiltModel,
    LongformerConfig,
    MixtralConfig,
    PhiConfig,
    SwinConfig,
)

from secateurs import (
    BlockMask,
    Gates,
    HeadMask,
    SparsityPlan,
    apply,
    convert,
    export_compact,
    export_dense,
    find_sites,
    load,
    prune,
    refit,
    register_architecture,
    save,
)
from secateurs.architectures.records import ARCHITECTURES
from secateurs.architectures.records.bert import BERT
from secateurs.architectures.records.vision import DINOV2, EARLIER_DINOV2
from secateurs.conversion.proof import observe
from secateurs.errors import FamilyError

OPTIONS = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}


@pytest.mark.parametrize("kind", RECORD_FAMILIES)
def test_a_family_keeps_the_whole_contract(kind, tmp_path):
    model = tiny_model(kind)
    batch, batches = tiny_batch(model), [tiny_batch(model, seed=seed) for seed in range(2, 6)]
    budget = "heads=0.5,neurons=0.5"
    chosen = prune(model, method="gradient", budget=budget, batches=batches, progress=False)
    magnitude = prune(model, method="magnitude", budget=budget)
    want = answer(apply(model, magnitude), batch)
    assert relative(answer(convert(model, magnitude), batch), want) < 1e-5
    whole = answer(model, batch)
    for plan in (chosen, SparsityPlan(PLANS["no heads in the first layer"])):
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
        tokens, got = (m.generate(prompt, **OPTIONS) for m in (apply(model, plan), fast))
        assert torch.equal(got, tokens)
    fitted = refit(model, chosen, batches, progress=False)
    off = [
        relative(answer(apply(m, chosen), b), answer(model, b))
        for b in batches
        for m in (model, fitted)
    ]
    assert sum(off[1::2]) < sum(off[::2])
    want = answer(apply(fitted, chosen), batch)
    assert relative(answer(convert(fitted, chosen), batch), want) < 1e-5


@pytest.mark.parametrize("kind", ["mpnet", "modernbert", "phi3", "gpt_neox", "beit"])
def test_what_is_left_of_fused_and_biased_layers_is_exported_small(kind):
    model = tiny_model(kind)
    grid = torch.ones(6, 4).bool()
    grid[::2, 1:] = False
    plan = SparsityPlan({**PLANS["uneven"], "layers.1.up": BlockMask(grid, (16, 16))})
    batch = tiny_batch(model)
    want, fast = answer(apply(model, plan), batch), convert(model, plan)
    with Gates(model, find_sites(model)) as gates:
        gates.set_plan(plan)
        assert relative(answer(model, batch), want) < 1e-5
    assert relative(answer(fast, batch), want) < 1e-5
    assert relative(answer(export_compact(fast), batch), want) < 1e-5
    assert relative(answer(fast.to(torch.bfloat16).float(), batch), want) < 0.1


def test_a_fit_counts_the_factors_of_channels():
    """Whether a factor, negative or nothing for some channels, stands behind a projection or is
    multiplied into it, the fitted models compute the same."""
    models = [tiny_model("dinov2") for _ in range(2)]
    factor = torch.linspace(-1.5, 2, 64)
    factor[3] = 0
    with torch.no_grad():
        for apart, within in zip(*(model.encoder.layer for model in models), strict=True):
            for part, sublayer in enumerate(find_sites(models[0]).architecture.sublayers):
                getattr(apart, f"layer_scale{part + 1}").lambda1.copy_(factor)
                getattr(within, f"layer_scale{part + 1}").lambda1.fill_(1)
                last = within.get_submodule(sublayer.last.path)
                last.weight.mul_(factor[:, None])
                last.bias.mul_(factor)
    plan = prune(models[0], method="random", budget="heads=0.5,neurons=0.5", seed=3)
    batches = [tiny_batch(models[0], seed=seed) for seed in range(2, 20)]
    apart, within = (refit(model, plan, batches, progress=False) for model in models)
    want = answer(apply(within, plan), batches[0])
    assert relative(want, answer(apply(models[1], plan), batches[0])) > 1e-2
    assert relative(answer(apply(apart, plan), batches[0]), want) < 1e-4


@torch.no_grad()
def test_a_fit_stands_in_front_of_the_norms_of_their_outputs():
    """What a norm stands behind is fitted to what it gives in the dense model, by least squares."""
    model = tiny_model("gemma3_text")
    plan = SparsityPlan({"layers.0.heads": HeadMask(torch.tensor([True, False, True, True]))})
    batches = [tiny_batch(model, seed=seed) for seed in range(2, 12)]
    read, given = [], []
    linear = model.model.layers[0].self_attn.o_proj

    def keep(_, args, output):
        read.append(args[0].flatten(0, 1))
        given.append(output.flatten(0, 1))

    hook = linear.register_forward_hook(keep)
    for batch in batches:
        model(**batch)
    hook.remove()
    real = torch.cat([batch["attention_mask"].flatten().bool() for batch in batches])
    kept = torch.arange(64).view(4, 16)[[0, 2, 3]].flatten()
    features, wanted = (torch.cat(part)[real].double() for part in (read, given))
    best = torch.linalg.lstsq(features[:, kept], wanted).solution.T
    fitted = refit(model, plan, batches, ridge=0.0, progress=False)
    weight = fitted.model.layers[0].self_attn.o_proj.weight[:, kept].double()
    torch.testing.assert_close(weight, best, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text"])
def test_a_changed_eps_of_inner_norms_is_kept(kind, tmp_path):
    model = tiny_model(kind)
    fast = convert(model, SparsityPlan(PLANS["uneven"]))
    for layer in fast.model.layers:
        behind = (layer.attention_scale, layer.ffn_scale) if kind == "gemma3_text" else ()
        for norm in (*layer.head_norms, *behind):
            setattr(norm, "eps" if hasattr(norm, "eps") else "variance_epsilon", 0.5)
    want = answer(fast, tiny_batch(model))
    save(fast, tmp_path / "m")
    assert torch.equal(answer(load(tmp_path / "m"), tiny_batch(model)), want)


def test_models_of_sound_are_proven_on_frames_of_which_some_are_padding():
    model = tiny_model("wav2vec2")
    seen = []
    hook = model.encoder.register_forward_pre_hook(
        lambda _, args, named: seen.append((args[0].shape[1], named.get("attention_mask"))),
        with_kwargs=True,
    )
    observe(model, find_sites(model), SparsityPlan())
    hook.remove()
    assert [frames for frames, _ in seen] == [6, 6]
    assert seen[0][1] is None
    assert seen[1][1].sum(1).tolist() == [4, 6]


def test_every_record_is_that_of_a_tiny_model():
    kinds = (*TEXT_FAMILIES, "vit", *RECORD_FAMILIES, *TWO_STACKS)
    tested = {find_sites(tiny_model(kind)).architecture for kind in kinds}
    known = {record for records in ARCHITECTURES.values() for record in records}
    dinov2 = [DINOV2, EARLIER_DINOV2]  # of one transformers each
    assert len(known - tested) == len(dinov2)
    assert {record.named("dinov2") for record in known - tested} < set(dinov2)


IN_THE_WAY = {
    "windows": (SwinConfig(), "'swin': its attention runs in windows"),
    "global tokens": (LongformerConfig(), "'longformer': its attention has linears of its own"),
    "disentangled": (DebertaV2Config(), "'deberta-v2': its attention is disentangled"),
    "experts": (MixtralConfig(), "'mixtral': its feed-forward networks are a mixture of experts"),
    "two stacks": (CLIPConfig(), "'clip': it has two stacks of layers"),
    "nothing there": (DPRConfig(), "'dpr': its layers are made of other parts"),
}


class Bare(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config


@pytest.mark.parametrize("case", IN_THE_WAY)
def test_what_is_in_the_way_of_a_family_is_said(case):
    config, told = IN_THE_WAY[case]
    with pytest.raises(FamilyError, match=told):
        find_sites(Bare(config))


def test_layers_with_more_parts_than_those_of_a_family_are_not_like_them():
    sizes = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.device("meta"):
        model = LiltModel(LiltConfig(**sizes))
    with pytest.raises(FamilyError, match="'lilt': its layers are made of other parts"):
        find_sites(model)


def test_a_config_that_asks_for_other_layers_is_refused_by_name():
    config = PhiConfig(qk_layernorm=True, hidden_size=48, num_attention_heads=2)
    with pytest.raises(FamilyError, match=r"phi with config\.qk_layernorm=False, got True"):
        find_sites(Bare(config))


@pytest.fixture
def forget():
    """A function that takes a kind's record away; all are back afterwards, in their order."""
    known = dict(ARCHITECTURES)
    yield ARCHITECTURES.pop
    ARCHITECTURES.clear()
    ARCHITECTURES.update(known)


@pytest.mark.parametrize(
    ("kind", "like"), [("ernie", "bert"), ("smollm3", "llama"), ("marian", "bart")]
)
def test_an_unknown_kind_is_registered_as_the_sentence_says(forget, kind, like):
    forget(kind)
    model = tiny_model(kind)
    with pytest.raises(FamilyError, match=rf"register_architecture\('{kind}', like='{like}'\)"):
        find_sites(model)
    register_architecture(kind, like)
    assert find_sites(model).architecture == ARCHITECTURES[like][0].named(kind)
    convert(model, SparsityPlan())


def test_a_record_of_ones_own_is_registered_once(forget):
    forget("camembert")
    register_architecture("camembert", like=replace(BERT, norm_first=True))
    with pytest.raises(FamilyError, match="does not compute what the stock layer does"):
        convert(tiny_model("camembert"), SparsityPlan())
    with pytest.raises(FamilyError, match="without a record, got 'camembert'"):
        register_architecture("camembert", like="bert")
    with pytest.raises(FamilyError, match="known kind of model as like, got 'brt'"):
        register_architecture("hers", like="brt")
