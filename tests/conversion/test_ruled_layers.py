"""Converted layers under attention rules: which operations run, and what is told of them."""

from __future__ import annotations

import pytest
import torch
from support.models import answer, relative
from support.plans import PLANS
from support.tiny_models import CAUSAL_FAMILIES, tiny_model

from secateurs import AttentionRuleMask, HeadMask, SparsityPlan, apply, convert, explain, load, ops
from secateurs import save as save_model
from secateurs.cli import main as cli
from secateurs.conversion import transformers_attention
from secateurs.plan.attention_rules import Dense, Local, Sinks, Strided

NAME = "layers.0.attention_rules"


def rules(*rules):
    return SparsityPlan({NAME: AttentionRuleMask(rules)})


def long_batch(tokens, batch=2):
    ids = torch.randint(3, 100, (batch, tokens), generator=torch.Generator().manual_seed(tokens))
    mask = torch.ones_like(ids)
    mask[0, tokens - tokens // 3 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("tokens", [63, 64, 65, 150])
def test_lengths_around_a_block(family, tokens):
    model = tiny_model(family)
    plan = rules(Local(3), Sinks(2) | Local(0), Dense(), Strided(5))
    batch = long_batch(tokens)
    want = answer(apply(model, plan), batch)
    assert relative(answer(convert(model, plan), batch), want) < 1e-5
    assert relative(want, answer(model, batch)) > 1e-3


def test_heads_that_are_sliced_take_their_rules_with_them():
    model, batch = tiny_model("bert"), long_batch(20)
    heads = {"layers.0.heads": HeadMask(torch.tensor([False, True, False, True]))}
    plan = rules(Dense(), Local(1), Dense(), Sinks(2)).merge(SparsityPlan(heads))
    fast = convert(model, plan)
    assert fast.encoder.layer[0].attention.rules == (Local(1), Sinks(2))
    assert relative(answer(fast, batch), answer(apply(model, plan), batch)) < 1e-5
    dense = rules(Local(1), Dense(), Local(2), Dense()).merge(SparsityPlan(heads))
    assert convert(model, dense).encoder.layer[0].attention.rules is None


def test_explain_says_which_head_sees_what():
    plan = rules(Local(1), Dense(), Local(1), Sinks(4))
    plan = plan.merge(
        SparsityPlan({"layers.0.heads": HeadMask(torch.tensor([True, False, True, True]))})
    )
    reports = {r.site: r for r in explain(convert(tiny_model("bert"), plan))}
    assert reports[NAME].action == "restricted"
    assert reports[NAME].reason == "Local(window=1) at heads 0, 2; Sinks(n=4) at head 3"
    layer = reports["layers.0.layer"]
    assert (layer.action, layer.reason) == (
        "in parts", "no kernel computes a whole layer under attention rules"
    )  # fmt: skip
    assert "layers.1.attention_rules" not in reports
    assert "attention rules" not in reports["layers.1.layer"].reason


def test_rules_run_as_blocks_of_scores(monkeypatch):
    fast, patterns = convert(tiny_model("bert"), rules(*[Local(1)] * 4)), []
    attention = ops.attention

    def watched(*args, pattern=None, **options):
        patterns.append(pattern)
        return attention(*args, pattern=pattern, **options)

    monkeypatch.setattr(transformers_attention.ops, "attention", watched)
    batch = long_batch(300)
    answer(fast, batch)
    ruled = [pattern for pattern in patterns if pattern is not None]
    assert len(ruled) == 1
    assert ruled[0].density < 0.6


@pytest.mark.parametrize("family", CAUSAL_FAMILIES)
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_a_cache(family, beams):
    changes = {"sliding_window": None} if family == "mistral" else {}
    model, plan = tiny_model(family, **changes), SparsityPlan(PLANS["attention rules"])
    prompt = torch.randint(3, 100, (2, 6), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(prompt)
    mask[1, :2] = 0  # left padding
    options = {
        "attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0,
        "num_beams": beams, "output_logits": True, "return_dict_in_generate": True,
    }  # fmt: skip
    want = apply(model, plan).generate(prompt, **options)
    got = convert(model, plan).generate(prompt, **options)
    assert torch.equal(got.sequences, want.sequences)
    assert relative(torch.stack(got.logits), torch.stack(want.logits)) < 1e-4


def test_rules_survive_casts_and_files(tmp_path):
    model, plan, batch = tiny_model("bert"), rules(*[Local(1), Sinks(1)] * 2), long_batch(11)
    fast = convert(model, plan)
    want = answer(fast, batch)
    save_model(fast, tmp_path / "m")
    again = load(tmp_path / "m")
    assert torch.equal(answer(again, batch), want)
    assert again.encoder.layer[0].attention.rules == plan.masks[NAME].rules
    assert relative(answer(fast.double().float(), batch), want) < 1e-5


@pytest.mark.parametrize("ruled", [True, False])
def test_an_explicit_mask_says_it_all_to_a_decoder(ruled):
    """It lets the first five tokens see each other in both directions."""
    model, ids = tiny_model("llama"), torch.randint(3, 100, (2, 9))
    plan = rules(*[Local(3)] * 4) if ruled else SparsityPlan()
    mask = torch.ones(9, 9).tril().bool()
    mask[:5, :5] = True
    inputs = {"input_ids": ids, "attention_mask": mask.expand(2, 1, 9, 9), "use_cache": False}
    with torch.no_grad():
        want, got = apply(model, plan)(**inputs).logits, convert(model, plan)(**inputs).logits
        causal = apply(model, plan)(input_ids=ids).logits
    assert relative(got, want) < 1e-5
    assert relative(causal[:, :4], want[:, :4]) > 1e-2


def test_inspect_prints_the_rules(tmp_path, capsys):
    save_model(convert(tiny_model("bert"), rules(*[Local(1), Sinks(1)] * 2)), tmp_path / "m")
    assert cli.main(["inspect", str(tmp_path / "m")]) == 0
    assert "Local(window=1) at heads 0, 2; Sinks(n=1) at heads 1, 3" in capsys.readouterr().out


def test_gradients_reach_the_inputs_under_rules():
    fast = convert(tiny_model("bert"), rules(*[Local(1)] * 4).merge(
        SparsityPlan({f"layers.{i}.attention_rules": AttentionRuleMask([Local(1)] * 4)
                      for i in (1, 2)})
    ))  # fmt: skip
    states = torch.randn(1, 9, 64, requires_grad=True)
    fast(inputs_embeds=states)[0][0, 0].sum().backward()
    reach = states.grad.abs().sum(-1)[0]
    assert bool((reach[:4] > 0).all())
    assert not bool(reach[4:].any())  # three layers of one step each
