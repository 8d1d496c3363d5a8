"""A layer that a model runs again and again is fitted to all of its runs at once."""

from __future__ import annotations

import pytest
import torch
from support.tiny_models import tiny_batch, tiny_model
from transformers import AlbertConfig, AlbertModel

from secateurs import SparsityPlan, apply, convert, find_sites, prune, refit
from secateurs.errors import FamilyError
from secateurs.reconstruction.layer_calls import passes


def fed(layer, states):
    """What the FFN of a layer reads, what its last linear reads, and the stream in front of the
    norm behind it."""
    seen = []
    hooks = [
        module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        for module in (layer.ffn, layer.ffn_output, layer.full_layer_layer_norm)
    ]
    layer(states)
    for hook in hooks:
        hook.remove()
    return seen


@torch.no_grad()
def test_what_is_left_of_the_stream_is_orthogonal_to_what_the_linear_reads_in_all_runs():
    model = tiny_model("albert").double()
    batches = [tiny_batch(model, seed=seed) for seed in range(2, 12)]
    for batch in batches:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    plan = prune(model, method="magnitude", budget="neurons=0.5")
    fitted = apply(refit(model, plan, batches, ridge=1e-9, progress=False), plan)
    sites = find_sites(model)
    keep = plan.masks["layers.0.neurons"].keep
    (dense, pruned), sums, size = (sites.layer(m, 0) for m in (model, fitted)), 0, 0
    first = 0
    for batch in batches:
        found = passes(model, sites, batch)
        assert len(found) == model.config.num_hidden_layers
        for number, (states, _) in enumerate(found):
            *_, want = fed(dense, states)
            _, features, got = fed(pruned, states)
            features, off = features[..., keep].flatten(0, 1), (want - got).flatten(0, 1)
            product = features.T @ off
            sums, size = sums + product, size + features.norm() * off.norm()
            first = first + product if number == 0 else first
    assert float(sums.norm() / size) < 1e-6
    assert float(first.norm() / size) > 1e-4  # no run alone


@torch.no_grad()
def test_layers_that_run_in_turns_are_converted_and_not_fitted(batch):
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96}
    config = AlbertConfig(vocab_size=100, embedding_size=32, inner_group_num=2, **sizes)
    model = AlbertModel(config).eval()
    fast = convert(model, SparsityPlan())
    assert torch.allclose(fast(**batch)[0], model(**batch)[0], atol=1e-4)
    plan = prune(model, method="random", budget="heads=0.5")
    with pytest.raises(FamilyError, match="got 2 that it runs in turns"):
        refit(model, plan, [batch], progress=False)


def test_several_shared_layers_are_refused():
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96}
    model = AlbertModel(AlbertConfig(vocab_size=100, num_hidden_groups=2, **sizes))
    with pytest.raises(FamilyError, match=r"albert with config.num_hidden_groups=1, got 2"):
        find_sites(model)
