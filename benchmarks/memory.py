"""Peak memory of each verb over the size of the model it works on.

    python benchmarks/memory.py --json memory.jsonl

Models have random weights: a BERT of 12 layers and a Llama of 8, both 768 wide. Each row is of a
process of its own, in which the verb has run on a tiny model before. `peak` is the largest resident
set while the verb runs, less what was resident before the model was made or read, over the bytes of
the dense model in the row's dtype: a model that a verb is given, and what it returns, count.
`stays` is the same when it has returned. Freed heap that malloc keeps is given back
(`malloc_trim`) before each figure but the peak. Linux only. Rows that the file holds are not run
again.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.remove(str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from benchmarks.dense import Rows
from torch import Tensor, nn
from transformers import AutoModel, BertConfig, BertModel, LlamaConfig, LlamaModel

import secateurs as sc
from secateurs.errors import MeasurementError
from secateurs.measurement.environment import git_commit
from secateurs.search import LatencyTable
from secateurs.search.precisions import asked_for

MODELS: dict[str, Callable[..., nn.Module]] = {
    "bert": lambda layers, width: BertModel(
        BertConfig(
            num_hidden_layers=layers,
            hidden_size=width,
            num_attention_heads=width // 64,
            intermediate_size=4 * width,
        )
    ),
    "llama": lambda layers, width: LlamaModel(
        LlamaConfig(
            num_hidden_layers=layers,
            hidden_size=width,
            num_attention_heads=width // 64,
            num_key_value_heads=width // 64,
            intermediate_size=4 * width,
        )
    ),
}
LAYERS = {"bert": 12, "llama": 8}
WIDTH = 768
HALF = "heads=0.5,neurons=0.5"
PRECISIONS = ("float32", "bfloat16", "int8")
PLANS = ("nothing", "half")
CONVERTING = ("convert", "convert_inplace", "save", "load", "from_pretrained")
PRUNING = ("kprune", "obs")  # methods of `prune`
SEARCHING = (*PRUNING, "refit_inplace", "latency_table")
CASE = ("model", "verb", "precision", "plan")  # what tells rows apart
READING = ("load", "from_pretrained")  # they make a model of a folder


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.one is not None:
        print(json.dumps(measured(json.loads(options.one), Path(options.folder))))
        return 0
    rows = Rows(options.json, *CASE)
    with tempfile.TemporaryDirectory() as folder:
        for case in _cases(options):
            if case in rows:
                continue
            row = _apart(case, options.threads, folder)
            rows.add(row)
            told = f"{case['model']} {case['verb']}, {case['precision']}, {case['plan']} removed"
            print(f"{told:<55}peak {row['peak']:.2f}  stays {row['stays']:.2f}", flush=True)
    return 0


def measured(case: dict[str, str], folder: Path) -> dict[str, Any]:
    """The row of one case; this process has measured none before."""
    name, verb = case["model"], case["verb"]
    VERBS[verb](*_prepared(MODELS[name](2, 128), case, folder / "tiny"), case, folder / "tiny")
    saved = folder / "-".join(("saved", name, case["precision"], case["plan"]))
    before = _resident()
    if verb in READING:
        given = (None, None)
        size = int((saved / "size.txt").read_text())
    else:
        dense = _cast(MODELS[name](LAYERS[name], WIDTH), case)
        size = sum(t.numel() * t.element_size() for t in (*dense.parameters(), *dense.buffers()))
        given = _prepared(dense, case, saved)
        del dense
    _resident()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins again
    result = VERBS[verb](*given, case, saved)
    peak, stays = _status("VmHWM"), _resident()
    if verb == "save":
        (saved / "size.txt").write_text(str(size))
    del result
    return {
        **case,
        "peak": round((peak - before) / size, 3),
        "stays": round((stays - before) / size, 3),
        "size": size,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": git_commit(),
    }


def _prepared(model: nn.Module, case: dict[str, str], folder: Path) -> tuple[nn.Module, Any]:
    """The model and the plan that the verb of a case is given."""
    model = _cast(model, case).eval()
    plan = _plan(model, case["plan"])
    if case["verb"] == "save" or (case["verb"] in READING and folder.name == "tiny"):
        model = _convert(model, plan, case, inplace=True)
    if case["verb"] in READING:
        sc.save(model, folder)
    return model, plan


def _cast(model: nn.Module, case: dict[str, str]) -> nn.Module:
    return model.to(torch.bfloat16) if case["precision"] == "bfloat16" else model


def _convert(model: nn.Module, plan: Any, case: dict[str, str], inplace: bool) -> nn.Module:
    codes = "int8" if case["precision"] == "int8" else None
    return sc.convert(model, plan, precision=codes, inplace=inplace)


def _plan(model: nn.Module, name: str) -> sc.SparsityPlan:
    """The plan that removes `name` of the heads and neurons of every layer."""
    if name == "nothing":
        return sc.SparsityPlan()
    return sc.prune(model, method="magnitude", allocator="per_layer", budget=HALF)


def _batches(model: Any) -> list[dict[str, Tensor]]:
    """Eight random examples of 32 tokens, in two batches."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (8, 32), generator=generator)
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(4)]


def _table(model: Any, _: Any, case: dict[str, str], folder: Path) -> None:
    precision = asked_for(model, case["precision"])[0][0]
    with suppress(MeasurementError):  # whatever else the machine does
        LatencyTable.measured(
            model, {(1, 32): 1.0}, precision=precision, seconds=0.0, progress=False
        )


def _pruned(method: str) -> Callable[[Any, Any, dict[str, str], Path], Any]:
    return lambda model, *_: sc.prune(
        model, _batches(model), method=method, budget=HALF, progress=False
    )


VERBS: dict[str, Callable[[Any, Any, dict[str, str], Path], Any]] = {
    "convert": lambda model, plan, case, _: (model, _convert(model, plan, case, inplace=False)),
    "convert_inplace": lambda model, plan, case, _: _convert(model, plan, case, inplace=True),
    "save": lambda model, plan, case, folder: sc.save(model, folder),
    "load": lambda model, plan, case, folder: sc.load(folder),
    "from_pretrained": lambda model, plan, case, folder: AutoModel.from_pretrained(folder),
    "refit_inplace": lambda model, plan, *_: sc.refit(
        model, plan, _batches(model), inplace=True, progress=False
    ),
    "latency_table": _table,
    **{method: _pruned(method) for method in PRUNING},
}


def _cases(options: argparse.Namespace) -> list[dict[str, str]]:
    """The cases in an order in which a folder is saved before it is read."""
    cases = [
        (model, verb, precision, plan)
        for model in MODELS
        for precision in PRECISIONS
        for plan in PLANS
        for verb in CONVERTING
    ]
    cases += [
        (model, verb, precision, "half" if verb == "refit_inplace" else "nothing")
        for model in MODELS
        for verb in SEARCHING
        for precision in (PRECISIONS if verb == "latency_table" else PRECISIONS[:1])
    ]
    wanted = [case for case in cases if case[0] in options.models and case[1] in options.verbs]
    return [dict(zip(CASE, case, strict=True)) for case in wanted]


def _apart(case: dict[str, str], threads: int, folder: str) -> dict[str, Any]:
    """The row of one case, measured in a new process."""
    given = ["--one", json.dumps(case), "--folder", folder]
    done = subprocess.run(
        [sys.executable, __file__, *given],
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "SECATEURS_CACHE": f"{folder}/cache"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def _resident() -> int:
    """Bytes of this process in memory, without freed heap."""
    ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", default="memory.jsonl", help="where rows are appended")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--verbs", nargs="+", choices=VERBS, default=list(VERBS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
