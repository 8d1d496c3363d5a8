"""Run by torchrun in `test_trainer.py`: one process of a data-parallel pruning run."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from secateurs.processes import averaged
from secateurs.pruning.session import Session
from support.training import classifier, trainer

BUDGETS = {
    "dsp": "heads=0.5",
    "voita": "heads=0.5",
    "snip_identity": "modules=0.5",
    "dcil": "weights=0.5",
    "gradual_magnitude": "weights=0.5",
    "mlpruning": "heads=0.25,neurons=0.5,blocks=0.7,block=16",
    "platon": "weights=0.5",
    "sensi_bert": "heads=0.25,neurons=0.5",
    "seven": "weights=0.5",
    "admm_pattern": "patterns=0.5,vector=16",
}


def main(folder: Path) -> None:
    seen: list[int] = []
    results = {}
    for method, budget in BUDGETS.items():
        model = classifier()
        with Session(model, method, budget=budget) as session:
            run = trainer(model, folder / "run", session, ddp_backend="gloo")
            model.register_forward_pre_hook(
                lambda _, args, inputs: seen.append(int(inputs["input_ids"].sum())),
                with_kwargs=True,
            )
            run.train()
            scores = (
                {f"score of {k}": v.clone() for k, v in session.pruner.scores().items()}
                if (method != "admm_pattern")
                else {}
            )
        masks = {name: mask.keep for name, mask in session.plan.masks.items()}
        groups = session.pruner.parameter_groups()
        own = [parameter.detach() for group in groups for parameter in group["params"]]
        learnt = {f"parameter {i} of the method": value for i, value in enumerate(own)}
        results[method] = {**scores, **masks, **learnt, **model.state_dict()}
    mean = averaged(torch.tensor([1.0, 3.0]) * dist.get_rank())
    torch.save({"mean": mean, "seen": seen, "results": results}, folder / f"{dist.get_rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
