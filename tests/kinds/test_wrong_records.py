"""Kind: a record that tells a family's layers wrong.

Every record that differs from the right one in one thing must be refused by the proof.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.tiny_models import tiny_model

from secateurs import SparsityPlan, convert
from secateurs.architectures.records import ARCHITECTURES
from secateurs.architectures.records.bert import BERT, ESM, MODERNBERT
from secateurs.architectures.records.gpt import GPT2, POST_NORM_OPT
from secateurs.architectures.records.llama import (
    EUROBERT,
    GEMMA,
    GEMMA3,
    GRANITE,
    LLAMA,
    PHI3,
    QWEN3,
)
from secateurs.architectures.records.seq2seq import BART, MBART, T5
from secateurs.architectures.records.sound import STABLE_WAV2VEC2, WAV2VEC2
from secateurs.architectures.records.vision import DINOV2
from secateurs.errors import FamilyError


def swapped(record, first, second):
    """`record` with the paths of two roles, of one sub-layer, exchanged."""

    def other(linear):
        roles = {first: second, second: first}
        role = roles.get(linear.role, linear.role)
        return replace(linear, path=record.linear(role).path)

    attention, ffn = (
        replace(sublayer, linears=tuple(map(other, sublayer.linears)))
        for sublayer in record.sublayers
    )
    return replace(record, attention=attention, ffn=ffn)


def with_norms(record, attention_norm, ffn_norm):
    return replace(
        record,
        attention=replace(record.attention, norm=attention_norm),
        ffn=replace(record.ffn, norm=ffn_norm),
    )


def without_gate(record):
    linears = tuple(linear for linear in record.ffn.linears if linear.role != "gate")
    return replace(record, ffn=replace(record.ffn, linears=linears))


def reordered(record):
    """`record` with the parts of its fused linear taken the other way round."""
    linears = (
        replace(linear, part=(2 - linear.part[0], 3)) if linear.shares else linear
        for linear in record.attention.linears
    )
    return replace(record, attention=replace(record.attention, linears=tuple(linears)))


def unscaled(record):
    sublayers = (replace(sublayer, scale=None, output_norm=None) for sublayer in record.sublayers)
    attention, ffn = sublayers
    return replace(record, attention=attention, ffn=ffn)


def of_one_width(record):
    linears = tuple(replace(linear, first_as=None) for linear in record.attention.linears)
    return replace(record, attention=replace(record.attention, linears=linears))


def with_head_norms(record, paths):
    return replace(record, attention=replace(record.attention, head_norms=paths))


def halves_swapped(record):
    """Gate and up in the other order, where one module holds both."""
    linears = record.ffn.linears
    moved = (replace(x, part=(1 - x.part[0], 2)) if x.shares else x for x in linears)
    return replace(record, ffn=replace(record.ffn, linears=tuple(moved)))


def of_decoder(record, **changes):
    return replace(record, decoder=replace(record.decoder, **changes))


def cross_with(record, order):
    """The cross-attention of its decoder, its linears at the paths of others."""
    linears = record.decoder.cross.linears
    paths = (linears[i].path for i in order)
    moved = (replace(own, path=path) for own, path in zip(linears, paths, strict=True))
    return replace(record.decoder.cross, linears=tuple(moved))


WRONG_RECORDS = {
    "norms in front": ("bert", replace(BERT, norm_first=True)),
    "query and key swapped": ("bert", swapped(BERT, "query", "key")),
    "value and query swapped": ("bert", swapped(BERT, "value", "query")),
    "norms swapped": ("bert", with_norms(BERT, BERT.ffn.norm, BERT.attention.norm)),
    "output for value": ("bert", swapped(BERT, "output", "value")),
    "norms behind": ("llama", replace(LLAMA, norm_first=False)),
    "gate and up swapped": ("llama", swapped(LLAMA, "gate", "up")),
    "an FFN without a gate": ("llama", without_gate(LLAMA)),
    "norms of the other sub-layer": (
        "llama",
        with_norms(LLAMA, LLAMA.ffn.norm, LLAMA.attention.norm),
    ),
    "norms of one sub-layer": (
        "llama",
        with_norms(LLAMA, LLAMA.attention.norm, LLAMA.attention.norm),
    ),
    "no activation": (
        "bert",
        replace(BERT, ffn=replace(BERT.ffn, activation="intermediate.dense")),
    ),
    "parts of a fused linear in another order": ("gpt2", reordered(GPT2)),
    "a bias by relative position left out": (
        "t5",
        replace(T5, attention=replace(T5.attention, relative_bias=None)),
    ),
    "gate and up of one module swapped": ("modernbert", halves_swapped(MODERNBERT)),
    "a kind of attention that is not told": ("modernbert", replace(MODERNBERT, told=())),
    "factors of channels left out": ("dinov2", unscaled(DINOV2)),
    "factors of channels of the other sub-layer": (
        "dinov2",
        replace(DINOV2, ffn=replace(DINOV2.ffn, scale=DINOV2.attention.scale)),
    ),
    "a factor that is no factor": (
        "dinov2",
        replace(DINOV2, ffn=replace(DINOV2.ffn, scale="mlp.activation")),
    ),
    "a factor of the sub-layers left out": ("granite", unscaled(GRANITE)),
    "norms of outputs left out": ("gemma3_text", unscaled(GEMMA3)),
    "norms of outputs of the other sub-layer": (
        "gemma3_text",
        replace(GEMMA3, ffn=replace(GEMMA3.ffn, output_norm=GEMMA3.attention.output_norm)),
    ),
    "parts of a fused linear of one width": ("phi3", of_one_width(PHI3)),
    "norms of heads left out": ("qwen3", with_head_norms(QWEN3, ())),
    "norms of heads swapped": ("qwen3", with_head_norms(QWEN3, QWEN3.attention.head_norms[::-1])),
    "norms whose weights are not from one": ("gemma", replace(GEMMA, norm_offset=0.0)),
    "norms whose weights are from one": ("llama", replace(LLAMA, norm_offset=1.0)),
    "queries scaled once": (
        "esm",
        replace(ESM, attention=replace(ESM.attention, queries_scaled=False)),
    ),
    "queries scaled twice": (
        "bert",
        replace(BERT, attention=replace(BERT.attention, queries_scaled=True)),
    ),
    "another function between the linears": (
        "eurobert",
        replace(EUROBERT, ffn=replace(EUROBERT.ffn, activation="gelu()")),
    ),
    "an OPT with norms behind": ("opt", replace(POST_NORM_OPT, when=None)),
    "a Whisper of BERT's order": ("whisper", replace(MBART.named("whisper"), norm_first=False)),
    "a BART with norms in front": ("bart", replace(MBART.named("bart"))),
    "a decoder with norms in front": ("bart", replace(BART, decoder=MBART.decoder)),
    "a decoder that ignores the encoder": ("bart", of_decoder(BART, cross=None)),
    "query and key of cross-attention swapped": (
        "bart",
        of_decoder(BART, cross=cross_with(BART, (1, 0, 2, 3))),
    ),
    "key and value of cross-attention swapped": (
        "bart",
        of_decoder(BART, cross=cross_with(BART, (0, 2, 1, 3))),
    ),
    "cross-attention with the norm of the FFN": (
        "mbart",
        of_decoder(MBART, cross=replace(MBART.decoder.cross, norm=MBART.decoder.ffn.norm)),
    ),
    "a decoder without its bias by relative position": (
        "whole t5",
        of_decoder(T5, attention=replace(T5.decoder.attention, relative_bias=None)),
    ),
    "the other order of norms": ("wav2vec2", replace(STABLE_WAV2VEC2, when=None)),
    "the other order of norms, stable": ("stable wav2vec2", replace(WAV2VEC2, when=None)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", WRONG_RECORDS)
def test_a_wrong_record_of_a_family_is_refused(monkeypatch, case, dtype):
    kind, record = WRONG_RECORDS[case]
    monkeypatch.setitem(ARCHITECTURES, record.model_type, (record,))
    with pytest.raises(FamilyError):
        convert(tiny_model(kind).to(dtype), SparsityPlan())
