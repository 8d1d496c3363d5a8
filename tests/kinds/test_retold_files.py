"""Files changed after they were saved, and those of an older format: read as said, or refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import answer, relative, saved_files
from support.saved_plans import BLOCKS, FORMAT_1, LEVELS, MASKS, PLAN, TEXT
from support.tiny_models import tiny_model
from transformers import (
    LlamaForCausalLM,
)

from secateurs import (
    SparsityPlan,
    convert,
    load,
    save,
)
from secateurs.errors import CheckpointError
from secateurs.files import sha256
from secateurs.plan import BlockMask, PatternMask


def test_folders_of_format_1_load():
    """Written by the version before; the values are those it computed."""
    model = load(FORMAT_1)
    with torch.no_grad():
        states = model(torch.arange(3, 11)[None])[0]
    wanted = torch.tensor([-1.0475847721, -0.3520286083, 0.5007877350, 0.5528458953])
    assert relative(states.flatten()[:4], wanted) < 1e-5


def test_saving_over_format_1_leaves_nothing_that_stock_transformers_opens(tmp_path):
    for path in FORMAT_1.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    save(load(tmp_path), tmp_path)
    named = {"README.md", "config.json", "needs-secateurs.safetensors"}
    found = {path.name for path in tmp_path.iterdir()}
    assert named < found
    assert len(found) == len(named) + 2  # weights and the plan, named by what they hold
    assert not list(tmp_path.glob("model*"))


def retold(directory: Path, change) -> None:
    """Change tensors and config of a saved folder, with digests that fit."""
    config = json.loads((directory / "config.json").read_text())
    weights, _ = saved_files(directory)
    tensors = load_file(weights)
    change(tensors, config)
    save_file(tensors, weights)
    digests = config["secateurs"]["sha256"]
    digests.update({weights.name: sha256(weights)} if weights.name in digests else {})
    (directory / "config.json").write_text(json.dumps(config))


BIAS = "pooler.dense.bias"
UP = "encoder.layer.0.intermediate.dense.weight"
BLOCKED = "encoder.layer.1.intermediate.dense.weight"
TOLD = {
    "another dtype": lambda t, _: t.update({UP: t[UP].half()}),
    "another dtype outside": lambda t, _: t.update({BIAS: t[BIAS].half()}),
    "another shape": lambda t, _: t.update({UP: t[UP][:3]}),
    "NaN": lambda t, _: t[UP].view(-1)[3:4].fill_(torch.nan),
    "infinity": lambda t, _: t[UP].view(-1)[3:4].fill_(torch.inf),
    "NaN outside": lambda t, _: t[BIAS].fill_(torch.nan),
    "no bias": lambda t, _: t.pop(UP.replace("weight", "bias")),
    "a bias too many": lambda t, _: t.update({"encoder.layer.0.bias": torch.ones(3)}),
    "other blocks": lambda t, _: t[f"{BLOCKED}.indices"].sub_(1).remainder_(4),
    "dense in place of blocks": lambda t, _: t.update(
        {BLOCKED: torch.ones(96, 64)} if t.pop(f"{BLOCKED}.values") is not None else {}
    ),
    "blocks in a wide type": lambda t, _: t.update(
        {f"{BLOCKED}.values": t[f"{BLOCKED}.values"].double()}
    ),
    "more layers": lambda _, c: c.update(num_hidden_layers=10**9),
    "layers in words": lambda _, c: c.update(num_hidden_layers="many"),
    "a great vocabulary": lambda _, c: c.update(vocab_size=5 * 10**8),
    "a wide FFN": lambda _, c: c.update(intermediate_size=10**8),
    "an unknown class": lambda _, c: c.update(architectures=["pipeline"]),
    "another class": lambda _, c: c.update(architectures=["LlamaModel"]),
    "unknown arguments": lambda _, c: c["secateurs"].update(arguments={"device": "cuda"}),
    "a tie to nothing": lambda _, c: c["secateurs"].update(tied={"pooler.dense.bias": "x"}),
    "an unknown setting": lambda _, c: c["secateurs"].update(settings={"pooler.training": 1}),
    "a setting without number": lambda _, c: c["secateurs"].update(
        settings={"embeddings.LayerNorm.eps": "nan"}
    ),
    "files elsewhere": lambda _, c: c["secateurs"].update(sha256={"../x": "", "../plan": ""}),
    "a deep config": lambda _, c: c.update(id2label=[[[]]]),
    "a dtype that is none": lambda _, c: c.update(dtype="nn"),
}  # fmt: skip


@pytest.mark.parametrize("what", list(TOLD))
def test_what_is_not_as_saved_is_refused_in_one_line(what, tmp_path):
    save(convert(tiny_model("bert"), BLOCKS), tmp_path)
    retold(tmp_path, TOLD[what])
    with pytest.raises(CheckpointError) as refusal:
        load(tmp_path)
    assert re.fullmatch(r"[^\n]{20,}", str(refusal.value))


@pytest.mark.parametrize(("low", "loads"), [(-7, True), (-8, False), (8, False)])
def test_codes_beyond_their_bits_are_refused(low, loads, tmp_path):
    save(convert(tiny_model("bert"), LEVELS), tmp_path)
    retold(tmp_path, lambda tensors, _: tensors[UP].view(-1)[:1].fill_(low))
    if loads:
        load(tmp_path)
    else:
        with pytest.raises(CheckpointError, match=f"codes of 4 bits in {UP}"):
            load(tmp_path)


@pytest.mark.parametrize("broken", [False, True], ids=["pattern", "blocks no longer aligned"])
def test_weights_where_a_plan_has_none_are_refused(broken, tmp_path):
    fours = torch.tensor([True, False, False, True]).repeat(96, 16)
    mask = BlockMask(torch.eye(6, 4).bool(), (16, 16)) if broken else PatternMask(fours, (1, 1))
    neurons = {"layers.0.neurons": MASKS["layers.0.neurons"]} if broken else {}
    save(convert(tiny_model("bert"), SparsityPlan({"layers.0.up": mask, **neurons})), tmp_path)
    load(tmp_path)
    retold(tmp_path, lambda tensors, _: tensors[UP].view(-1)[-3:-2].add_(1))
    with pytest.raises(CheckpointError, match=f"expected zeros in {UP}"):
        load(tmp_path)


def test_files_elsewhere_are_not_read(tmp_path):
    """Even where they are what the config says they are."""
    save(convert(tiny_model("bert"), PLAN), tmp_path / "a")
    save(convert(tiny_model("bert"), PLAN), tmp_path / "b")
    path = tmp_path / "b" / "config.json"
    config = json.loads(path.read_text())
    digests = config["secateurs"]["sha256"]
    config["secateurs"]["sha256"] = {f"../a/{name}": d for name, d in digests.items()}
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="expected digests"):
        load(tmp_path / "b")


def test_a_strangers_config_runs_and_fetches_nothing(tmp_path):
    fast = convert(tiny_model("llama"), PLAN)
    save(fast, tmp_path)
    strange = {
        "attn_implementation": "kernels-community/flash-attn",
        "_attn_implementation": "kernels-community/flash-attn",
        "auto_map": {"AutoModel": "evil.Evil"},
        "use_kernels": True,
        "quantization_config": {"quant_method": "bitsandbytes"},
        "to_dict": 5,
        "output_attentions": True,
    }
    retold(tmp_path, lambda _, config: config.update(strange))
    again = load(tmp_path)
    assert torch.equal(answer(again, TEXT), answer(fast, TEXT))
    assert isinstance(again, LlamaForCausalLM)
    assert again.config._attn_implementation == "secateurs"
    assert again.config.to_dict()["model_type"] == "llama"
