"""The masked model under attention rules, against BERT in float64 one query at a time."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from support import oracles
from support.models import answer, cache_name, relative
from support.tiny_models import CAUSAL_FAMILIES, tiny_model

from secateurs import (
    AttentionRuleMask,
    HeadMask,
    ModuleMask,
    SparsityPlan,
    apply,
    convert,
    find_sites,
    prune,
    save,
    use_backend,
)
from secateurs.errors import FamilyError, OperandError, PlanError
from secateurs.plan.attention_rules import Dense, Global, Local, Sinks, Strided

# By layer, for each head: the rule, and what it says of a query at i and a key at j.
RULES = [
    [
        (Local(1), lambda i, j: abs(i - j) <= 1),
        (Dense(), lambda i, j: True),
        (Sinks(2), lambda i, j: j < 2),
        (Strided(3) | Global(1), lambda i, j: (i - j) % 3 == 0 or i < 1 or j < 1),
    ],
    [
        (Dense(), lambda i, j: True),
        (Local(4) & Strided(2), lambda i, j: abs(i - j) <= 4 and (i - j) % 2 == 0),
        (Sinks(0), lambda i, j: False),
        (Local(0), lambda i, j: i == j),
    ],
]
GONE = [[1], [0, 3]]  # heads that the plan removes as well


def plan(removed: bool = True) -> SparsityPlan:
    masks = {
        f"layers.{layer}.attention_rules": AttentionRuleMask([rule for rule, _ in rules])
        for layer, rules in enumerate(RULES)
    }
    for layer, heads in enumerate(GONE if removed else []):
        keep = torch.ones(4).bool()
        keep[heads] = False
        masks[f"layers.{layer}.heads"] = HeadMask(keep)
    return SparsityPlan(masks)


def oracle(model, batch, removed):
    """The states of the last layer of a BERT of three layers, of which two are ruled, in
    float64."""
    model = copy.deepcopy(model).double()
    with torch.no_grad():
        states = np.asarray(model.embeddings(batch["input_ids"]))
    tokens = states.shape[1]

    def linear(x, module):
        return x @ np.asarray(module.weight.detach()).T + np.asarray(module.bias.detach())

    def norm(x, module):
        held = (np.asarray(p.detach()) for p in (module.weight, module.bias))
        return oracles.add_norm(x, None, *held, module.eps, rms=False)[1]

    for index, layer in enumerate(model.encoder.layer):
        attention = layer.attention.self
        q, k, v = (
            linear(states, module).reshape(*states.shape[:2], 4, 16).swapaxes(1, 2)
            for module in (attention.query, attention.key, attention.value)
        )
        says = [says for _, says in RULES[index]] if index < 2 else [lambda i, j: True] * 4
        mask = [[[bool(s(i, j)) for j in range(tokens)] for i in range(tokens)] for s in says]
        seen = batch["attention_mask"].bool()
        context = oracles.attention(q, k, v, key_mask=seen, mask=np.array([mask]))
        if removed and index < 2:
            context[:, :, GONE[index]] = 0
        context = context.reshape(states.shape)
        output = layer.attention.output
        states = norm(states + linear(context, output.dense), output.LayerNorm)
        hidden = oracles.activate("gelu", linear(states, layer.intermediate.dense))
        states = norm(states + linear(hidden, layer.output.dense), layer.output.LayerNorm)
    return states


def padded(batch: int, tokens: int) -> dict[str, torch.Tensor]:
    """Sequences padded behind, in front, and not at all."""
    random = torch.Generator().manual_seed(tokens)
    mask = torch.ones(batch, tokens, dtype=torch.long)
    mask[0, tokens // 2 :] = 0
    mask[-1, : tokens // 3] = 0  # hides the sinks
    return {
        "input_ids": torch.randint(3, 100, (batch, tokens), generator=random),
        "attention_mask": mask,
    }


@pytest.mark.parametrize("removed", [True, False], ids=["heads removed", "all heads"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("tokens", [2, 9, 23])
def test_the_masked_model_is_bert_with_rules(tokens, implementation, removed):
    model, batch = tiny_model("bert"), padded(3, tokens)
    want = oracle(model, batch, removed)
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        got = apply(model, plan(removed)).double()(**batch)[0]
        fast = convert(model, plan(removed))(**batch)[0]
    # Padded queries have a state as well: what is attended to must be finite, and it is the same.
    assert oracles.relative_error(got, want) < 1e-12
    assert oracles.relative_error(fast, want) < 1e-6


def test_without_padding_the_model_makes_no_mask():
    model, batch = tiny_model("bert"), padded(3, 11)
    batch["attention_mask"][:] = 1
    want = oracle(model, batch, True)
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            got = apply(model, plan()).double()(input_ids=batch["input_ids"])[0]
        assert oracles.relative_error(got, want) < 1e-12


@pytest.mark.parametrize("family", CAUSAL_FAMILIES)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_decoder_stays_causal(family, implementation):
    model = tiny_model(family)
    model.set_attn_implementation(implementation)
    masked = apply(model, plan())
    ids = torch.randint(3, 100, (2, 12), generator=torch.Generator().manual_seed(4))
    changed = ids.clone()
    changed[:, 8:] = 5
    with torch.no_grad():
        first, second, dense = (m(i).logits for m, i in
                                ((masked, ids), (masked, changed), (model, ids)))  # fmt: skip
    assert relative(first[:, :8], second[:, :8]) < 1e-5
    assert relative(first[:, 8:], dense[:, 8:]) > 1e-2


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_cache_moves_the_queries_along(family, implementation):
    model = tiny_model(family)
    model.set_attn_implementation(implementation)
    masked = apply(model, plan())
    ids = torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        want = masked(ids, use_cache=False).logits
        pieces, cache = [], None
        for piece in ids.split([4, 1, 3, 1], 1):
            out = masked(piece, use_cache=True, **{cache_name(masked): cache})
            cache = getattr(out, cache_name(masked))
            pieces.append(out.logits)
    assert relative(torch.cat(pieces, 1), want) < 1e-5


@pytest.mark.parametrize("verb", [apply, convert])
def test_caches_whose_keys_stand_elsewhere_are_refused(verb):
    prompt = torch.randint(3, 100, (1, 6))
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    model, windowed = (verb(tiny_model(family), plan()) for family in ("llama", "mistral"))
    with pytest.raises(OperandError, match=r"grows with its keys .*, got a StaticCache"):
        model.generate(prompt, cache_implementation="static", **options)
    with pytest.raises(OperandError, match="the keys of all 7 tokens under attention rules, got 5"):
        windowed.generate(prompt, **options)


@pytest.mark.parametrize("lowest", [None, torch.finfo(torch.float32).min, -torch.inf])
@pytest.mark.parametrize("family", ["bert", "t5"])
def test_an_explicit_mask_is_obeyed(family, lowest):
    model = tiny_model(family)
    if not model._supports_sdpa:
        pytest.skip("layers of this T5 take no mask each")
    mask = torch.rand(3, 1, 9, 9, generator=torch.Generator().manual_seed(3)) < 0.6
    if lowest is not None:
        mask = torch.randn(3, 1, 9, 9).masked_fill(~mask, lowest)
    inputs = {"input_ids": padded(3, 9)["input_ids"], "attention_mask": mask}
    masked, fast = apply(model, plan()), convert(model, plan())
    with torch.no_grad():
        want = masked(**inputs)[0]
        assert relative(fast(**inputs)[0], want) < 1e-5
        with use_backend("reference"):
            assert relative(fast(**inputs)[0], want) < 1e-5
        assert relative(want, model(**inputs)[0]) > 1e-2


def test_copies_pickles_and_threads_follow_the_rules():
    model, batch = tiny_model("bert"), padded(3, 9)
    masked = apply(model, plan())
    want = answer(masked, batch)
    assert relative(want, answer(apply(model, SparsityPlan()), batch)) > 1e-2
    assert torch.equal(answer(copy.deepcopy(masked), batch), want)
    assert torch.equal(answer(pickle.loads(pickle.dumps(masked)), batch), want)
    batches = [padded(2 + i % 3, 9 + i) for i in range(12)]
    alone = [answer(masked, b) for b in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda b: answer(masked, b), batches))
    assert all(map(torch.equal, alone, together))


def test_rules_on_top_of_rules_allow_what_both_allow():
    model, batch = tiny_model("bert"), padded(3, 9)
    other = SparsityPlan({"layers.0.attention_rules": AttentionRuleMask([Local(2)] * 4)})
    want = answer(apply(model, plan().merge(other)), batch)
    assert relative(answer(apply(apply(model, plan()), other), batch), want) < 1e-6


def test_rules_that_hide_nothing_leave_no_hook():
    model = tiny_model("bert")
    none = {
        "layers.0.attention_rules": AttentionRuleMask([Dense()] * 4),
        "layers.1.attention_rules": AttentionRuleMask([Local(1), Dense(), Dense(), Dense()]),
        "layers.1.heads": HeadMask(torch.tensor([False, True, True, True])),
        "layers.2.attention_rules": AttentionRuleMask([Local(1)] * 4),
        "layers.2.attention": ModuleMask(torch.tensor(False)),
    }
    masked = apply(model, SparsityPlan(none))
    assert not any(m._forward_pre_hooks for m in masked.modules())
    assert "save_pretrained" not in vars(masked)


def test_macs_count_the_keys_that_are_seen():
    sites = find_sites(tiny_model("bert"))
    rules = {"layers.0.attention_rules": AttentionRuleMask([Local(1), Dense(), Sinks(2), Dense()])}
    heads = {"layers.0.heads": HeadMask(torch.tensor([True, True, True, False]))}
    keep = sites.keep(SparsityPlan({**rules, **heads}), 0)
    pairs = (10 + 2 * 9) + 10 * 10 + 2 * 10
    assert keep.macs(10) == keep.parameters() + 2 * 16 * pairs // 10


def test_no_method_makes_rules():
    made = prune(tiny_model("bert"), method="magnitude", budget="heads=0.5,neurons=0.5")
    assert not any("rules" in name for name in made.masks)


def test_what_weights_cannot_hold_is_not_saved_as_if_they_did(tmp_path):
    masked = apply(tiny_model("roberta"), plan())
    for part in (masked, masked.roberta):
        with pytest.raises(PlanError, match="which no stock file holds: save the plan"):
            part.save_pretrained(tmp_path)
    with pytest.raises(PlanError, match="made by secateurs"):
        save(masked, tmp_path)
    assert not list(tmp_path.iterdir())
    apply(tiny_model("bert"), SparsityPlan()).save_pretrained(tmp_path)


def test_a_masked_model_is_not_converted_without_its_rules():
    with pytest.raises(FamilyError, match=r"the hook RuledAttention\.restrict; convert would lose"):
        convert(apply(tiny_model("bert"), plan()), SparsityPlan())


@pytest.mark.parametrize("verb", [apply, convert])
def test_models_that_cannot_follow_rules_are_refused_unchanged(verb, monkeypatch):
    model = tiny_model("t5")
    monkeypatch.setattr(type(model), "_supports_sdpa", False)
    with pytest.raises(FamilyError, match="whose layers each take a mask, but T5EncoderModel"):
        verb(model, plan(), inplace=True)
    model = tiny_model("bert")
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(FamilyError, match="'eager' or 'sdpa' under attention rules, got 'flex_"):
        verb(model, plan(), inplace=True)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_another_attention_is_refused_when_it_is_set_later():
    masked = apply(tiny_model("bert"), plan())
    convert(tiny_model("bert"), SparsityPlan())  # registers ours
    masked.set_attn_implementation("secateurs")
    with pytest.raises(FamilyError, match="'eager' or 'sdpa' under attention rules, got 'secateu"):
        masked(**padded(2, 5))
