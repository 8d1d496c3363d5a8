"""The saved models that are altered: small ones, each with one kind of plan."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import secateurs as sc
from secateurs.storage.sentinel import NAME as SENTINEL

SIZES = {
    "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 32,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", {}),
    "llama": ("LlamaForCausalLM", {"num_key_value_heads": 2}),
    "vit": ("ViTForImageClassification", {"image_size": 16, "patch_size": 8, "num_labels": 3}),
}
HEADS = {
    "layers.0.heads": sc.HeadMask(torch.tensor([False, True, True, True])),
    "layers.1.heads": sc.HeadMask(torch.tensor([False, False, True, False])),
}
NEURONS = {"layers.0.neurons": sc.NeuronMask(torch.arange(64) % 3 == 0)}
MODULES = {"layers.1.attention": sc.ModuleMask(torch.tensor(False))}
BLOCKS = {
    "layers.0.query": sc.BlockMask(torch.arange(4).view(2, 2) % 3 > 0, (16, 16)),
    "layers.0.up": sc.BlockMask(torch.arange(8).view(4, 2) % 3 > 0, (16, 16)),
    "layers.1.down": sc.BlockMask(torch.arange(8).view(2, 4) % 2 > 0, (16, 16)),
}
LEVELS = {"layers.0.up": (4, 0.05), "layers.1.value": (8, 0.01)}
PLANS: dict[str, Any] = {
    "empty": sc.SparsityPlan(),
    "heads": sc.SparsityPlan(HEADS),
    "neurons": sc.SparsityPlan(NEURONS),
    "modules": sc.SparsityPlan(MODULES),
    "blocks": sc.SparsityPlan(BLOCKS),
    "vector": "patterns=0.5,vector=16",
    "2:4": "patterns=0.5,pattern=2:4",
    "library": "patterns=0.5,pattern=library",
    "levels": sc.SparsityPlan(
        BLOCKS, levels={name: sc.Levels(*args) for name, args in LEVELS.items()}
    ),
    "mixed": sc.SparsityPlan({**HEADS, **NEURONS, **MODULES, "layers.0.up": BLOCKS["layers.0.up"]}),
}
SEEDS = [f"{model}/{plan}" for model in MODELS for plan in PLANS]
Files = dict[str, bytes]


def stock(model: str) -> nn.Module:
    """A random model whose biases and norms are not their initial zeros and ones."""
    name, changes = MODELS[model]
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    made = cls(cls.config_class(**{**SIZES, **changes})).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape))
            else:
                parameter.normal_(std=0.1)
    return made


def answer(model: nn.Module) -> Tensor:
    """What a model says to ids that every seed's sizes allow, or to images of its own size."""
    if model.config.model_type == "vit":
        size = model.config.image_size
        shape = (2, 3, size, size) if isinstance(size, int) else (2, 3, *size)
        random_pixels = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        inputs = {"pixel_values": random_pixels}
    else:
        ids = torch.randint(3, 40, (2, 7), generator=torch.Generator().manual_seed(1))
        mask = torch.ones_like(ids)
        mask[0, 5:] = 0
        inputs = {"input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        said = model(**inputs)[0]
    return said[mask.bool()] if said.dim() == 3 else said


@cache
def seed_files(name: str) -> Files:
    """The files of a saved seed, without the one that only stock transformers opens."""
    model, plan = name.split("/")
    dense = stock(model)
    wanted = PLANS[plan]
    if isinstance(wanted, str):
        wanted = sc.prune(dense, method="magnitude", budget=wanted)
    with tempfile.TemporaryDirectory() as folder:
        sc.save(sc.convert(dense, wanted), folder)
        files = sorted(path for path in Path(folder).iterdir() if path.name != SENTINEL)
        return {path.name: path.read_bytes() for path in files}


@cache
def seed_answer(name: str) -> Tensor:
    with tempfile.TemporaryDirectory() as folder:
        write(seed_files(name), Path(folder))
        return answer(sc.load(folder))


def write(files: Files, folder: Path) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)


def file_parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def metadata(content: bytes) -> dict[str, str]:
    return file_parts(content)[0].get("__metadata__", {})
