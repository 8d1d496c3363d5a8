from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from support.live_tensors import watch
from support.models import answer, relative, saved_files
from support.plans import PLANS, RULED, skip_unless_followed
from support.tiny_models import tiny_model

import secateurs
from secateurs import SparsityPlan, apply, convert, export_dense, load, prune, save
from secateurs.errors import CheckpointError, FormatError, PlanError
from secateurs.storage.blueprint import blueprint_of
from secateurs.storage.sentinel import NAME as SENTINEL


@pytest.mark.parametrize("name", list(PLANS))
def test_reload_is_identical_to_the_bit(model, batch, name, tmp_path):
    skip_unless_followed(model, PLANS[name])
    fast = convert(model, SparsityPlan(PLANS[name]))
    save(fast, tmp_path / "m")
    again = load(tmp_path / "m")
    assert type(again) is type(fast)
    assert isinstance(again, type(model))
    assert torch.equal(answer(again, batch), answer(fast, batch))
    actions = [[(r.site, r.action) for r in secateurs.explain(m)] for m in (fast, again)]
    # The stock layers, which the converted ones were proven against, are gone by now.
    assert actions[0] == [("layers", "proven"), *actions[1]]
    names = sorted(p.name for p in (tmp_path / "m").iterdir())
    files = [weights(tmp_path / "m").name, plan(tmp_path / "m").name]
    assert names == sorted(["README.md", "config.json", SENTINEL, *files])


def weights(directory):
    return saved_files(directory)[0]


def plan(directory):
    return saved_files(directory)[1]


def test_a_fresh_process_reproduces_the_logits(batch, tmp_path):
    fast = convert(tiny_model("llama"), SparsityPlan(PLANS["uneven"]))
    save(fast, tmp_path / "m")
    torch.save(batch, tmp_path / "batch.pt")
    code = (
        "import sys, torch, secateurs\n"
        "model = secateurs.load(sys.argv[1] + '/m')\n"
        "batch = torch.load(sys.argv[1] + '/batch.pt')\n"
        "with torch.no_grad():\n"
        "    torch.save(model(**batch)[0], sys.argv[1] + '/out.pt')\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "out.pt"), fast(**batch)[0])


@pytest.mark.parametrize("name", [name for name in PLANS if name not in RULED])
def test_export_dense_gives_a_stock_model(model, batch, name):
    plan = SparsityPlan(PLANS[name])
    dense = export_dense(convert(model, plan))
    assert type(dense) is type(model)
    assert not hasattr(dense, "secateurs")
    assert relative(answer(dense, batch), answer(apply(model, plan), batch)) < 1e-5


@pytest.mark.parametrize("name", RULED)
def test_export_dense_refuses_attention_rules(name):
    fast = convert(tiny_model("bert"), SparsityPlan(PLANS[name]))
    with pytest.raises(CheckpointError, match=r"layers\.0\.attention_rules hides keys"):
        export_dense(fast)


def test_an_exported_model_is_saved_and_read_by_stock_transformers(model, batch, tmp_path):
    plan = SparsityPlan(PLANS["uneven"])
    export_dense(convert(model, plan)).save_pretrained(tmp_path)
    stock = type(model).from_pretrained(tmp_path).eval()
    assert relative(answer(stock, batch), answer(apply(model, plan), batch)) < 1e-5


@pytest.mark.parametrize("name", ["blocks", "uneven", "no middle layer"])
def test_exported_weights_are_those_of_apply(name):
    model, plan = tiny_model("bert"), SparsityPlan(PLANS[name])
    want = apply(model, plan).state_dict()
    got = export_dense(convert(model, plan)).state_dict()
    assert list(got) == list(want)
    assert all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize("unit", ["heads=0.5,neurons=0.5", "blocks=0.5,block=16"])
def test_the_file_shrinks_with_density(tmp_path, unit):
    model = tiny_model("bert")
    for name, plan in {
        "dense": SparsityPlan(),
        "half": prune(model, method="magnitude", budget=unit),
    }.items():
        save(convert(model, plan), tmp_path / name)
    size = {n: weights(tmp_path / n).stat().st_size for n in ("dense", "half")}
    layers = 4 * sum(p.numel() for p in model.encoder.parameters())
    assert size["half"] < size["dense"] - 0.4 * layers


def test_stock_names_are_kept(tmp_path):
    from safetensors.torch import load_file

    model = tiny_model("bert")
    save(convert(model, SparsityPlan()), tmp_path / "m")
    stock = model.state_dict()
    saved = load_file(weights(tmp_path / "m"))
    not_in_states = {"embeddings.position_ids", "embeddings.token_type_ids"}
    assert saved.keys() == stock.keys() | not_in_states
    assert all(torch.equal(saved[name], stock[name]) for name in stock)


def test_tied_weights_are_stored_once_and_tied_again(tmp_path, batch):
    model = tiny_model("llama", tie_word_embeddings=True)
    fast = convert(model, SparsityPlan(PLANS["uneven"]))
    save(fast, tmp_path / "m")
    again = load(tmp_path / "m")
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert torch.equal(answer(again, batch), answer(fast, batch))


def test_a_loaded_model_holds_memory_of_its_own_and_no_more(tmp_path, batch, monkeypatch):
    """While it is loaded there is no more than itself and one layer in all its forms; the file may
    become another one afterwards."""
    model = tiny_model("bert", num_hidden_layers=8, intermediate_size=256)
    save(convert(model, SparsityPlan(), inplace=True), tmp_path / "m")
    want, path = answer(model, batch), weights(tmp_path / "m")
    with watch() as seen:
        seen.returns_of(monkeypatch, "secateurs.conversion.rebuilding.fastest")
        again = load(tmp_path / "m")
        assert 0 < seen.most < 1.5 * path.stat().st_size
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(answer(again, batch), want)


def test_a_tensor_that_no_layer_has_is_refused_with_the_last_layer():
    fast = convert(tiny_model("bert"), SparsityPlan())
    blueprint, tensors = blueprint_of(fast)
    tensors["encoder.layer.0.more"] = torch.ones(1)
    restored = blueprint.restored(SparsityPlan(), tensors)
    *others, last = range(len(restored.layers))
    for index in others:
        restored.linears(index)
    with pytest.raises(FormatError, match=r"makes no tensor encoder\.layer\.0\.more"):
        restored.linears(last)


def test_bfloat16_stays_bfloat16(tmp_path, batch):
    fast = convert(tiny_model("bert").bfloat16(), SparsityPlan(PLANS["uneven"]))
    save(fast, tmp_path / "m")
    assert load(tmp_path / "m").dtype == torch.bfloat16
    assert torch.equal(answer(load(tmp_path / "m"), batch), answer(fast, batch))


def test_saving_again_replaces_the_files(tmp_path, batch):
    save(convert(tiny_model("bert"), SparsityPlan()), tmp_path)
    fast = convert(tiny_model("bert"), SparsityPlan(PLANS["uneven"]))
    save(fast, tmp_path)
    assert torch.equal(answer(load(tmp_path), batch), answer(fast, batch))


def saved(path) -> None:
    save(convert(tiny_model("bert"), SparsityPlan(PLANS["uneven"])), path)


@pytest.mark.parametrize("file", [weights, plan])
def test_truncated_altered_and_missing_files_are_refused(tmp_path, file):
    directory = tmp_path / "m"
    saved(directory)
    path = file(directory)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(CheckpointError, match="truncated or altered"):
        load(directory)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="truncated or altered"):
        load(directory)
    path.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        load(directory)


def test_load_refuses_what_is_not_a_saved_model(tmp_path):
    with pytest.raises(CheckpointError, match="expected a directory"):
        load(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="secateurs block"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="secateurs block"):
        load(tmp_path)


def test_save_refuses_files_and_stock_models_and_leaves_nothing(tmp_path):
    fast = convert(tiny_model("bert"), SparsityPlan())
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        save(fast, tmp_path / "file")
    with pytest.raises(CheckpointError, match="cannot write"):
        save(fast, tmp_path / "file" / "below")
    with pytest.raises(PlanError, match="made by secateurs"):
        save(tiny_model("bert"), tmp_path / "m")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
