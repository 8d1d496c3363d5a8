from __future__ import annotations

import pytest
import torch
from support.tiny_models import tiny_model

from secateurs import HeadMask, SparsityPlan, apply, convert, use_backend
from secateurs.conversion.modules import PackedLinear
from secateurs.conversion.modules.pattern_linear import PatternLinear, pack
from secateurs.errors import DataError
from secateurs.formats import BlockSparseWeight
from secateurs.measurement.inputs import token_inputs
from secateurs.measurement.quality import backend_of, embeddings, fidelity, speed
from secateurs.ops import Choice

PLAN = SparsityPlan({"layers.0.heads": HeadMask(torch.tensor([True, False, True, False]))})


def test_one_row_per_shape_and_variant_with_the_dense_model_beside():
    dense = tiny_model("bert")
    others = {"masked": apply(dense, PLAN), "converted": convert(dense, SparsityPlan())}
    rows = speed(
        "tiny", dense, others, [(1, 4), (2, 8)], min_time=0.0, progress=False,
        tolerance={"converted": 1e-4}, densities={"masked": 0.9},
    )  # fmt: skip
    assert [(r["shape"], r["variant"]) for r in rows] == [
        (shape, variant)
        for shape in ([1, 4], [2, 8])
        for variant in ("dense", "masked", "converted")
    ]
    dense_row, masked, converted = rows[:3]
    assert dense_row["baseline"] is None
    assert dense_row["ms"] == converted["baseline_ms"]
    assert masked["ok"] is None
    assert masked["density"] == 0.9
    assert converted["ok"] is True
    assert converted["speedup"] == pytest.approx(converted["baseline_ms"] / converted["ms"])


def test_embeddings_average_real_tokens_only(batch):
    model = tiny_model("bert")
    hidden = model(**batch).last_hidden_state.double()
    got = embeddings(model, batch)
    assert torch.allclose(got[0], hidden[0, :5].mean(0), atol=1e-6)
    assert torch.allclose(got[1], hidden[1].mean(0), atol=1e-6)


def test_a_classifier_is_judged_by_its_logits(batch):
    model = tiny_model("roberta")
    assert torch.allclose(embeddings(model, batch), model(**batch).logits.double())


def test_fidelity_is_one_for_itself_and_less_for_a_pruned_model(batch):
    dense = tiny_model("bert")
    assert fidelity(dense, dense, [batch, batch]).mean == pytest.approx(1)
    pruned = fidelity(dense, apply(dense, PLAN), [batch, batch])
    assert pruned.worst_twentieth <= pruned.mean < 0.9999


def test_token_inputs_fit_the_model_and_repeat():
    model = tiny_model("bert")
    first, again = token_inputs(model, (2, 7)), token_inputs(model, (2, 7))
    assert first["input_ids"].shape == (2, 7)
    assert int(first["input_ids"].max()) < model.config.vocab_size
    assert bool(first["attention_mask"].all())
    assert torch.equal(first["input_ids"], again["input_ids"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_of_images_gets_pixels_and_no_other_tokens_than_theirs(dtype):
    model = tiny_model("vit").to(dtype)
    inputs = token_inputs(model, (2, 10))
    assert inputs["pixel_values"].shape == (2, 3, 24, 24)
    assert model(**inputs).logits.shape == (2, 3)
    with pytest.raises(
        DataError, match="expected 10 tokens, those of an input of its size, got 128"
    ):
        token_inputs(model, (2, 128))


OF_ONE_SIZE = {
    "siglip_vision_model": 9,
    "deit": 11,
    "dinov2_with_registers": 14,
    "audio-spectrogram-transformer": 5,
    "whisper": 9,
}


@pytest.mark.parametrize("kind", OF_ONE_SIZE)
def test_a_model_of_inputs_of_one_size_gets_its_tokens(kind):
    model, tokens = tiny_model(kind), OF_ONE_SIZE[kind]
    assert len(token_inputs(model, (2, tokens))[model.main_input_name]) == 2
    with pytest.raises(DataError, match=f"expected {tokens} tokens, those of an input"):
        token_inputs(model, (2, tokens + 1))


@pytest.mark.parametrize("kind", ["wav2vec2", "stable hubert"])
def test_a_model_of_waveforms_gets_as_many_frames_as_asked(kind):
    model = tiny_model(kind)
    for tokens in (1, 7):
        assert model(**token_inputs(model, (2, tokens)))[0].shape == (2, tokens, 64)


def test_the_backend_is_the_one_that_runs():
    dense = tiny_model("bert")
    fast = convert(dense, SparsityPlan())
    assert backend_of(dense) == "torch"
    assert backend_of(fast) == "cpu"
    with use_backend("reference"):
        assert backend_of(fast) == "reference"


def test_the_backend_of_patterns_is_told_beside_the_others(monkeypatch):
    weight = torch.ones(16, 8)
    panels = PackedLinear(BlockSparseWeight.pack_dense(weight), None)
    pattern = PatternLinear(pack(weight, weight.bool(), (16, 1)), None)
    assert backend_of(torch.nn.Sequential(pattern)) == "cpu"
    monkeypatch.setattr(PatternLinear, "choice", lambda self: Choice("triton", {}))
    assert backend_of(torch.nn.Sequential(panels, pattern, panels)) == "cpu+triton"
    monkeypatch.setattr(PatternLinear, "choice", lambda self: Choice(None, {}))
    assert backend_of(torch.nn.Sequential(pattern)) == "none"
