"""Models with a head, and batches to prune and distil them on."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import secateurs
from secateurs import HeadMask, SparsityPlan
from support.tiny_models import SIZES

HEADS = SparsityPlan({"layers.0.heads": HeadMask(torch.tensor([False, True, True, True]))})
IDS = torch.randint(3, 100, (3, 9), generator=torch.Generator().manual_seed(1))
BATCH = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


def trace(model: Any) -> list[Any]:
    """What of a model could have been changed."""
    if not isinstance(model, nn.Module):
        return []
    tensors = [(n, t.sum().item(), t.requires_grad) for n, t in model.state_dict().items()]
    modules = list(model.modules())
    hooks = [
        h for m in modules for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())
    ]
    ours = [h for h in hooks if "transformers" not in str(getattr(h, "__module__", None))]
    modes = [m.training for m in modules]
    return [*tensors, *modes, len(ours), [p.grad is None for p in model.parameters()]]


def headed(head: type[nn.Module], **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"num_key_value_heads": 2, "pad_token_id": 0} if "Llama" in head.__name__ else {}
    model = head(head.config_class(**{**SIZES, **sizes, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.1)
    return model.eval()


def pruned(model: nn.Module, batch: Any, method: str = "gradient", **options: Any) -> SparsityPlan:
    budget = options.pop("budget", "weights=0.5" if method == "seven_pre" else "heads=0.5")
    return secateurs.prune(model, [batch], method=method, budget=budget, progress=False, **options)


def distilled(model: nn.Module, batch: Any = BATCH, **options: Any) -> nn.Module:
    return secateurs.distill(model, HEADS, [batch], steps=2, lr=1e-3, progress=False, **options)


CLASSES = {**BATCH, "labels": torch.tensor([0, 1, 0])}
ENDS = {"start_positions": torch.tensor([0, 1, 2]), "end_positions": torch.tensor([1, 2, 3])}
CHOICES = {"input_ids": torch.stack([IDS, IDS.flip(1)], 1), "labels": torch.tensor([0, 1, 0])}
