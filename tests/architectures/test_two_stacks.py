"""The contract on families with an encoder and a decoder."""

from __future__ import annotations

import pytest
import torch
from support.models import relative
from support.tiny_models import TWO_STACKS, tiny_batch, tiny_model
from support.training import optimizer, steps
from torch import Tensor, nn

from secateurs import (
    HeadMask,
    ModuleMask,
    NeuronMask,
    Session,
    SparsityPlan,
    apply,
    compress,
    convert,
    export_compact,
    export_dense,
    find_sites,
    load,
    prune,
    save,
)
from secateurs.data.batches import token_weights
from secateurs.errors import FamilyError, OperandError
from secateurs.pruning.activations import units_read

OPTIONS = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


def uneven(model: nn.Module) -> SparsityPlan:
    """A plan that empties or removes a sub-layer of each kind."""
    sites = find_sites(model).by_name
    empty = {
        "decoder.layers.1.neurons": NeuronMask,
        "decoder.layers.2.heads": HeadMask,
        "decoder.layers.2.cross_attention.heads": HeadMask,
        "encoder.layers.1.layer": ModuleMask,
        "decoder.layers.0.attention": ModuleMask,
        "decoder.layers.1.cross_attention": ModuleMask,
    }
    masks = {name: kind(torch.zeros(sites[name].shape).bool()) for name, kind in empty.items()}
    half = HeadMask(torch.tensor([False, True, False, True]))
    return SparsityPlan({**masks, "encoder.layers.0.heads": half})


def prompt(model: nn.Module) -> dict[str, Tensor]:
    """What an encoder reads."""
    return {n: x for n, x in tiny_batch(model).items() if not n.startswith("decoder")}


@pytest.mark.parametrize("kind", TWO_STACKS)
def test_a_family_of_two_stacks_keeps_the_whole_contract(kind, tmp_path):
    model = tiny_model(kind)
    batch, batches = tiny_batch(model), [tiny_batch(model, seed=seed) for seed in (2, 3)]
    budget = "heads=0.5,neurons=0.5"
    chosen = prune(model, method="gradient", budget=budget, batches=batches, progress=False)
    whole = model(**batch).logits
    for plan in (chosen, uneven(model)):
        masked, fast = apply(model, plan), convert(model, plan)
        want = masked(**batch).logits
        assert relative(want, whole) > 1e-3
        assert relative(fast(**batch).logits, want) < 1e-5
        for beams in (1, 3):
            tokens, got = (
                m.generate(**prompt(model), **OPTIONS, num_beams=beams) for m in (masked, fast)
            )
            assert torch.equal(got, tokens)
        save(fast, tmp_path / "m")
        again = load(tmp_path / "m")
        assert type(again) is type(fast)
        assert torch.equal(again(**batch).logits, fast(**batch).logits)
        opened = type(model).from_pretrained(tmp_path / "m")
        assert torch.equal(opened(**batch).logits, fast(**batch).logits)
        assert relative(export_compact(fast)(**batch).logits, want) < 1e-5
        dense = export_dense(fast)
        assert relative(dense(**batch).logits, want) < 1e-5
    dense.save_pretrained(tmp_path / "dense")
    stock = type(model).from_pretrained(tmp_path / "dense").eval()
    assert relative(stock(**batch).logits, want) < 1e-5


def test_sites_say_which_stack_they_are_of():
    model = tiny_model("bart")
    sites = find_sites(model)
    names = [site.name for site in sites]
    assert len(names) == len(set(names))
    assert [stack.name for stack in sites.stacks] == ["encoder", "decoder"]
    for part in ("heads", "neurons", "attention", "ffn", "layer", "query"):
        assert {f"encoder.layers.1.{part}", f"decoder.layers.2.{part}"} < {*names}
    cross = [name for name in names if "cross_attention" in name]
    assert [name for name in cross if ".layers.0." in name] == [
        f"decoder.layers.0.cross_attention{part}"
        for part in (".heads", "", ".query", ".key", ".value", ".output")
    ]
    assert sites.by_name["decoder.layers.0.cross_attention.heads"].shape == (2,)
    for site in sites.of_kind("linear"):
        weight = sites.linear(model, site.layer, site.part).weight
        assert tuple(weight.shape) == site.shape


def test_macs_and_heads_of_cross_attention_count():
    sites = find_sites(tiny_model("bart"))
    gone = {"decoder.layers.0.cross_attention.heads": HeadMask(torch.tensor([True, False]))}
    dense, less = (sites.keep(SparsityPlan(masks), 2) for masks in ({}, gone))
    assert dense.parameters() - less.parameters() == 4 * 32 * 64
    assert dense.macs(10) - less.macs(10) == 4 * 32 * 64 + 2 * 10 * 32
    assert sites.density(SparsityPlan(gone))["heads"] == pytest.approx(19 / 20)
    whole = {"decoder.layers.0.layer": ModuleMask(torch.tensor(False))}
    assert sites.density(SparsityPlan(whole))["modules"] == pytest.approx(10 / 13)


@pytest.mark.parametrize("kind", ["mbart", "whole t5"])
def test_padding_of_either_stack_and_a_static_cache_are_as_in_the_masked_model(kind):
    model = tiny_model(kind)
    batch = tiny_batch(model)
    seen = torch.ones_like(batch["decoder_input_ids"])
    seen[1, 4:] = 0
    masked, fast = apply(model, uneven(model)), convert(model, uneven(model))
    for mask in (seen, seen.flip(1)):
        padded = {**batch, "decoder_attention_mask": mask}
        want, got = (m(**padded).logits[mask.bool()] for m in (masked, fast))
        assert relative(got, want) < 1e-5
    static = {**OPTIONS, "cache_implementation": "static"}
    tokens, got = (m.generate(**prompt(model), **static) for m in (masked, fast))
    assert torch.equal(got, tokens)


def test_a_model_of_two_stacks_is_cast_and_coded_as_others_are():
    model = tiny_model("bart")
    plan, batch = uneven(model), tiny_batch(model)
    want = apply(model, plan)(**batch).logits
    half = convert(model, plan).to(torch.bfloat16)
    assert relative(half(**batch).logits, want) < 5e-2
    assert relative(half.float()(**batch).logits, want) < 5e-2
    coded = convert(model, plan, precision="int8")
    assert 0 < relative(coded(**batch).logits, want) < 0.1


LABELS = {"labels": torch.randint(3, 100, (3, 7), generator=torch.Generator().manual_seed(9))}


@pytest.mark.parametrize("method", ["random", "obs", "kprune", "gradient", "magnitude"])
def test_a_method_removes_what_the_budget_says_from_both_stacks(method):
    model = tiny_model("whole t5")  # which makes nothing for its decoder of other inputs
    batch = {**tiny_batch(model), **LABELS}
    del batch["decoder_input_ids"]
    plan = prune(model, method=method, budget="heads=0.5,neurons=0.25", batches=[batch])
    density = find_sites(model).density(plan)
    assert density["heads"] == 0.5
    assert density["neurons"] == pytest.approx(0.75, abs=0.002)
    assert any("cross_attention.heads" in name for name in plan.masks)


@pytest.mark.parametrize("method", ["dsp", "voita"])
def test_a_training_chooses_among_the_heads_of_both_stacks(method):
    model = tiny_model("marian")
    batch = {**tiny_batch(model), **LABELS}
    with Session(model, method, budget="heads=0.5", steps=3) as session:
        for _ in steps(session, optimizer(session), [batch], 3):
            pass
    plan = session.plan
    assert find_sites(model).density(plan)["heads"] == 0.5


def test_units_of_the_decoder_are_judged_on_its_own_real_tokens():
    """The masks of both stacks have one shape here, and say different things."""
    model = tiny_model("bart")
    batch = tiny_batch(model)
    batch |= {name: batch[name][:, :7] for name in ("input_ids", "attention_mask")}
    seen = torch.ones_like(batch["decoder_input_ids"])
    seen[0, 3:] = 0
    batch["decoder_attention_mask"] = seen
    counts = {}
    names = ("encoder.layers.0.heads", "decoder.layers.0.cross_attention.heads")
    with units_read(
        model, find_sites(model), names, batch, lambda n, x: counts.__setitem__(n, len(x))
    ):
        model(**batch)
    assert list(counts.values()) == [int(batch["attention_mask"].sum()), int(seen.sum())]
    assert torch.equal(token_weights(torch.zeros(3, 7, 5), batch)[..., 0], seen.float())


def test_what_walks_through_one_stack_refuses_two():
    model = tiny_model("bart")
    batches = [{**tiny_batch(model), **LABELS}]
    with pytest.raises(FamilyError, match="which is what compress can walk through, got bart"):
        compress(model, batches, "speedup=2", progress=False)
    with pytest.raises(FamilyError, match="which is what SMP can walk through"):
        prune(model, method="smp", budget="heads=0.5", batches=batches)
    with pytest.raises(FamilyError, match="layer-wise ADMM can walk through"):
        prune(model, method="layerwise_admm", budget="blocks=0.5", batches=batches)
    with (
        pytest.raises(FamilyError, match="SNIP can walk through"),
        Session(model, "snip_identity", budget="heads=0.5", steps=4),
    ):
        pass


def test_a_converted_decoder_needs_the_states_of_an_encoder():
    model = convert(tiny_model("bart"), SparsityPlan())
    with pytest.raises(OperandError, match="states of an encoder in a converted BartDecoderLayer"):
        model.get_decoder()(torch.tensor([[3, 4]]))


def test_a_plan_of_two_stacks_is_written_and_read(tmp_path):
    model = tiny_model("bart")
    plan = prune(model, method="magnitude", budget="heads=0.5")
    plan.save(tmp_path / "p.safetensors")
    again = SparsityPlan.load(tmp_path / "p.safetensors")
    assert again == plan
    assert again.model == find_sites(model).fingerprint()
