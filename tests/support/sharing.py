"""Run by torchrun in `test_processes.py`, and by itself: what a share of the data, or all of it,
decides."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from secateurs import apply, find_sites, prune, refit
from secateurs.processes import from_first
from secateurs.search.sensitivity import Judge, sensitivities
from support.tiny_models import tiny_model

METHODS = {
    "gradient": "heads=0.5,neurons=0.5",
    "obs": "heads=0.5,neurons=0.5",
    "layerwise_admm": "weights=0.5",
}


def batches() -> list[dict[str, torch.Tensor]]:
    """Four batches of unequal lengths, with labels."""
    random = torch.Generator().manual_seed(0)
    found = []
    for tokens in (9, 12, 7, 10):
        ids = torch.randint(3, 100, (6, tokens), generator=random)
        mask = torch.ones_like(ids)
        mask[0, 5:] = 0
        labels = torch.randint(0, 2, (6,), generator=random)
        found.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return found


def decided(share: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Masks, fitted weights, sensitivities."""
    model = tiny_model("roberta").eval()
    results = {}
    for method, budget in METHODS.items():
        plan = prune(model, share, method=method, budget=budget, progress=False)
        results |= {f"{method} {name}": mask.keep for name, mask in plan.masks.items()}
        fitted = refit(model, plan, share, progress=False)
        results |= {f"{method} {name}": value for name, value in fitted.state_dict().items()}
    judge = Judge(model, share)
    with torch.no_grad():
        moved = sensitivities(model, find_sites(model), judge, progress=False)
    results["sensitivities"] = torch.tensor(moved)
    results["distance"] = torch.tensor(judge(apply(fitted, plan)))
    return results


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    told = from_first(lambda: dist.get_rank())
    try:
        from_first(lambda: 1 / 0)
        failed = "nothing"
    except ZeroDivisionError:
        failed = "division"
    results = decided(batches()[:3] if rank == 0 else batches()[3:])
    torch.save({"told": told, "failed": failed, "results": results}, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
