"""Files that read as another model than the one that was saved: each model is loaded, and exported,
as what it is, or is refused in a sentence before anything is written."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from support.models import answer, relative
from support.saved_plans import MASKS, PLAN, TEXT
from support.tiny_models import SIZES, tiny_model
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BertPreTrainedModel,
    ViTConfig,
    ViTModel,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

from secateurs import (
    HeadMask,
    NeuronMask,
    SparsityPlan,
    convert,
    export_dense,
    load,
    save,
)
from secateurs.errors import CheckpointError, SecateursError

IMAGES = {"pixel_values": torch.linspace(-1, 1, 3 * 24 * 24).view(1, 3, 24, 24)}


def filled(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return model.eval()


class Own(BertPreTrainedModel):
    """An own class, with what no stock class has: its name is also that of one."""

    def __init__(self, config):
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.factor = nn.Parameter(torch.tensor(config.own_factor))
        self.register_buffer("shift", torch.zeros(1), persistent=False)
        self.bias = torch.ones(1)  # a plain attribute
        self.post_init()

    def forward(self, **inputs):
        return (self.bert(**inputs)[0] * self.factor + self.shift + self.bias,)


Own.__name__ = Own.__qualname__ = "BertForTokenClassification"


def own() -> nn.Module:
    model = Own(BertConfig(**SIZES, own_factor=2.5)).eval()
    model.shift.fill_(3.0)
    model.bias = torch.ones(1) * 5
    return model


def changed(kind: str, change, **options) -> nn.Module:
    model = tiny_model(kind, **options)
    with torch.no_grad():
        change(model)
    return model


def all_eps(model):
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 0.1


def tied_by_hand(model):
    model.lm_head.weight = model.model.embed_tokens.weight


def apart(model):
    model.lm_head.weight = nn.Parameter(model.lm_head.weight * 2 + 1)


def mlm_apart():
    model = filled(BertForMaskedLM(BertConfig(**SIZES)))
    decoder = model.cls.predictions.decoder
    decoder.weight = nn.Parameter(decoder.weight.detach() + 1)
    return model


def mixed_dtypes(model):
    model.bfloat16()
    model.norm.float() if hasattr(model, "norm") else model.embeddings.LayerNorm.bfloat16()


def setting(path, name, value):
    return lambda model: setattr(model.get_submodule(path), name, value)


# Models that load as they are, and whether a stock folder can hold the dense ones, too.
LOADED = {
    "no pooler": (lambda: filled(BertModel(BertConfig(**SIZES), add_pooling_layer=False)), True),
    "pooler taken away": (lambda: changed("bert", setting("", "pooler", None)), True),
    "a mask token": (
        lambda: filled(
            ViTModel(ViTConfig(**SIZES, image_size=24, patch_size=8), use_mask_token=True)
        ),
        False,  # from_pretrained gives the dense one no mask token: it is not asked for
    ),
    "a masked language model": (
        lambda: filled(XLMRobertaForMaskedLM(XLMRobertaConfig(**SIZES, pad_token_id=1))),
        True,
    ),
    "a tied head": (lambda: tiny_model("llama", tie_word_embeddings=True), True),
    "a head tied by hand": (lambda: changed("llama", tied_by_hand), True),
    "a head trained apart": (lambda: changed("llama", apart, tie_word_embeddings=True), True),
    "a masked head trained apart": (mlm_apart, True),
    "dropped layers": (
        lambda: changed("bert", lambda m: setattr(m.encoder, "layer", m.encoder.layer[:2])),
        True,
    ),
    "eps of all norms": (lambda: changed("bert", all_eps), True),
    "eps of one norm": (
        lambda: changed("bert", setting("encoder.layer.1.output.LayerNorm", "eps", 0.1)),
        False,
    ),
    "eps beside the config": (
        lambda: changed("llama", lambda m: setattr(m.config, "rms_norm_eps", 0.3)),
        True,
    ),
    "rotations changed by hand": (
        lambda: changed("llama", lambda m: m.model.rotary_emb.inv_freq.mul_(0.5)),
        False,
    ),
    "positions changed by hand": (
        lambda: changed("bert", lambda m: m.embeddings.position_ids.add_(7)),
        False,
    ),
    "a norm shared by layers": (
        lambda: changed(
            "bert",
            lambda m: setattr(
                m.encoder.layer[1].output, "LayerNorm", m.encoder.layer[0].output.LayerNorm
            ),
        ),
        True,
    ),
    "rotations in float32": (
        lambda: changed("llama", lambda m: m.bfloat16().model.rotary_emb.float()),
        None,  # rounded otherwise, at once
    ),
    "more in the config": (
        lambda: changed("bert", lambda m: setattr(m.config, "finetuning_task", "cola")),
        True,
    ),
}


@pytest.mark.parametrize("name", list(LOADED))
def test_loaded_and_exported_as_what_it_is(name, tmp_path):
    make, dense_too = LOADED[name]
    model = make()
    batch = IMAGES if isinstance(model, ViTModel) else TEXT
    masks = {n: m for n, m in MASKS.items() if isinstance(m, (HeadMask, NeuronMask))}
    fast = convert(model, SparsityPlan(masks))
    save(fast, tmp_path / "m")
    again = load(tmp_path / "m")
    assert type(again) is type(fast)
    assert torch.equal(answer(again, batch), answer(fast, batch))
    assert not any(p.device.type == "meta" for p in again.parameters())
    save(again, tmp_path / "again")
    assert {p.name for p in (tmp_path / "again").iterdir()} == {
        p.name for p in (tmp_path / "m").iterdir()
    }
    if dense_too:
        dense = export_dense(fast)
        assert relative(answer(dense, batch), answer(fast, batch)) < 1e-5
        dense.save_pretrained(tmp_path / "dense")
        stock = type(dense).from_pretrained(tmp_path / "dense", **_flags(name)).eval()
        assert relative(answer(stock, batch), answer(dense, batch)) < 1e-6
    elif dense_too is False and name != "a mask token":
        with pytest.raises(CheckpointError, match="dense model"):
            export_dense(fast)


def _flags(name):
    return {"add_pooling_layer": False} if "pooler" in name else {}


def narrowed(model):
    layer = model.encoder.layer[1]
    up, down = layer.intermediate.dense, layer.output.dense
    up.weight, up.bias = nn.Parameter(up.weight[:48]), nn.Parameter(up.bias[:48])
    down.weight = nn.Parameter(down.weight[:, :48])
    up.out_features = down.in_features = 48


def quantised(model):
    model.config.quantization_config = {"quant_method": "some"}


REFUSED = {
    "a narrowed FFN": (
        narrowed,
        r"encoder.layer.1.intermediate.dense.bias .* \(96,\), got \(48,\)",
    ),
    "a norm without weight": (
        setting("encoder.layer.1.output", "LayerNorm", nn.LayerNorm(64, elementwise_affine=False)),
        r"encoder.layer.1.output.LayerNorm.bias",
    ),
    "a linear without bias": (
        setting("encoder.layer.0.output.dense", "bias", None),
        r"encoder.layer.0.output.dense.bias",
    ),
    "another buffer": (lambda m: m.register_buffer("mine", torch.ones(3)), "no tensor mine"),
    "another parameter": (
        lambda m: m.register_parameter("mine", nn.Parameter(torch.ones(3))),
        "no tensor mine",
    ),
    "another module": (lambda m: m.add_module("mine", nn.Linear(2, 2)), "mine is a Linear"),
    "another activation": (
        setting("pooler", "activation", nn.ReLU()),
        "pooler.activation is a ReLU",
    ),
    "an activation beside the config": (
        lambda m: setattr(m.config, "hidden_act", "relu"),
        "intermediate_act_fn is a GELUActivation, not a ReLU",
    ),
    "another scale": (
        setting("encoder.layer.0.attention.self", "scaling", 0.5),
        r"encoder.layer.0.attention.self.scaling is 0\.5, not 0\.25",
    ),
    "another padding": (
        setting("embeddings.word_embeddings", "padding_idx", 3),
        "embeddings.word_embeddings.padding_idx is 3, not 0",
    ),
    "NaN outside the layers": (lambda m: m.pooler.dense.bias.fill_(torch.nan), "holds NaN"),
    "a quantised model": (quantised, "not quantised"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_refused_before_anything_is_written(name, tmp_path):
    change, why = REFUSED[name]
    fast = convert(changed("bert", change), SparsityPlan())
    for call in (lambda: save(fast, tmp_path / "m"), lambda: export_dense(fast)):
        with pytest.raises(CheckpointError, match=why) as refusal:
            call()
        assert "\n" not in str(refusal.value)
    assert not (tmp_path / "m").exists()


def test_own_classes_are_known_to_this_process_or_given_by_who_loads(tmp_path):
    fast = convert(own(), PLAN)
    save(fast, tmp_path)
    for loaded in (load(tmp_path), load(tmp_path, model_class=Own)):
        assert type(loaded) is Own
        assert torch.equal(answer(loaded, TEXT), answer(fast, TEXT))
    for other in (BertModel, dict, BertForMaskedLM):
        with pytest.raises(SecateursError, match="model_class"):
            load(tmp_path, model_class=other)


def test_an_own_class_that_no_one_knows_is_not_looked_for(tmp_path):
    save(convert(own(), PLAN), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for module in ("nowhere", "os", "antigravity"):
        config["secateurs"]["model_class"]["module"] = module
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match="model_class=BertForTokenClassification"):
            load(tmp_path)
    assert "antigravity" not in sys.modules


def test_a_compiled_model_is_saved_as_what_was_compiled(tmp_path):
    fast = convert(tiny_model("bert"), PLAN)
    save(torch.compile(fast, backend="eager"), tmp_path)
    assert torch.equal(answer(load(tmp_path), TEXT), answer(fast, TEXT))
    assert type(export_dense(torch.compile(fast, backend="eager"))) is BertModel


def test_generation_goes_on_as_before(tmp_path):
    model = tiny_model("llama")
    config = model.generation_config
    config.eos_token_id, config.repetition_penalty = [2, 7], 1.3
    fast = convert(model, PLAN)
    save(fast, tmp_path)
    for again in (load(tmp_path), export_dense(fast)):
        assert again.generation_config.to_dict() == config.to_dict()
