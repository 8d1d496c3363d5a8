"""Methods that converted models inherit and that would no longer do what they say: each does it, or
is refused in a sentence."""

from __future__ import annotations

import copy
import io
import json
import pickle
import subprocess
import sys

import pytest
import torch
from support.models import answer, relative
from support.tiny_models import tiny_model
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments

from secateurs import HeadMask, NeuronMask, SparsityPlan, convert, explain, export_dense, load, save
from secateurs.conversion.inherited import REFUSED, RIGHT, record_of
from secateurs.conversion.modules import Layer
from secateurs.conversion.report import conversion_of
from secateurs.errors import CheckpointError, ConvertedError, SecateursError
from secateurs.plan import BlockMask

PLAN = SparsityPlan(
    {
        "layers.0.heads": HeadMask(torch.tensor([False, True, True, True])),
        "layers.1.heads": HeadMask(torch.tensor([False, False, True, False])),
        "layers.0.neurons": NeuronMask(torch.arange(96) % 3 == 0),
        "layers.2.down": BlockMask(torch.eye(4, 6).bool(), (16, 16)),
    }
)
# What is right as it is inherited: it asks, or touches only what is stock in a converted model, or
# says itself that there is nothing to do (adapters). Whoever adds a name has looked at its body.
RIGHT_AS_INHERITED = """
T_destination activation_checkpointing_disable active_adapters add_model_tags add_module apply
barrier_after_gathered_checkpoint_save base_model base_model_prefix bfloat16 buffers
call_super_init can_generate can_record_outputs children compile config_class cpu cuda
delete_adapter device disable_adapters disable_input_require_grads double dtype dummy_inputs
dump_patches enable_adapters enable_input_require_grads enable_peft_hotswap ep_plan eval
extra_repr float from_pretrained fsdp_plan fsdp_size gather_sharded_state_dict_for_save
generation_config_class get_adapter_state_dict get_buffer get_compiled_call
get_correct_attn_implementation get_correct_experts_implementation get_decoder get_encoder
get_expanded_tied_weights_keys get_experts_implementation get_extra_state get_init_context
get_input_embeddings get_output_embeddings get_parameter get_parameter_or_buffer
get_position_embeddings get_submodule gradient_checkpointing_disable half init_parallel_plans
input_modalities ipu is_activation_checkpointing is_backend_compatible is_custom_code
is_distributed_loading_by_transformers is_gradient_checkpointing is_remote_code loss_function
main_input_name mark_tied_weights_as_initialized maybe_distribute_model model_tags modules mtia
named_buffers named_children named_modules named_non_persistent_buffers named_parameters
parameters pp_plan prepare_distribute_model register_backward_hook register_buffer
register_forward_hook register_forward_pre_hook register_full_backward_hook
register_full_backward_pre_hook register_load_state_dict_post_hook
register_load_state_dict_pre_hook register_module register_parameter register_state_dict_post_hook
register_state_dict_pre_hook requires_grad_ resize_position_embeddings retrieve_modules_from_names
set_adapter set_decoder set_encoder set_extra_state set_input_embeddings set_output_embeddings
set_submodule share_memory should_save_on_this_rank state_dict supports_context_parallel
supports_gradient_checkpointing supports_pp_plan supports_tp_plan to tp_plan tp_size use_kernels
warn_if_padding_and_no_attention_mask xpu zero_grad
create_extended_attention_mask_for_decoder get_extended_attention_mask invert_attention_mask
smart_apply
"""


@pytest.fixture
def fast(model):
    return convert(model, PLAN)


def test_every_public_name_of_stock_models_was_decided():
    """A new one fails here until somebody has looked at what it does to a converted model."""
    public = {name for name in dir(PreTrainedModel) if not name.startswith("_")}
    decided = {*RIGHT_AS_INHERITED.split(), *REFUSED, *RIGHT, "forward"}
    assert public <= decided


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_in_a_sentence(name):
    fast = convert(tiny_model("bert"), PLAN)
    if not hasattr(PreTrainedModel, name):
        assert not hasattr(fast, name)
        return
    with pytest.raises(ConvertedError, match=rf"^{name} of a converted model .*: "):
        getattr(fast, name)(10)


REFUSALS = {
    "train": lambda m: m.train(),
    "attention probabilities": lambda m: m(torch.ones(1, 3).long(), output_attentions=True),
    "of the base model": lambda m: m.base_model(torch.ones(1, 3).long(), output_attentions=True),
    "another attention": lambda m: m.set_attn_implementation("sdpa"),
    "other kernels": lambda m: m.set_use_kernels(True),
    "dense weights": lambda m: m.load_state_dict(tiny_model("llama").state_dict(), strict=False),
    "other blocks": lambda m: m.load_state_dict(
        {n: t.flip(0) if n.endswith("2.ffn.down.indices") else t for n, t in m.state_dict().items()}
    ),
    "assigned tensors": lambda m: m.load_state_dict(m.state_dict(), assign=True),
}


@pytest.mark.parametrize("what", list(REFUSALS))
def test_calls_refused_in_a_sentence(what):
    fast = convert(tiny_model("llama"), PLAN)
    before = answer(fast, {"input_ids": torch.arange(3, 9)[None]})
    with pytest.raises(ConvertedError):
        REFUSALS[what](fast)
    assert torch.equal(answer(fast, {"input_ids": torch.arange(3, 9)[None]}), before)


def test_attention_probabilities_asked_of_the_config_are_refused(fast, batch):
    vars(fast.config)["_output_attentions"] = vars(fast.config)["output_attentions"] = True
    with pytest.raises(ConvertedError, match="export_dense"):
        fast(**batch)


def test_hidden_states_are_those_of_stock_models(model, fast, batch):
    want = export_dense(fast)(**batch, output_hidden_states=True).hidden_states
    got = fast(**batch, output_hidden_states=True).hidden_states
    assert len(got) == len(want) == 4
    assert all(relative(a, b) < 1e-5 for a, b in zip(got, want, strict=True))


def test_evaluation_mode_can_be_asked_for(fast):
    assert fast.eval() is fast
    assert fast.train(False) is fast


def written(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_save_pretrained_writes_what_save_writes(fast, batch, tmp_path):
    save(fast, tmp_path / "a")
    fast.save_pretrained(tmp_path / "b", state_dict=fast.state_dict(), safe_serialization=True)
    assert written(tmp_path / "a") == written(tmp_path / "b")
    fast.save_pretrained(tmp_path / "c", is_main_process=False)
    assert not (tmp_path / "c").exists()


def test_the_base_model_in_a_converted_one_is_one(batch, tmp_path):
    fast = convert(tiny_model("llama"), PLAN)
    fast.model.save_pretrained(tmp_path)
    assert torch.equal(answer(load(tmp_path), batch), answer(fast.model, batch))


@pytest.mark.parametrize(
    "option",
    [
        {"variant": "fp16"},
        {"safe_serialization": False},
        {"state_dict": {}},
        {"distributed_checkpoint": True},
        {"quantize": True},
    ],
)
def test_options_that_save_cannot_honour_are_refused(option, tmp_path):
    fast = convert(tiny_model("bert"), PLAN)
    with pytest.raises(ConvertedError, match=next(iter(option))):
        fast.save_pretrained(tmp_path / "m", **option)
    assert not (tmp_path / "m").exists()


def test_the_trainer_saves_and_does_not_train(tmp_path):
    fast = convert(tiny_model("roberta"), PLAN)
    example = {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "labels": 1}
    arguments = TrainingArguments(tmp_path / "out", use_cpu=True, report_to=[], save_strategy="no")
    trainer = Trainer(fast, arguments, train_dataset=[example] * 8)
    trainer.save_model(str(tmp_path / "m"))
    ids = {"input_ids": torch.tensor([[5, 6, 7]])}
    assert torch.equal(answer(load(tmp_path / "m"), ids), answer(fast, ids))
    with pytest.raises(ConvertedError, match="train the dense model, and convert it again"):
        trainer.train()


COPIES = {
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "an old pickle": lambda m: pickle.loads(pickle.dumps(m, protocol=0)),
    "torch.save": lambda m: _by_torch(m),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


def _by_torch(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


@pytest.mark.parametrize("how", list(COPIES))
def test_copies_are_converted_models_that_compute_the_same(how, fast, batch, tmp_path):
    again = COPIES[how](fast)
    assert type(again) is type(fast)
    assert torch.equal(answer(again, batch), answer(fast, batch))
    assert str(explain(again)) == str(explain(fast))
    save(again, tmp_path / "again")
    save(fast, tmp_path / "fast")
    assert written(tmp_path / "again") == written(tmp_path / "fast")


def test_a_fresh_process_reads_a_pickle(tmp_path):
    fast = convert(tiny_model("llama"), PLAN)
    ids = torch.arange(3, 9)[None]
    torch.save((fast, ids, answer(fast, {"input_ids": ids})), tmp_path / "model.pt")
    code = (
        "import sys, torch\n"
        "model, ids, want = torch.load(sys.argv[1], weights_only=False)\n"
        "with torch.no_grad():\n"
        "    assert torch.equal(model(ids)[0], want)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "model.pt")], check=True)


CASTS = {
    "to": lambda m: m.to(torch.bfloat16),
    "bfloat16": lambda m: m.bfloat16(),
    "there and back": lambda m: m.bfloat16().float().bfloat16(),
    "from outside": lambda m: nn.Sequential(m).bfloat16()[0],
}


@pytest.mark.parametrize("how", list(CASTS))
def test_a_cast_is_as_good_as_converting_in_that_dtype(how, model, batch):
    batch = {n: x.bfloat16() if x.is_floating_point() else x for n, x in batch.items()}
    fast = CASTS[how](convert(model, PLAN))
    want = convert(copy.deepcopy(model).bfloat16(), PLAN)
    # The stock layers, which the converted ones were proven against, are gone by now.
    assert list(explain(fast)) == [report for report in explain(want) if report.site != "layers"]
    assert torch.equal(answer(fast, batch), answer(want, batch))
    kinds = [[type(m) for m in one.modules()] for one in (fast, want)]
    assert kinds[0] == kinds[1]


def test_a_cast_keeps_layers_hooks_and_ties(batch):
    fast = convert(tiny_model("llama", tie_word_embeddings=True), PLAN)
    layers, seen = [m for m in fast.modules() if isinstance(m, Layer)], []
    layers[1].register_forward_hook(lambda *_: seen.append("layer"))
    handle = layers[1].ffn.register_forward_hook(lambda *_: seen.append("ffn"))
    fast.bfloat16()
    assert [m for m in fast.modules() if isinstance(m, Layer)] == layers
    answer(fast, batch)
    handle.remove()
    answer(fast, batch)
    assert seen == ["ffn", "layer", "layer"]
    assert fast.to("meta").lm_head.weight is fast.model.embed_tokens.weight


def test_a_cast_whole_layer_is_the_one_operation_of_its_new_parts():
    fast = convert(tiny_model("bert", hidden_size=128, intermediate_size=256), SparsityPlan())
    fast.double().float()
    ids = torch.arange(3, 9)[None]
    assert all(m.whole for m in fast.modules() if isinstance(m, Layer))
    stock = tiny_model("bert", hidden_size=128, intermediate_size=256)
    assert relative(answer(fast, {"input_ids": ids}), answer(stock, {"input_ids": ids})) < 1e-5


def test_counts_are_those_of_what_is_kept(model, fast):
    whole = convert(model, SparsityPlan())
    for asked in ({}, {"exclude_embeddings": True}):
        assert whole.num_parameters(**asked) == model.num_parameters(**asked)
    sites = conversion_of(fast).sites
    weights = [
        sum(sites.keep(plan, i).parameters() for i in range(3)) for plan in (SparsityPlan(), PLAN)
    ]
    lost = model.num_parameters() - fast.num_parameters()
    biases = [sum(p.numel() for n, p in model.named_parameters() if "bias" in n)]
    biases += [sum(b.numel() for n, b in fast.named_buffers() if n.endswith("bias"))]
    biases[1] += sum(p.numel() for n, p in fast.named_parameters() if "bias" in n)
    assert lost == weights[0] - weights[1] + biases[0] - biases[1] > 0
    assert fast.num_parameters(only_trainable=True) == sum(p.numel() for p in fast.parameters())


def test_the_memory_of_layers_counts_with_and_without_buffers(fast):
    layers = [m for m in fast.modules() if isinstance(m, Layer)]
    packed = sum(b.nbytes for layer in layers for b in layer.buffers())
    parameters = sum(p.nbytes for p in fast.parameters())
    assert fast.get_memory_footprint(return_buffers=False) == parameters + packed
    assert fast.get_memory_footprint() == parameters + sum(b.nbytes for b in fast.buffers())


def test_its_own_states_load(fast, batch):
    other = copy.deepcopy(fast)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(0.5)
    before = answer(fast, batch)
    other.load_state_dict(fast.state_dict())
    assert torch.equal(answer(other, batch), before)


def test_its_class_makes_stock_models(fast):
    stock = type(fast)(copy.deepcopy(fast.config))
    assert record_of(stock) is None
    assert isinstance(fast, type(stock))
    assert (type(fast).__name__, type(fast).__module__) == (
        type(stock).__name__,
        type(stock).__module__,
    )
    with pytest.raises(SecateursError):
        explain(stock)


def test_a_model_without_data_is_not_saved(tmp_path):
    with pytest.raises(CheckpointError, match="with data"):
        save(convert(tiny_model("bert"), PLAN).to("meta"), tmp_path / "m")


def test_sentence_transformers_save_what_load_reads(tmp_path):
    library = pytest.importorskip("sentence_transformers")
    tokenizers = pytest.importorskip("transformers").BertTokenizerFast
    stock = tmp_path / "stock"
    tiny_model("bert").save_pretrained(stock)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
    # The numbers of the words, not a file of them: a path is deprecated by the oldest tokenizers.
    tokenizers(vocab={word: row for row, word in enumerate(words)}).save_pretrained(stock)
    model = library.SentenceTransformer(str(stock), device="cpu")
    model[0].model = convert(model[0].model, PLAN)
    model.save(str(tmp_path / "saved"))
    (config,) = [
        p
        for p in (tmp_path / "saved").rglob("config.json")
        if "secateurs" in json.loads(p.read_text())
    ]
    ids = {"input_ids": torch.tensor([[2, 5, 6, 3]])}
    assert torch.equal(answer(load(config.parent), ids), answer(model[0].model, ids))
