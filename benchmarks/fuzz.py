"""Saved models altered in thousands of ways, and what loading each of them comes to.

    python benchmarks/fuzz.py --count 10000 --seed 0

Each seed is a small model with one kind of plan, saved. A try alters one of its files, mostly with
the digests made right again so that the alteration is reached, and loads the folder in a worker
with 8 GB of address space and 20 seconds. It may end in one of these ways:

    equal           the model loads and answers as the seed does, to the bit;
    as said         it loads and answers as a stock model filled from the altered files by the plain
                    reading of them below, which shares no code with the package;
    beyond float32  it loads, and that stock model's answer is NaN or infinite, or a weight's square
                    is: which sums overflow depends on their order, so nothing can be compared;
    refused         one sentence of the package's own: an error of ours, on one line.

Anything else is a fault: another exception, an answer that the files do not say, a crash, a hang, a
connection. Exits nonzero if there is one. `--only N` repeats one try and shows what was altered.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import random
import re
import resource
import socket
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

if str(Path(__file__).parent) in sys.path:  # it has a module named as one that tests import
    sys.path.remove(str(Path(__file__).parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

import secateurs as sc
from secateurs.errors import SecateursError

MEMORY, SECONDS = 8 << 30, 20
HUGE = 1e18  # its square is still a float32
FINE = ("equal", "as said", "beyond float32", "refused")
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
    """The files of a saved seed."""
    model, plan = name.split("/")
    dense = stock(model)
    wanted = PLANS[plan]
    if isinstance(wanted, str):
        wanted = sc.prune(dense, method="magnitude", budget=wanted)
    with tempfile.TemporaryDirectory() as folder:
        sc.save(sc.convert(dense, wanted), folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


@cache
def seed_answer(name: str) -> Tensor:
    with tempfile.TemporaryDirectory() as folder:
        write(seed_files(name), Path(folder))
        return answer(sc.load(folder))


def write(files: Files, folder: Path) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)


# What the files say, by the plain reading.

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
    (plan_file,) = (p for p in files if "secateurs_plan" in _metadata(p.read_bytes()))
    (weight_file,) = (path for path in files if path != plan_file)
    tensors, masks = load_file(weight_file), load_file(plan_file)
    header = json.loads(_metadata(plan_file.read_bytes())["secateurs_plan"])
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


# Alterations. Each takes files and a source of chances, and alters one file in place; it says what
# it did. None where the files have nothing of the kind.

STRANGE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 7, 2**31, 2**63, 10**30, -(10**30), 0.5, 1e-300, 1e300,
    math.nan, math.inf, "", "x", "many", "../../etc/passwd", "/dev/zero", "a\x00b", "a\nb",
    "\ud800", "é" * 9, "some/kernel", "float16", "float128", "A" * 5000, [], {}, [None], [[]],
    {"a": 1}, [1, 2], [[1] * 4], {"": {}}, ["BertModel"], "gelu", "relu", "silu", "swish",
)  # fmt: skip


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, (dict, list)):
            yield from _places(inner, (*path, key))


def alter_json(value: dict[str, Any], chance: random.Random) -> str:
    """Alter one place of a JSON object."""
    places = list(_places(value))
    if not places:
        value["x"] = 1
        return "added x"
    *path, key = chance.choice(places)
    holder = value
    for step in path:
        holder = holder[step]
    where = "/".join(map(str, (*path, key)))
    kind = chance.choice(("drop", "strange", "strange", "number", "nest", "rename", "copy", "add"))
    old = holder[key]
    if kind == "drop":
        del holder[key]
    elif kind == "nest":
        depth = chance.choice((1, 40, 900, 100000))
        holder[key] = Nested(depth)
        where += f" {depth} deep"
    elif kind == "rename" and isinstance(holder, dict):
        holder[chance.choice((f"{key}x", "", "é", "__class__", "../x", "config.json"))] = old
        del holder[key]
    elif kind == "copy":
        *other, last = chance.choice(places)
        source = value
        for step in other:
            source = source[step]
        holder[key] = json.loads(json.dumps(source[last], default=lambda nested: None))
    elif kind == "add" and isinstance(holder, dict):
        name = chance.choice(
            ("x", "auto_map", "attn_implementation", "_attn_implementation", "quantization_config",
             "_name_or_path", "pruned_heads", "is_decoder", "add_cross_attention", "use_cache",
             "chunk_size_feed_forward", "num_labels", "return_dict", "torchscript", "levels")
        )  # fmt: skip
        holder[name] = chance.choice(STRANGE)
        return f"added {name}={holder[name]!r:.40} beside {where}"
    elif kind == "number" and isinstance(old, (int, float)) and not isinstance(old, bool):
        holder[key] = chance.choice((old + 1, old - 1, 2 * old, -old, 1000 * old, old * 10**9))
    else:
        holder[key] = chance.choice(STRANGE)
    new = holder.get(key, "nothing") if isinstance(holder, dict) else "another"
    return f"{kind} {where}: {old!r:.40} -> {new!r:.60}"


class Nested:
    """Lists within each other, too deep for the writer of JSON."""

    def __init__(self, depth: int) -> None:
        self.text = "[" * depth + "]" * depth


def to_json(value: Any) -> bytes:
    nested: list[str] = []

    def mark(inner: Any) -> str:
        nested.append(inner.text)
        return f"<nested {len(nested) - 1}>"

    text = json.dumps(value, default=mark)
    for i, inner in enumerate(nested):
        text = text.replace(f'"<nested {i}>"', inner)
    return text.encode("utf-8", "surrogatepass")


def _parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def _metadata(content: bytes) -> dict[str, str]:
    return _parts(content)[0].get("__metadata__", {})


def _joined(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def _tensor_files(files: Files) -> tuple[str, str]:
    """The names of the weights' file and of the plan's."""
    names = [name for name in files if name.endswith(".safetensors")]
    (plan,) = (name for name in names if "secateurs_plan" in _metadata(files[name]))
    (weights,) = (name for name in names if name != plan)
    return weights, plan


def config(files: Files, chance: random.Random) -> str:
    value = json.loads(files["config.json"])
    if chance.random() < 0.5:  # our block is small beside the stock config
        told = "secateurs/" + alter_json(value["secateurs"], chance)
    else:
        told = alter_json(value, chance)
    files["config.json"] = to_json(value)
    return f"config.json: {told}"


def plan_header(files: Files, chance: random.Random) -> str:
    _, name = _tensor_files(files)
    header, data = _parts(files[name])
    value = json.loads(header["__metadata__"]["secateurs_plan"])
    told = alter_json(value, chance)
    header["__metadata__"]["secateurs_plan"] = to_json(value).decode("utf-8", "surrogatepass")
    files[name] = _joined(json.dumps(header).encode(), data)
    return f"plan: {told}"


def tensor_header(files: Files, chance: random.Random) -> str:
    name = chance.choice(_tensor_files(files))
    header, data = _parts(files[name])
    names = [key for key in header if key != "__metadata__"]
    kind = chance.choice(("json", "dtype", "shape", "shape", "offsets", "name", "drop", "length"))
    told = kind
    if not names or kind == "json":
        told = alter_json(header, chance)
    elif kind in ("dtype", "shape", "offsets"):
        key = chance.choice(names)
        entry = header[key]
        if kind == "dtype":
            entry["dtype"] = chance.choice(
                ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "F8_E4M3",
                 "F4", "C64", "U16", "X", "")
            )  # fmt: skip
        elif kind == "shape":
            shape = entry["shape"]
            entry["shape"] = chance.choice(
                ([], shape[::-1], [*shape, 1], [1, *shape], [math.prod(shape)], [-n for n in shape],
                 [0, *shape], [2**40, *shape], [2**62, 4], [n + 1 for n in shape], shape[1:])
            )  # fmt: skip
        else:
            begin, end = entry["data_offsets"]
            entry["data_offsets"] = chance.choice(
                ([begin, end + 4], [begin - 4, end], [end, begin], [0, 0], [begin + 4, end + 4],
                 [0, len(data)], [2**63, 2**63 + 4], [begin], [-4, 0])
            )  # fmt: skip
        told = f"{kind} of {key} -> {entry}"
    elif kind == "name":
        key = chance.choice(names)
        header[chance.choice((f"{key}x", "", "../x", names[0]))] = header.pop(key)
        told = f"renamed {key}"
    elif kind == "drop":
        key = chance.choice(names)
        begin, end = header.pop(key)["data_offsets"]
        if chance.random() < 0.7:  # and its bytes, so that the file is whole
            data = data[:begin] + data[end:]
            for other in names:
                if other != key and header[other]["data_offsets"][0] >= end:
                    header[other]["data_offsets"] = [
                        n - (end - begin) for n in header[other]["data_offsets"]
                    ]
        told = f"dropped {key}"
    content = _joined(to_json(header), data)
    if kind == "length":
        size = chance.choice((0, 1, 2**20, 2**40, 2**63, 2**64 - 1, len(content), len(content) - 8))
        content = size.to_bytes(8, "little") + content[8:]
        told = f"header of {size} bytes"
    files[name] = content
    return f"{name}: {told}"


VALUES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "F32": ("<f4", (math.nan, math.inf, -math.inf, 0.0, -0.7, 1.3, 3e38, 1e-40)),
    "I32": ("<i4", (-1, 0, 1, 2, 3, 5, 2**31 - 1, -(2**31))),
    "I8": ("<i1", (-128, 127, -9, 9, 0, 1)),
    "BOOL": ("<u1", (0, 1, 2, 255)),
}


def values(files: Files, chance: random.Random) -> str | None:
    """One value of one tensor, or all of them."""
    name = chance.choice(_tensor_files(files))
    header, data = _parts(files[name])
    kinds = sorted({e["dtype"] for n, e in header.items() if n != "__metadata__"} & VALUES.keys())
    if not kinds:
        return None
    wanted = chance.choice(kinds)  # so that the few indices are met as often as the many weights
    key = chance.choice(
        [n for n, e in header.items() if n != "__metadata__" and e["dtype"] == wanted]
    )
    begin, end = header[key]["data_offsets"]
    dtype, strange = VALUES[wanted]
    array = np.frombuffer(data[begin:end], dtype=dtype).copy()
    if not array.size:
        return None
    value = np.array(chance.choice(strange)).astype(dtype)
    if chance.random() < 0.2:
        array[:] = value
        told = f"all of {key} -> {value}"
    else:
        at = chance.randrange(array.size)
        told = f"{key}[{at}]: {array[at]} -> {value}"
        array[at] = value
    files[name] = _joined(json.dumps(header).encode(), data[:begin] + array.tobytes() + data[end:])
    return f"{name}: {told}"


def cut(files: Files, chance: random.Random) -> str:
    name = chance.choice(list(files))
    content = files[name]
    kind = chance.choice(("cut", "cut", "empty", "longer", "flip", "zeros", "missing", "more"))
    if kind == "cut":
        files[name] = content[: chance.randrange(len(content))]
    elif kind == "empty":
        files[name] = b""
    elif kind == "longer":
        files[name] = content + chance.randbytes(chance.choice((1, 8, 4096)))
    elif kind == "flip":
        at = chance.randrange(len(content))
        files[name] = (
            content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :]
        )
    elif kind == "zeros":
        files[name] = bytes(len(content))
    elif kind == "missing":
        del files[name]
    else:
        files["more.safetensors"] = content
    return f"{name}: {kind}"


def swapped(files: Files, chance: random.Random) -> str:
    """A file of another seed."""
    other = chance.choice(SEEDS)
    theirs = dict(seed_files(other))
    mine_w, mine_p = _tensor_files(files)
    their_w, their_p = _tensor_files(theirs)
    mine, their = chance.choice(
        (("config.json", "config.json"), (mine_w, their_w), (mine_p, their_p), (mine_w, mine_p),
         (mine_p, "config.json"))
    )  # fmt: skip
    source = theirs if their in theirs else files
    files[mine] = source[their]
    return f"{mine} <- {their} of {other}"


ALTERATIONS: dict[str, Callable[[Files, random.Random], str | None]] = {
    "config": config,
    "plan header": plan_header,
    "tensor header": tensor_header,
    "values": values,
    "cut": cut,
    "swapped": swapped,
}
WEIGHTS = (4, 4, 3, 3, 1, 1)
STRANGE_FILES = ("pipe", "/dev/zero", "folder", "loop", "sparse")


def with_right_digests(files: Files, before: Files) -> Files:
    """The files with each digest of an old content, in a text or a name, made that of the new."""
    renamed = dict(files)
    for name, old in before.items():
        if name not in files or files[name] == old or name == "config.json":
            continue
        was, now = (hashlib.sha256(content).hexdigest() for content in (old, files[name]))
        text = renamed["config.json"].replace(was.encode(), now.encode())
        short = re.search(r"[0-9a-f]{16}", name)
        if short and short[0] == was[:16]:
            moved = name.replace(was[:16], now[:16])
            text = text.replace(name.encode(), moved.encode())
            renamed[moved] = renamed.pop(name)
        renamed["config.json"] = text
    return renamed


def altered(number: int, seed: int, folder: Path) -> tuple[str, str, str]:
    """Write try `number` to `folder`: its seed, the kind of its alteration, what was done."""
    chance = random.Random(f"{seed}/{number}")
    name = SEEDS[number % len(SEEDS)]
    before = seed_files(name)
    if chance.random() < 0.02:
        write(before, folder)
        return name, "strange file", _make_strange(folder, chance)
    while True:
        files = dict(before)
        kind = chance.choices(list(ALTERATIONS), WEIGHTS)[0]
        if (told := ALTERATIONS[kind](files, chance)) is not None:
            break
    if chance.random() < 0.9 and "config.json" in files:
        files = with_right_digests(files, before)
        told += ", digests right"
    write(files, folder)
    return name, kind, told


def _make_strange(folder: Path, chance: random.Random) -> str:
    path = chance.choice(sorted(folder.iterdir()))
    kind = chance.choice(STRANGE_FILES)
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    else:
        path.symlink_to(path.name if kind == "loop" else kind)
    return f"{path.name}: {kind}"


# Tries, and what becomes of them.

# Sentences that end in someone's bare key, or show how someone's exception is written.
BARE = re.compile(r"""(damaged|Error): ?\(?('[^']*'|\d+|None)\)?$|\w+Error\(""")


def attempt(number: int, seed: int, folder: Path) -> tuple[str, str, str, str]:
    """Seed, kind and outcome of one try, and what was done and said."""
    name, kind, told = altered(number, seed, folder)
    connected.clear()
    try:
        loaded = sc.load(folder)
    except SecateursError as error:
        said = str(error)
        lines = said.splitlines()
        fine = len(lines) == 1 and said.isprintable() and len(said.split()) > 3 and len(said) < 1000
        bare = BARE.search(said)
        outcome = "refused" if fine and not bare else "unclear"
        said = f"{type(error).__name__}: {said}"
    except BaseException as error:
        outcome, said = "foreign", "".join(traceback.format_exception(error))[-1500:]
        if isinstance(error, KeyboardInterrupt):
            raise
    else:
        outcome, said = _judged(name, loaded, folder), ""
    if connected:
        outcome = "connection"
    return name, kind, outcome, f"{told}\n    {said}"


def _judged(name: str, loaded: nn.Module, folder: Path) -> str:
    want = seed_answer(name)
    try:
        got = answer(loaded)
        if got.shape == want.shape and torch.equal(got, want):
            return "equal"
        said = as_said(name.split("/")[0], folder)
    except Exception as error:
        return f"loads, then {type(error).__name__}: {str(error)[:300]}"
    if got.shape != said.shape:
        return "of another shape"
    if not bool(torch.isfinite(said).all()) or largest(folder) > HUGE:
        return "beyond float32"
    if not bool(torch.isfinite(got).all()):
        return "not finite"
    off = float((got - said).abs().max() / said.abs().max().clamp_min(1e-30))
    return "as said" if off < 1e-4 else f"off by {off:.1g}"


def largest(folder: Path) -> float:
    """The largest number that a folder's files hold."""
    found = (t for p in folder.glob("*.safetensors") for t in load_file(p).values())
    return max(float(t.abs().max()) for t in found if t.is_floating_point() and t.numel())


connected: list[Any] = []


def guard() -> None:
    """Note and refuse every connection to anywhere."""

    def refuse(*arguments: Any, **_: Any) -> Any:
        connected.append(arguments)
        raise OSError("no network")

    socket.socket.connect = refuse  # type: ignore[method-assign]
    socket.getaddrinfo = refuse


def _worker(pipe: Any, memory: int) -> None:
    if memory:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity(transformers.logging.CRITICAL)
    guard()
    while (task := pipe.recv()) is not None:
        with tempfile.TemporaryDirectory() as folder:
            pipe.send(attempt(*task, Path(folder)))


class Workers:
    """One worker at a time, a new one after each that died or hung."""

    def __init__(self, memory: int = MEMORY) -> None:
        self._memory = memory
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_worker, args=(theirs, self._memory), daemon=True)
        self._process.start()
        theirs.close()

    def run(self, number: int, seed: int) -> tuple[str, str, str, str]:
        name = SEEDS[number % len(SEEDS)]
        self._pipe.send((number, seed))
        try:
            if self._pipe.poll(SECONDS):
                return self._pipe.recv()
            self._process.kill()
            outcome = "hang"
        except EOFError:
            outcome = "crash"
        self._process.join()
        code = self._process.exitcode
        self._start()
        return name, "?", outcome, f"exit code {code}"

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join()


def table(rows: Counter[tuple[str, str, str]], column: int, title: str) -> str:
    """Outcomes by the seed (0) or the kind (1) of the tries."""
    outcomes = [*FINE, "anything else"]
    lines = [f"| {title} | {' | '.join(outcomes)} |", "|---" * (len(outcomes) + 1) + "|"]
    names = sorted({row[column] for row in rows})
    for name in [*names, "all"]:
        counts: Counter[str] = Counter()
        for row, count in rows.items():
            if name in (row[column], "all"):
                counts[row[2] if row[2] in FINE else outcomes[-1]] += count
        lines.append(f"| {name} | {' | '.join(str(counts[o]) for o in outcomes)} |")
    return "\n".join(lines)


def fuzz(numbers: range, seed: int, show: Callable[[str], None]) -> Counter[tuple[str, str, str]]:
    """Outcomes of the tries by seed, kind and outcome; each fault is shown."""
    for name in SEEDS:  # made once, before the workers are forked
        seed_answer(name)
    workers, rows = Workers(), Counter()
    for number in numbers:
        name, kind, outcome, told = workers.run(number, seed)
        if outcome == "hang":  # of the try, or of a machine that was busy with something else
            name, kind, outcome, told = workers.run(number, seed)
        rows[name, kind, outcome] += 1
        if outcome not in FINE:
            show(f"--only {number} --seed {seed}: {name}, {kind}: {outcome}: {told}")
    workers.close()
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--start", type=int, default=0, help="the number of the first try")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this try alone, in this process")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sys.stdout.reconfigure(errors="backslashreplace")  # alterations are no proper text
    if options.only is not None:
        with tempfile.TemporaryDirectory() as folder:
            print(*attempt(options.only, options.seed, Path(folder)), sep="\n")
        return 0
    numbers = range(options.start, options.start + options.count)
    rows = fuzz(numbers, options.seed, lambda line: print(line, flush=True))
    print(f"\n{table(rows, 0, 'seed')}\n\n{table(rows, 1, 'alteration')}\n")
    faults = sum(count for row, count in rows.items() if row[2] not in FINE)
    print(f"{sum(rows.values())} tries, {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
