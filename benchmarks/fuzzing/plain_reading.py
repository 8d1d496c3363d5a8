"""What altered files say, by the plain reading, which shares no code with the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from benchmarks.fuzzing.seeds import MODELS, answer, metadata
from safetensors.torch import load_file
from torch import Tensor

ROLES = {
    "bert": {
        "query": "attention.self.query", "key": "attention.self.key",
        "value": "attention.self.value", "output": "attention.output.dense",
        "up": "intermediate.dense", "down": "output.dense",
    },
    "llama": {
        "query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj",
        "output": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    },
    "vit": {
        "query": "attention.q_proj", "key": "attention.k_proj", "value": "attention.v_proj",
        "output": "attention.o_proj", "up": "mlp.fc1", "down": "mlp.fc2",
    },
}  # fmt: skip
LAYERS = {"bert": "bert.encoder.layer", "llama": "model.layers", "vit": "vit.layers"}
SAID_ELSEWHERE = ("secateurs", "architectures", "dtype", "torch_dtype", "model_type")


@torch.no_grad()
def as_said(model: str, folder: Path) -> Tensor:
    """The answer of a stock model with the config, the plan and the tensors in a folder."""
    config = json.loads((folder / "config.json").read_text())
    cls = getattr(transformers, MODELS[model][0])
    values = {k: v for k, v in config.items() if k not in SAID_ELSEWHERE}
    made = cls(cls.config_class(**values)).eval()
    files = [path for path in folder.iterdir() if path.suffix == ".safetensors"]
    (plan_file,) = (p for p in files if "secateurs_plan" in metadata(p.read_bytes()))
    (weight_file,) = (path for path in files if path != plan_file)
    tensors, masks = load_file(weight_file), load_file(plan_file)
    header = json.loads(metadata(plan_file.read_bytes())["secateurs_plan"])
    state = made.state_dict()
    path = LAYERS[model]
    for name in state:
        if name in tensors and not any(f".{role}." in name for role in ROLES[model].values()):
            state[name] = tensors[name]
    for i in range(made.config.num_hidden_layers):
        for role, inner in ROLES[model].items():
            stem = f"{path}.{i}.{inner}"
            shape = state[f"{stem}.weight"].shape
            rows, columns = _sides(made.config, masks, i, role, shape)
            weight, bias = torch.zeros(shape), torch.zeros(shape[0])
            stored = _stored(tensors, stem, len(rows), len(columns))
            if stored is not None:
                levels = header.get("levels", {}).get(f"layers.{i}.{role}")
                weight[rows[:, None], columns] = stored.float() * (levels["scale"] if levels else 1)
            tiles = header["masks"].get(f"layers.{i}.{role}")
            if tiles is not None:
                keep = masks[f"layers.{i}.{role}"]
                if tiles["kind"] == "linear":
                    keep = np.kron(keep.numpy(), np.ones(tiles["block"])) > 0
                weight *= torch.as_tensor(keep)
            if f"{stem}.bias" in tensors:
                bias[rows] = tensors[f"{stem}.bias"].float()
            state[f"{stem}.weight"] = weight
            if f"{stem}.bias" in state:
                state[f"{stem}.bias"] = bias
    made.load_state_dict(state)
    made.tie_weights()
    for name, buffer in made.named_buffers():  # also those that no state dict has
        buffer.copy_(tensors.get(name, buffer))
    return answer(made)


def _sides(
    config: Any, masks: dict[str, Tensor], i: int, role: str, shape: torch.Size
) -> tuple[Tensor, Tensor]:
    """Which rows and columns of one linear are stored."""
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", heads)
    gone = {
        part
        for part in ("attention", "ffn", "layer")
        if not masks.get(f"layers.{i}.{part}", torch.tensor(True))
    }
    kept = masks.get(f"layers.{i}.heads", torch.ones(heads, dtype=torch.bool))
    if role in ("key", "value"):
        kept = kept.view(groups, -1).any(1)
    size = shape[1] if role in ("output", "down") else shape[0]
    if role in ("query", "key", "value", "output"):
        inner = kept.repeat_interleave(size // len(kept))
        inner = inner & (not gone & {"attention", "layer"})
    else:
        inner = masks.get(f"layers.{i}.neurons", torch.ones(size, dtype=torch.bool))
        inner = inner & (not gone & {"ffn", "layer"})
    whole = torch.arange(shape[0] if role in ("output", "down") else shape[1])
    picked = torch.arange(size)[inner]
    return (whole, picked) if role in ("output", "down") else (picked, whole)


def _stored(tensors: dict[str, Tensor], stem: str, n: int, k: int) -> Tensor | None:
    """The compact weight `[n, k]`, put together block by block where it is stored in blocks."""
    if f"{stem}.weight" in tensors:
        return tensors[f"{stem}.weight"]
    if f"{stem}.weight.values" not in tensors:
        return None
    values, starts, columns = (
        tensors[f"{stem}.weight.{part}"] for part in ("values", "indptr", "indices")
    )
    (_, bk, bn), weight = values.shape, torch.zeros(n, k)
    for r in range(len(starts) - 1):
        for j in range(int(starts[r]), int(starts[r + 1])):
            c = int(columns[j])
            weight[r * bn : (r + 1) * bn, c * bk : (c + 1) * bk] = values[j].T.float()
    return weight
