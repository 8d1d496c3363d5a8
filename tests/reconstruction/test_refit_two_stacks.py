"""refit of models with an encoder and a decoder."""

from __future__ import annotations

import pytest
import torch
from support.models import relative
from support.tiny_models import TWO_STACKS, tiny_batch, tiny_model
from torch import Tensor, nn

from secateurs import (
    BlockMask,
    HeadMask,
    ModuleMask,
    NeuronMask,
    SparsityPlan,
    apply,
    convert,
    find_sites,
    prune,
    refit,
)

# Where the residual stream behind a sub-layer can be read, in the names of BART: what the norm
# behind it reads, or in models with norms in front the next one, or what the layer gives.
BEHIND = ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm")


def batches_of(model: nn.Module, count: int, seed: int = 5) -> list[dict[str, Tensor]]:
    """Batches of six examples, padded in both stacks."""
    random = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        if model.main_input_name == "input_features":
            batch = {"input_features": torch.randn(6, 8, 18, generator=random)}
        else:
            mask = torch.ones(6, 9, dtype=torch.long)
            mask[0, 5:] = 0
            ids = torch.randint(3, 100, (6, 9), generator=random)
            batch = {"input_ids": ids, "attention_mask": mask}
        seen = torch.ones(6, 7, dtype=torch.long)
        seen[2, 4:] = 0
        ids = torch.randint(3, 100, (6, 7), generator=random)
        found.append({**batch, "decoder_input_ids": ids, "decoder_attention_mask": seen})
    return found


def distance(model: nn.Module, plan: SparsityPlan, dense: nn.Module, batches) -> float:
    def answer(m, batch):
        return m(**batch).logits[batch["decoder_attention_mask"].bool()]

    with torch.no_grad():
        return sum(relative(answer(apply(model, plan), b), answer(dense, b)) for b in batches)


@pytest.mark.parametrize("kind", TWO_STACKS)
def test_a_pruned_model_comes_closer_on_data_it_was_not_fitted_to(kind):
    model = tiny_model(kind)
    plan = prune(model, method="magnitude", budget="heads=0.5,neurons=0.5")
    fitted = refit(model, plan, batches_of(model, 30), progress=False)
    unseen = batches_of(model, 4, seed=9)
    assert distance(fitted, plan, model, unseen) < 0.9 * distance(model, plan, model, unseen)
    batch = tiny_batch(model)
    want, got = (m(**batch).logits for m in (apply(fitted, plan), convert(fitted, plan)))
    assert relative(got, want) < 1e-4


@torch.no_grad()
def passed(model: nn.Module, batches: list[dict[str, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    """What the last linear of each sub-layer of a model like BART reads, and the residual stream
    behind it, on real tokens, float64, by the name of its site."""
    sites, found = find_sites(model), {}
    read, behind = {}, {}
    hooks = []

    def keep(held, name):
        return lambda states: held.setdefault(name, []).append(states.double())

    for index, shape in enumerate(sites.layers):
        layer, norm_first = sites.layer(model, index), shape.architecture.norm_first
        norms = [name for name in BEHIND if hasattr(layer, name)]
        for place, sublayer in enumerate(shape.architecture.sublayers):
            name = sites.name(index, sublayer.name)
            last, note = layer.get_submodule(sublayer.last.path), keep(read, name)
            hooks.append(last.register_forward_pre_hook(lambda _, args, f=note: f(args[0])))
            note = keep(behind, name)
            where = place + norm_first
            if where < len(norms):
                norm = layer.get_submodule(norms[where])
                hooks.append(norm.register_forward_pre_hook(lambda _, args, f=note: f(args[0])))
            else:
                hooks.append(
                    layer.register_forward_hook(
                        lambda _, args, out, f=note: f(out[0] if isinstance(out, tuple) else out)
                    )
                )
    for batch in batches:
        model(**batch)
    for hook in hooks:
        hook.remove()
    for name in read:
        mask = "decoder_attention_mask" if name.startswith("decoder") else "attention_mask"
        found[name] = tuple(
            torch.cat([x[b[mask].bool()] for x, b in zip(held[name], batches, strict=True)])
            for held in (read, behind)
        )
    return found


@pytest.mark.parametrize("kind", ["bart", "mbart"])
def test_what_a_fit_leaves_of_the_stream_is_orthogonal_to_what_it_reads(kind):
    """The normal equations of each sub-layer of both stacks, in the model that came out, which runs
    as a whole here."""
    model = tiny_model(kind).double()
    gone = {"decoder.layers.1.cross_attention": ModuleMask(torch.tensor(False))}
    half = {
        site.name: kind(torch.arange(site.shape[0]) % 2 == 0)
        for units, kind in (("heads", HeadMask), ("neurons", NeuronMask))
        for site in find_sites(model).of_kind(units)
    }
    plan = SparsityPlan({**half, **gone})
    batches = batches_of(model, 20)
    fitted = refit(model, plan, batches, ridge=1e-12, progress=False)
    want, got, before = (
        passed(m, batches) for m in (model, apply(fitted, plan), apply(model, plan))
    )
    assert got.keys() == want.keys()
    assert len(got) == 2 * 2 + 3 * 3
    for name, (features, stream) in got.items():
        if name in gone:
            continue
        off = want[name][1] - stream
        left = (features.T @ off).norm() / (features.norm() * off.norm())
        features, stream = before[name]
        off = want[name][1] - stream
        assert left < 1e-6, name
        assert (features.T @ off).norm() / (features.norm() * off.norm()) > 1e-3, name


def test_masks_of_cross_attention_are_held():
    """Queries and outputs are fitted under their masks; keys and values, which read what the
    encoder gives, stay as they are."""
    model = tiny_model("bart")
    random = torch.Generator().manual_seed(2)
    masks = {
        f"decoder.layers.0.cross_attention.{role}": BlockMask(
            torch.rand(4, 4, generator=random) < 0.6, (16, 16)
        )
        for role in ("query", "key", "value", "output")
    }
    plan = SparsityPlan(masks)
    fitted = refit(model, plan, batches_of(model, 30), progress=False)
    sites = find_sites(model)
    for role in ("query", "key", "value", "output"):
        role = f"cross_attention.{role}"
        index = next(site.layer for site in sites if site.name == f"decoder.layers.0.{role}")
        old, new = (sites.linear(m, index, role).weight for m in (model, fitted))
        held = torch.equal(old, new)
        assert held == (role.rpartition(".")[2] in ("key", "value")), role
    unseen = batches_of(model, 4, seed=9)
    assert distance(fitted, plan, model, unseen) < distance(model, plan, model, unseen)
