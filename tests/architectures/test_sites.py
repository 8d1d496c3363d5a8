from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.tiny_models import tiny_model
from torch import nn
from transformers import BertConfig, BertModel, LongformerConfig, LongformerModel

from secateurs import BlockMask, HeadMask, ModuleMask, NeuronMask, SparsityPlan, convert, find_sites
from secateurs.architectures.records import ARCHITECTURES
from secateurs.architectures.records.seq2seq import BART
from secateurs.errors import FamilyError


def test_every_family_has_the_same_sites(model):
    sites = find_sites(model)
    names = [site.name for site in sites]
    assert len(names) == len(set(names))
    for part in ("heads", "neurons", "attention", "ffn", "layer", "query", "output", "down"):
        assert f"layers.2.{part}" in names
    for site in sites.of_kind("linear"):
        linear = sites.linear(model, site.layer, site.name.rsplit(".", 1)[1])
        assert tuple(linear.weight.shape) == site.shape


def test_shapes_are_read_off_the_model():
    shape = find_sites(tiny_model("llama")).layers[0]
    assert (shape.heads, shape.kv_heads, shape.group, shape.head_dim) == (4, 2, 2, 16)
    assert (shape.neurons, shape.hidden, shape.gated) == (96, 64, True)


def test_a_key_value_head_stays_while_one_query_head_of_its_group_does():
    sites = find_sites(tiny_model("llama"))
    keep = sites.keep(
        SparsityPlan({"layers.0.heads": HeadMask(torch.tensor([False, False, False, True]))}), 0
    )
    assert keep.kv_heads.tolist() == [False, True]
    assert keep.kv_of.tolist() == [0]
    rows, _ = keep.sides("key")
    assert rows.nonzero().flatten().tolist() == list(range(16, 32))


def test_parameters_and_macs_count_what_stays():
    sites = find_sites(tiny_model("bert"))
    masks = {
        "layers.0.heads": HeadMask(torch.tensor([True, False, True, True])),
        "layers.0.neurons": NeuronMask(torch.arange(96) < 24),
        "layers.1.ffn": ModuleMask(torch.tensor(False)),
        "layers.2.layer": ModuleMask(torch.tensor(False)),
    }
    plan = SparsityPlan(masks)
    attention, ffn = 4 * 64 * 64, 2 * 64 * 96
    kept = 3 * attention // 4 + ffn // 4 + attention
    assert sum(sites.keep(plan, i).parameters() for i in range(3)) == kept
    assert sites.keep(plan, 0).macs(10) == 3 * attention // 4 + ffn // 4 + 2 * 10 * 3 * 16
    density = sites.density(plan, seq_len=10)
    assert density["heads"] == pytest.approx(7 / 12)
    assert density["neurons"] == pytest.approx(24 / 288)
    assert density["modules"] == pytest.approx(3 / 6)
    assert density["parameters"] == pytest.approx(kept / (3 * (attention + ffn)))


def test_blocks_and_heads_are_not_counted_twice():
    sites = find_sites(tiny_model("bert"))
    grid = torch.ones(4, 4).bool()
    grid[0] = False  # the 16 rows of head 0
    both = SparsityPlan(
        {
            "layers.0.query": BlockMask(grid, (16, 16)),
            "layers.0.heads": HeadMask(torch.arange(4) > 0),
        }
    )
    heads = SparsityPlan({"layers.0.heads": both.masks["layers.0.heads"]})
    assert sites.keep(both, 0).parameters() == sites.keep(heads, 0).parameters()


def test_unknown_and_unsuitable_models_are_refused(monkeypatch):
    tiny = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with pytest.raises(FamilyError, match="got 'longformer'"):
        find_sites(LongformerModel(LongformerConfig(**tiny)))
    with monkeypatch.context() as patch:
        patch.setitem(ARCHITECTURES, "bart", (replace(BART, decoder=None),))
        with pytest.raises(FamilyError, match="got BartForConditionalGeneration, which has both"):
            find_sites(tiny_model("bart"))
    with pytest.raises(FamilyError, match="got 'Linear'"):
        find_sites(nn.Linear(2, 2))
    config = BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        is_decoder=True,
    )
    with pytest.raises(FamilyError, match="is_decoder"):
        find_sites(BertModel(config))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 0}, "expected layers at encoder.layer, got an empty list"),
        ({"intermediate_size": 0}, "expected neurons in every layer, got none in layer 0"),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_model_with_nothing_to_lose_is_refused(changes, words):
    with pytest.raises(FamilyError, match=words):
        find_sites(tiny_model("bert", **changes))


def test_a_converted_model_is_not_pruned_again():
    with pytest.raises(FamilyError, match="converted model cannot be pruned again"):
        find_sites(convert(tiny_model("bert"), SparsityPlan()))
