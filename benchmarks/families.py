"""Every family that is supported, converted with nothing removed and with half, against eager.

    python benchmarks/families.py --threads 2 --json families.jsonl
    python benchmarks/families.py --families bert vit --precisions fp32 bf16 --min-time 2

A model has two layers, in each stack if there are two, of the width and head size that are usual
for its type but no wider than 768, and random weights. A model of waveforms has all its twelve
layers: the convolutions in front of them, which stay as they are, take the share of the time that
they usually take. Of Whisper it is the encoder.

Half removed are heads and neurons in equal shares, at random: speed does not depend on which. Stock
eager, with the attention that transformers takes by default, and the two converted models are timed
alternately in one run, at one example and at eight, of 128 tokens, or of as many as a model of
images or spectrograms makes of its input.

A row holds the worse error of the two against the masked models. Rows that the file holds are not
made again.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Not the folder of this file: transformers would take kernels.py for the package of that name.
with suppress(ValueError):
    sys.path.remove(str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import transformers
from benchmarks.dense import Rows, prepare
from benchmarks.models import PRECISIONS, TOLERANCE
from torch import nn
from transformers import AutoConfig

import secateurs as sc
from secateurs.architectures.records import ARCHITECTURES
from secateurs.measurement.environment import package_version
from secateurs.measurement.inputs import token_inputs
from secateurs.measurement.quality import backend_of
from secateurs.measurement.rows import row
from secateurs.measurement.timing import interleave, relative_error, summarised

BATCHES = (1, 8)
TOKENS = 128
LAYERS = 2
REPEATS = 5  # at least, of each model: a model of waveforms takes seconds
HALF = "heads=0.5,neurons=0.5"
# What a config is given, by those of these names that it has.
COMMON = {
    "num_hidden_layers": LAYERS,
    "decoder_layers": LAYERS,
    "num_decoder_layers": LAYERS,
    "vocab_size": 1000,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}


@dataclass(frozen=True)
class Family:
    """A kind of model.

    Attributes:
        changes: what its config is given besides `COMMON`.
        tokens: of an example.
        made: the class of transformers that makes it.
    """

    model_type: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    tokens: int = TOKENS
    made: str = "AutoModel"

    def config(self) -> Any:
        usual = AutoConfig.for_model(self.model_type)
        common = {name: value for name, value in COMMON.items() if hasattr(usual, name)}
        return AutoConfig.for_model(self.model_type, **{**common, **self.changes})

    def model(self) -> nn.Module:
        """The stock model, with the same random weights each time."""
        torch.manual_seed(0)
        made = getattr(transformers, self.made)
        model: nn.Module = getattr(made, "from_config", made)(self.config())
        return model.eval()


WIDE = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
GATED = {**WIDE, "intermediate_size": 2048}
GROUPED = {**GATED, "num_key_value_heads": 4}
SMALL_HEADS = {**GROUPED, "head_dim": 64}
STACKS = {
    "d_model": 768,
    "encoder_attention_heads": 12,
    "encoder_ffn_dim": 3072,
    "decoder_attention_heads": 12,
    "decoder_ffn_dim": 3072,
}
LONG = {"max_position_embeddings": TOKENS}
DEEP = {"num_hidden_layers": 12}
STABLE = {**DEEP, "do_stable_layer_norm": True, "feat_extract_norm": "layer"}
CHANGED = {
    **dict.fromkeys(("bert-generation", "rembert", "xlm-roberta-xl", "megatron-bert"), WIDE),
    "biogpt": WIDE,
    "albert": {**WIDE, "embedding_size": 128},
    "esm": {"vocab_size": 33, "mask_token_id": 32, "position_embedding_type": "rotary"},
    "clip_text_model": LONG,
    **dict.fromkeys(("wav2vec2", "hubert", "data2vec-audio"), DEEP),
    **dict.fromkeys(("qwen2", "smollm3", "phi3"), GROUPED),
    **dict.fromkeys(("llama", "mistral", "seed_oss", "qwen3"), SMALL_HEADS),
    "granite": {**GROUPED, "attention_multiplier": 1 / 64},
    "gemma": {**GATED, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 256},
    "gemma2": {**GATED, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 256},
    "gemma3_text": {**GATED, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256},
    "stablelm": {**GATED, "num_key_value_heads": 12},
    **dict.fromkeys(("phi", "gpt_neox"), WIDE),
    "starcoder2": {**WIDE, "num_key_value_heads": 4},
    **dict.fromkeys(("bart", "marian", "mbart", "m2m_100", "pegasus"), STACKS),
}
# Inputs of one size, near 128 tokens: 11 patches a side, and the tokens that stand before them.
PATCHES = 11
SIZED = {
    **dict.fromkeys(("vit", "vit_msn"), ({"image_size": PATCHES * 16}, PATCHES**2 + 1)),
    "beit": ({"image_size": PATCHES * 16, "use_relative_position_bias": True}, PATCHES**2 + 1),
    "deit": ({"image_size": PATCHES * 16}, PATCHES**2 + 2),
    "ijepa": ({"image_size": PATCHES * 16}, PATCHES**2),
    "dinov2": ({"image_size": PATCHES * 14}, PATCHES**2 + 1),
    "dinov2_with_registers": ({"image_size": PATCHES * 16}, PATCHES**2 + 5),
    "clip_vision_model": ({"image_size": PATCHES * 32}, PATCHES**2 + 1),
    "siglip_vision_model": ({"image_size": PATCHES * 16}, PATCHES**2),
    # Patches of 16 in steps of 10: 12 over the 128 frequencies, 11 over the time.
    "audio-spectrogram-transformer": ({"max_length": 120}, 12 * 11 + 2),
}
FAMILIES = {
    **{kind: Family(kind, CHANGED.get(kind, {})) for kind in ARCHITECTURES},
    **{kind: Family(kind, changes, tokens) for kind, (changes, tokens) in SIZED.items()},
    # No class that is chosen by the config makes these.
    "siglip_text_model": Family("siglip_text_model", LONG, made="SiglipTextModel"),
    "whisper": Family(
        "whisper", {"max_source_positions": TOKENS}, made="WhisperForAudioClassification"
    ),
    # The other ways in which some types are built.
    "wav2vec2 stable": Family("wav2vec2", STABLE),
    "hubert stable": Family("hubert", STABLE),
    "stablelm parallel": Family("stablelm", {**CHANGED["stablelm"], "use_parallel_residual": True}),
    "gpt_neox sequential": Family("gpt_neox", {**WIDE, "use_parallel_residual": False}),
    "opt post-norm": Family("opt", {"do_layer_norm_before": False}),
    "t5 gated": Family("t5", {"feed_forward_proj": "gated-gelu", "d_ff": 1024}),
}


@dataclass(frozen=True)
class Models:
    """A stock model and ours: `dense` must agree with it, `half` with the `masked` one."""

    stock: nn.Module
    dense: nn.Module
    half: nn.Module
    masked: nn.Module

    @classmethod
    def of(cls, stock: nn.Module) -> Models:
        plan = sc.prune(stock, method="random", budget=HALF)
        dense = sc.convert(stock, sc.SparsityPlan())
        return cls(stock, dense, sc.convert(stock, plan), sc.apply(stock, plan))


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    prepare(options)
    rows, wrong = Rows(options.json, "model", "shape", "precision"), False
    for name, precision in itertools.product(options.families, options.precisions):
        known = {"model": name, "precision": precision}
        shapes = [(batch, FAMILIES[name].tokens) for batch in BATCHES]
        wanted = [shape for shape in shapes if {**known, "shape": shape} not in rows]
        for record in records(name, precision, wanted, options.min_time):
            rows.add(record)
            wrong |= not record["ok"]
    return 1 if wrong else 0


def records(
    name: str, precision: str, shapes: list[tuple[int, int]], min_time: float
) -> Iterator[dict[str, Any]]:
    """The rows of a family; it is not built for none."""
    if shapes:
        gc.collect()  # models of the family before, which lie in cycles
        models = Models.of(FAMILIES[name].model().to(PRECISIONS[precision][0]))
        for shape in shapes:
            yield run(models, name, precision, shape, min_time)


def run(
    models: Models, name: str, precision: str, shape: tuple[int, int], min_time: float
) -> dict[str, Any]:
    """Time the two converted models against eager, print their line, and return their row; its
    times are those with nothing removed, but for the speedups and for `half_ms`."""
    inputs, device = token_inputs(models.stock, shape), torch.device("cpu")
    with torch.inference_mode():
        pairs = (models.dense, models.stock), (models.half, models.masked)
        errors = [relative_error(*(model(**inputs)[0] for model in pair)) for pair in pairs]
        stock, *ours = interleave(
            [
                lambda model=model: model(**inputs)
                for model in (models.stock, models.dense, models.half)
            ],
            device,
            min_repeats=REPEATS,
            min_time=min_time,
        )
    dense, half = (summarised([samples, stock], device) for samples in ours)
    record = row(
        dense,
        model=name,
        backend=backend_of(models.half),
        isa=sc.env_report()["kernels"]["cpu"]["isa"],
        dtype=PRECISIONS[precision][0],
        shape=shape,
        baseline="eager",
        rel_err=math.nan if any(map(math.isnan, errors)) else max(errors),
        tolerance=TOLERANCE[precision],
        precision=precision,
        layers=len(sc.find_sites(models.stock).layers),
        transformers=package_version("transformers"),
        half_ms=half.timing.ms,
    )
    told = f"{name:<30}{precision} {shape[0]}x{shape[1]}  eager {record['baseline_ms']:>8.2f} ms"
    for label, result in (("dense", dense), ("half", half)):
        speeds = result.speedup, result.speedup_p20, result.speedup_p80
        for ending, speed in zip(("", "_p20", "_p80"), speeds, strict=True):
            record[f"speedup_{label}{ending}"] = speed
        told += f"  {label} {speeds[0]:.2f} ({speeds[1]:.2f} to {speeds[2]:.2f})"
    print(
        f"{told}  rel err {errors[0]:.0e}, {errors[1]:.0e}{'' if record['ok'] else '  WRONG'}",
        flush=True,
    )
    return record


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES), metavar="NAME"
    )
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--min-time", type=float, default=1.0, help="seconds of sampling a row")
    parser.add_argument("--json", default="families.jsonl", help="rows, and what is done already")
    return parser


if __name__ == "__main__":
    sys.exit(main())
