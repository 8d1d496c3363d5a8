"""Saved folders opened by transformers: with us imported they are what `load` reads, and without us
nothing opens them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from support.models import answer
from support.plans import PLANS, skip_unless_followed
from support.saved_plans import BLOCKS, LEVELS, PLAN
from support.tiny_models import tiny_model
from support.word_folders import WORDS, saved
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertModel,
    GenerationConfig,
    pipeline,
)
from transformers.utils import hub

from secateurs import SparsityPlan, convert, explain, load, save
from secateurs.errors import CheckpointError
from secateurs.integrations.transformers_quantizer import SecateursConfig
from secateurs.storage.sentinel import NAME, SENTENCE

RULES = SparsityPlan(PLANS["attention rules"])


@pytest.mark.parametrize("name", ["empty", "uneven", "blocks", "attention rules"])
def test_from_pretrained_gives_what_load_gives(model, batch, name, tmp_path):
    skip_unless_followed(model, PLANS[name])
    save(convert(model, SparsityPlan(PLANS[name])), tmp_path / "m")
    wanted, got = load(tmp_path / "m"), type(model).from_pretrained(tmp_path / "m")
    assert type(got) is type(wanted)
    assert not got.training
    assert torch.equal(answer(got, batch), answer(wanted, batch))
    assert explain(got) == explain(wanted)
    assert got.state_dict().keys() == wanted.state_dict().keys()
    got.save_pretrained(tmp_path / "again")
    assert torch.equal(answer(load(tmp_path / "again"), batch), answer(wanted, batch))


@pytest.mark.parametrize(
    ("family", "auto"),
    [
        ("bert", AutoModel),
        ("roberta", AutoModelForSequenceClassification),
        ("llama", AutoModelForCausalLM),
    ],
)
def test_auto_classes_give_the_saved_class(family, auto, tmp_path):
    dense = tiny_model(family)
    save(convert(dense, PLAN), tmp_path)
    assert type(auto.from_pretrained(tmp_path)) is type(dense)


def test_the_methods_of_a_model_are_its_own(tmp_path, batch):
    """None of them leads to a model that `load` made and that nobody else holds."""
    save(convert(tiny_model("roberta"), PLAN), tmp_path)
    got = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    for part in (got, got.base_model):
        assert part.save_pretrained.model is part
    assert got.to(torch.bfloat16) is got
    assert got.dtype == got.base_model.dtype == torch.bfloat16


def test_another_dtype_is_a_cast(tmp_path, batch):
    save(convert(tiny_model("bert"), PLAN), tmp_path)
    got = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert got.dtype == torch.bfloat16
    assert torch.equal(answer(got, batch), answer(load(tmp_path).to(torch.bfloat16), batch))


def test_pipelines_open_a_folder(tmp_path):
    folder = saved(tmp_path / "m", tiny_model("roberta"), pad_token="[PAD]")
    dense = AutoModelForSequenceClassification.from_pretrained(folder)
    for path in folder.glob("model*"):
        path.unlink()
    save(convert(dense, PLAN), folder)
    words = " ".join(WORDS)
    run = pipeline("text-classification", model=str(folder), device="cpu")
    (got,) = run(words)
    with torch.no_grad():
        logits = load(folder)(**run.tokenizer(words, return_tensors="pt")).logits
    assert got["score"] == pytest.approx(float(logits.softmax(-1).max()), rel=1e-6)
    assert explain(run.model) == explain(load(folder))


def test_what_a_call_may_set_is_followed(tmp_path, batch):
    save(convert(tiny_model("bert"), PLAN), tmp_path)
    got = AutoModel.from_pretrained(tmp_path, output_hidden_states=True)
    with torch.no_grad():
        states = got(**batch).hidden_states
        wanted = load(tmp_path)(**batch, output_hidden_states=True).hidden_states
    assert len(states) == len(wanted) == 4
    assert all(map(torch.equal, states, wanted))


def test_how_to_generate_is_as_saved_unless_the_call_says_it(tmp_path):
    fast = convert(tiny_model("llama"), PLAN)
    fast.generation_config.max_new_tokens = 7
    save(fast, tmp_path)
    got = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert got.generation_config.to_dict() == load(tmp_path).generation_config.to_dict()
    assert got.generation_config.max_new_tokens == 7
    given = GenerationConfig(max_new_tokens=2, pad_token_id=0)
    got = AutoModelForCausalLM.from_pretrained(tmp_path, generation_config=given)
    assert got.generate(torch.arange(3, 8)[None]).shape == (1, 7)


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, "auto"])
def test_one_device_is_followed(device_map, tmp_path, batch):
    save(convert(tiny_model("bert"), PLAN), tmp_path)
    got = AutoModel.from_pretrained(tmp_path, device_map=device_map)
    wanted = "cuda" if device_map == "auto" and torch.cuda.is_available() else "cpu"
    assert {tensor.device.type for tensor in got.state_dict().values()} == {wanted}
    if wanted == "cpu":
        assert torch.equal(answer(got, batch), answer(load(tmp_path), batch))


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"num_labels": 5}, "settings that .* was saved with, (id2label|num_labels)="),
        ({"hidden_act": "relu"}, "hidden_act='gelu', got 'relu'"),
        ({"attn_implementation": "eager"}, "its own attention, got attn_implementation='eager'"),
        ({"device_map": {"embeddings": "cpu", "encoder": "meta"}}, "one device .* got cpu, meta"),
        ({"device_map": "disk"}, "disk"),
    ],
)
def test_what_a_saved_model_cannot_follow_is_refused(asked, sentence, tmp_path):
    save(convert(tiny_model("bert"), PLAN), tmp_path)
    with pytest.raises((CheckpointError, ValueError), match=sentence):
        BertModel.from_pretrained(tmp_path, **asked)


@pytest.mark.parametrize(("family", "auto"), [("roberta", AutoModel), ("bert", None)])
def test_another_class_than_the_saved_one_is_refused(family, auto, tmp_path):
    dense = tiny_model(family)
    save(convert(dense, PLAN), tmp_path)
    auto = auto or AutoModelForSequenceClassification
    with pytest.raises(CheckpointError, match=f"holds a {type(dense).__name__}, got a call for"):
        auto.from_pretrained(tmp_path)


def test_a_dense_model_is_not_quantised_by_us(tmp_path):
    tiny_model("bert").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="pre-quantized"):
        BertModel.from_pretrained(tmp_path, quantization_config=SecateursConfig())


def test_the_model_that_transformers_makes_is_emptied(tmp_path, monkeypatch):
    """No weights of the dense model are made, on any device."""
    save(convert(tiny_model("bert"), PLAN), tmp_path)
    monkeypatch.setattr(BertModel, "_init_weights", lambda _, module: pytest.fail(f"made {module}"))
    AutoModel.from_pretrained(tmp_path)


def test_altered_files_are_refused_as_load_does(tmp_path):
    save(convert(tiny_model("bert"), PLAN), tmp_path)
    (weights,) = tmp_path.glob("secateurs-[0-9a-f]*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="truncated or altered"):
        AutoModel.from_pretrained(tmp_path)


def test_folders_saved_before_transformers_knew_them_still_load(tmp_path, batch):
    save(convert(tiny_model("bert"), PLAN), tmp_path)
    wanted = answer(load(tmp_path), batch)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"], config["transformers_weights"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / NAME).unlink()
    assert torch.equal(answer(load(tmp_path), batch), wanted)
    with pytest.raises(OSError, match="no file named"):
        AutoModel.from_pretrained(tmp_path)


def test_a_state_dict_in_place_of_a_folder_is_refused(tmp_path):
    """With a folder transformers itself refuses it."""
    save(convert(tiny_model("bert"), PLAN), tmp_path)
    weights = tiny_model("bert").state_dict()
    with pytest.raises(ValueError, match="state_dict"):
        BertModel.from_pretrained(tmp_path, state_dict=weights)
    config = AutoConfig.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="expected the folder of a pruned model"):
        BertModel.from_pretrained(None, config=config, state_dict=weights)


def test_files_that_a_hub_has_are_fetched(tmp_path, batch, monkeypatch):
    """A call for a model of a hub has brought the config and the first file, and no other."""
    save(convert(tiny_model("bert"), PLAN), tmp_path / "hub")
    revision = "0123456789" * 4
    cached = tmp_path / "models--us--small" / "snapshots" / revision
    cached.mkdir(parents=True)
    for name in ("config.json", NAME):
        (cached / name).write_bytes((tmp_path / "hub" / name).read_bytes())
    asked = []

    def fetched(repository, name, *, revision, subfolder):
        asked.append((repository, revision, subfolder))
        (cached / name).write_bytes((tmp_path / "hub" / name).read_bytes())

    monkeypatch.setattr(hub, "cached_file", fetched)
    config = AutoConfig.from_pretrained(cached)
    config._commit_hash = revision
    got = BertModel.from_pretrained(cached, config=config)
    assert asked == [(str(cached), revision, "")] * 2
    assert torch.equal(answer(got, batch), answer(load(tmp_path / "hub"), batch))


def process(script: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_without_us_nothing_opens_a_folder_and_the_error_says_what_to_do(tmp_path):
    plans = {"removed": PLAN, "blocks": BLOCKS, "levels": LEVELS, "rules": RULES}
    for name, plan in plans.items():
        for family in ("bert", "llama"):
            save(convert(tiny_model(family), plan), tmp_path / family / name)
    script = (
        "import sys\nfrom transformers import AutoModel\n"
        "for folder in sys.argv[1:]:\n"
        "    for more in ({}, {'ignore_mismatched_sizes': True}):\n"
        "        try: AutoModel.from_pretrained(folder, **more); print('opened')\n"
        "        except Exception as error: print(str(error).replace('\\n', ' '))\n"
        "assert 'secateurs' not in sys.modules\n"
    )
    said = process(script, *tmp_path.glob("*/*")).splitlines()
    assert len(said) == 16
    assert all(SENTENCE in line for line in said)


@pytest.mark.parametrize(
    "order",
    [
        "secateurs, transformers",
        "transformers, secateurs",
        "transformers.quantizers.auto, secateurs",
    ],
)
def test_it_does_not_matter_which_is_imported_first(order, tmp_path):
    save(convert(tiny_model("bert"), PLAN), tmp_path)
    script = (
        f"import sys, {order}\n"
        "model = transformers.BertModel.from_pretrained(sys.argv[1])\n"
        "print(secateurs.explain(model) == secateurs.explain(secateurs.load(sys.argv[1])))\n"
        "registers = sys.modules['transformers.quantizers.auto']\n"
        "text = registers.__spec__.loader.get_source(registers.__name__)\n"
        "print('def register_quantizer' in text)\n"
    )
    assert process(script, tmp_path).split() == ["True", "True"]


def test_importing_us_before_transformers_loads_nothing():
    script = "import secateurs, sys; print(*{'torch', 'transformers'} & set(sys.modules))"
    assert not process(script).split()
