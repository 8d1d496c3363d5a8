"""Whole encoders, dense and converted, against the fastest dense peer found here.

    python benchmarks/models.py --device cpu --peers all --json models.jsonl
    python benchmarks/models.py --precisions fp32 bf16 int8 --peers all --data-dir DIR

Densities below 1 remove random heads and neurons in equal shares: speed does not depend on which.
All that is timed of one model on one shape, in all precisions, is timed in turns: the machine's
speed may wander, and each row is beside eager torch, in float32 where the precision is int8. The
peers are such rows too, each in a process of its own; before each turn the threads of the last one
fall asleep. Those that are not installed, or not made for a precision, say so and are left out.

Outputs are compared on random tokens, and on sentences cut or padded to the shape: `cosine` is the
mean, and `cosine_least` the least, over their mean hidden states in the two models. Scales of int8
are taken from other sentences, by us and by those that take any.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

# Not the folder of this file: transformers would take kernels.py for the package of that name. The
# process of a peer reads this file too, and begins with our path.
with suppress(ValueError):
    sys.path.remove(str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from benchmarks.peak import Peak, measure_peak
from benchmarks.sentences import Sentences
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, BertConfig, BertModel
from transformers.utils import logging

import secateurs as sc
from secateurs.cli.demo import model_folder
from secateurs.errors import BackendError
from secateurs.measurement.inputs import token_inputs
from secateurs.measurement.peers import PEERS, peer_in
from secateurs.measurement.peers.apart import SETTLE, Apart, Order
from secateurs.measurement.quality import backend_of, pooled
from secateurs.measurement.rows import append_rows, row
from secateurs.measurement.timing import (
    Measurement,
    alternate,
    relative_error,
    sampler,
    summarised,
)

RUNTIMES = [name for name, peer in PEERS.items() if peer.precision is None]
# The dtype of the model, and the precision of its linears in it.
PRECISIONS: dict[str, tuple[torch.dtype, str | None]] = {
    "fp32": (torch.float32, None),
    "bf16": (torch.bfloat16, None),
    "int8": (torch.float32, "int8"),
    "int8+bf16": (torch.bfloat16, "int8"),
}
DENSITIES = (1.0, 0.5, 0.25)
SHAPES = {  # batch x tokens
    "minilm": ((1, 32), (1, 128), (8, 128), (32, 128), (4, 512)),
    "bert-base": ((1, 32), (1, 128), (8, 128), (8, 512)),
}
# bf16: layers add up their roundings, on either side. int8: of random tokens, which no scale was
# made for.
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2, "int8": 0.3, "int8+bf16": 0.3}


def minilm() -> nn.Module:
    return AutoModel.from_pretrained(model_folder()).eval()


def bert_base() -> nn.Module:
    """BERT-base with random weights: its speed is that of the trained one, its cosines are not."""
    torch.manual_seed(0)
    return BertModel(BertConfig()).eval()


MODELS = {"minilm": minilm, "bert-base": bert_base}


@dataclass(frozen=True)
class Subject:
    """A dense model in one precision, to be compared on one shape.

    Attributes:
        precision: one of `PRECISIONS`.
        inputs: random tokens of the shape.
        judged: batches of sentences of the shape.
    """

    name: str
    precision: str
    shape: tuple[int, int]
    dense: nn.Module
    inputs: Mapping[str, Tensor]
    judged: Sequence[Mapping[str, Tensor]]

    @cached_property
    def means(self) -> Tensor:
        """What the dense model makes of the sentences."""
        return means(self.dense, self.judged)


@dataclass(frozen=True)
class Variant:
    """A model to time.

    Attributes:
        truth: the model that it must agree with.
        keeps: the density of heads and neurons that was asked for.
        kept: the share of parameters that stayed.
    """

    label: str
    model: Callable[..., Any]
    truth: nn.Module
    keeps: float = 1.0
    kept: float = 1.0

    def sampler(self, subject: Subject) -> Callable[[], float]:
        """What takes one sample of its time, once other threads have fallen asleep."""
        if isinstance(self.model, Apart):
            return self.model.sample
        return in_this_process(self.model, subject)


def converted(
    dense: nn.Module, precision: str | None, densities: list[float], sentences: Sentences
) -> Iterator[Variant]:
    """The model on our kernels, at each density."""
    for density in densities:
        plan = sc.SparsityPlan()
        if density < 1:
            budget = sc.Budget(heads=1 - density, neurons=1 - density)
            plan = sc.prune(dense, method="random", budget=budget)
        kept = sc.find_sites(dense).density(plan)["parameters"]
        ours = sc.convert(dense, plan, precision=precision)
        truth = dense if density == 1 else sc.apply(dense, plan)
        yield Variant(f"converted {density:g}", ours, truth, density, kept)


def in_this_process(model: nn.Module, subject: Subject) -> Callable[[], float]:
    device = subject.dense.device
    return sampler(partial(model, **subject.inputs), device, settle=SETTLE)


def peers_of(
    subject: Subject, names: list[str], sentences: Sentences, stack: ExitStack
) -> Iterator[Variant]:
    """Other dense runtimes, fixed to the shape, which live as long as the stack does."""
    threads = torch.get_num_threads()
    order = Order(subject.dense, subject.inputs, sentences.one_by_one(), threads)
    for name in names:
        try:
            peer = peer_in(name, PRECISIONS[subject.precision][1])
            apart = stack.enter_context(Apart(peer, order))
            yield Variant(peer.label, apart, subject.dense)
        except BackendError as error:
            print(f"  {subject.precision} {name}: left out, {error}")


def work(dense: nn.Module, shape: tuple[int, int], kept: float) -> float:
    """Floating-point operations of the layers: two for each kept weight and token, and those of the
    scores, which go with the heads."""
    sites, (batch, tokens) = sc.find_sites(dense), shape
    weights = sum(
        sites.linear(dense, i, role).weight.numel()
        for i, layer in enumerate(sites.layers)
        for role in layer.linears()
    )
    scores = sum(4.0 * tokens * layer.heads * layer.head_dim for layer in sites.layers)
    return batch * tokens * kept * (2.0 * weights + scores)


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    names = RUNTIMES if "all" in options.peers else options.peers
    sentences = Sentences.read(model_folder(), options.data_dir)
    peak = measure_peak(torch.get_num_threads())
    records: list[dict[str, Any]] = []

    def keep(record: dict[str, Any]) -> None:
        records.append(record)
        if options.json:
            append_rows(options.json, [record])

    for name in options.models:
        models, by_dtype = {}, {}
        for precision in options.precisions:
            dtype, of_linears = PRECISIONS[precision]
            if dtype not in by_dtype:
                by_dtype[dtype] = MODELS[name]().to(options.device, dtype)
            dense = by_dtype[dtype]
            ours = list(converted(dense, of_linears, options.densities, sentences))
            models[precision] = dense, ours
        for shape in options.shapes or SHAPES[name]:
            print(f"{name} {shape[0]}x{shape[1]}, {torch.get_num_threads()} threads")
            with ExitStack() as stack:
                compared: list[tuple[Subject, Variant]] = []
                for precision, (dense, ours) in models.items():
                    judged = sentences.of_shape(*shape)
                    inputs = token_inputs(dense, shape)
                    subject = Subject(name, precision, shape, dense, inputs, judged)
                    peers = peers_of(subject, names, sentences, stack)
                    compared += [(subject, variant) for variant in (*ours, *peers)]
                for row_of in rows(compared, options.min_time, peak):
                    keep(row_of)
    wrong = [r for r in records if not r["ok"]]
    for record in wrong:
        print(f"WRONG: {record['model']} {record['variant']} {record['shape']}", file=sys.stderr)
    return 1 if wrong else 0


def rows(
    compared: Sequence[tuple[Subject, Variant]], min_time: float, peak: Peak | None
) -> Iterator[dict[str, Any]]:
    """Time all variants, and the dense models that they are of, in turns of which each variant has
    `min_time` seconds; yield their rows."""
    dense = list({id(subject.dense): subject for subject, _ in compared}.values())
    with torch.inference_mode():
        samplers = [variant.sampler(subject) for subject, variant in compared]
        samplers += [in_this_process(subject.dense, subject) for subject in dense]
        samples = alternate(samplers, min_repeats=10, min_time=min_time * len(samplers))
    of_dense = {
        id(subject.dense): each
        for subject, each in zip(dense, samples[len(compared) :], strict=True)
    }
    for (subject, variant), own in zip(compared, samples, strict=False):
        device = subject.dense.device
        yield run(subject, variant, summarised([own, of_dense[id(subject.dense)]], device), peak)


def run(
    subject: Subject, variant: Variant, result: Measurement, peak: Peak | None
) -> dict[str, Any]:
    """Compare the outputs of one variant, print its line, and return its row."""
    with torch.inference_mode():
        outputs = (model(**subject.inputs)[0] for model in (variant.model, variant.truth))
        error = relative_error(*outputs)
    cosines = agreement(subject, variant)
    ours = isinstance(variant.model, nn.Module)
    share = None
    if ours and peak is not None and subject.dense.device.type == "cpu":
        operations = work(subject.dense, subject.shape, variant.keeps)
        share = operations / result.timing.ms / 1e6 / peak.of(subject.dense.dtype)
    record = row(
        result,
        model=subject.name,
        backend=backend_of(variant.model) if ours else variant.label,
        isa=sc.env_report()["kernels"]["cpu"]["isa"] if ours else None,
        dtype=subject.dense.dtype,
        shape=subject.shape,
        density=variant.kept,
        baseline="eager",
        rel_err=error,
        tolerance=TOLERANCE[subject.precision],
        variant=variant.label,
        precision=subject.precision,
        cosine=float(cosines.mean()),
        cosine_least=float(cosines.min()),
        fma_share=share,
    )
    print(
        f"  {subject.precision:<10}{variant.label:<18}{record['ms']:>9.2f} ms  "
        f"eager {record['baseline_ms']:>9.2f} ms  "
        f"speedup {result.speedup:>5.2f} ({result.speedup_p20:.2f} to {result.speedup_p80:.2f})  "
        f"{'-' if share is None else f'{share:.0%}'} of peak  rel err {error:.0e}  "
        f"cosine {record['cosine']:.5f} (least {record['cosine_least']:.5f})",
        flush=True,
    )
    return record


def agreement(subject: Subject, variant: Variant) -> Tensor:
    """The cosine of each judged sentence's mean hidden state in a variant and in its truth."""
    dense = variant.truth is subject.dense
    wanted = subject.means if dense else means(variant.truth, subject.judged)
    return F.cosine_similarity(means(variant.model, subject.judged), wanted)


@torch.inference_mode()
def means(model: Callable[..., Any], judged: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """The mean hidden state of each sentence, `[S, D]`."""
    return torch.cat([pooled(model(**batch)[0], batch) for batch in judged])


def _parser() -> argparse.ArgumentParser:
    def shape(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split("x"))

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--shapes", nargs="+", type=shape, metavar="BxT")
    parser.add_argument("--densities", nargs="+", type=float, default=list(DENSITIES))
    parser.add_argument(
        "--precisions",
        "--dtypes",
        nargs="+",
        choices=list(PRECISIONS),
        default=["fp32", "bf16"],
        help="int8: of the linears, the rest in float32, or in bfloat16 (default: fp32 bf16)",
    )
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help="a folder of tasks, whose SST-2 has the sentences (default: those of a novel)",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--peers", nargs="*", choices=[*RUNTIMES, "all"], default=["openvino", "onnxruntime"]
    )
    parser.add_argument("--threads", type=int)
    parser.add_argument("--min-time", type=float, default=2.0, help="seconds of sampling a row")
    parser.add_argument("--json", help="append a JSON line for each row to this file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
