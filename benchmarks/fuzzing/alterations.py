"""Alterations. Each takes files and a source of chances, and alters one file in place; it says what
it did. None where the files have nothing of the kind."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.fuzzing.seeds import SEEDS, Files, file_parts, metadata, seed_files, write

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


def _joined(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def _tensor_files(files: Files) -> tuple[str, str]:
    """The names of the weights' file and of the plan's."""
    names = [name for name in files if name.endswith(".safetensors")]
    (plan,) = (name for name in names if "secateurs_plan" in metadata(files[name]))
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
    header, data = file_parts(files[name])
    value = json.loads(header["__metadata__"]["secateurs_plan"])
    told = alter_json(value, chance)
    header["__metadata__"]["secateurs_plan"] = to_json(value).decode("utf-8", "surrogatepass")
    files[name] = _joined(json.dumps(header).encode(), data)
    return f"plan: {told}"


def tensor_header(files: Files, chance: random.Random) -> str:
    name = chance.choice(_tensor_files(files))
    header, data = file_parts(files[name])
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
    header, data = file_parts(files[name])
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
