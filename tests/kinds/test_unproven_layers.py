"""Kind: replacing what was not proven stock.

Whatever a layer does beyond what its family's record says is read from the model or refused; and
every converted layer is compared with the stock one it replaces.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable

import pytest
import torch
from support.models import answer, relative
from support.tiny_models import tiny_model
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, BertConfig, BertModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.bert.modeling_bert import BertLayer, BertOutput

from secateurs import HeadMask, NeuronMask, SparsityPlan, apply, convert, explain, find_sites
from secateurs.conversion.inherited import record_of
from secateurs.errors import FamilyError

PLAN = SparsityPlan(
    {
        "layers.0.heads": HeadMask(torch.tensor([False, True, True, True])),
        "layers.1.heads": HeadMask(torch.tensor([False, False, True, False])),
        "layers.0.neurons": NeuronMask(torch.arange(96) % 3 == 0),
    }
)


class LoraLinear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 0.1 * x[..., : self.out_features]


class Adapter(BertOutput):
    def forward(self, hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states, input_tensor) * 1.1


class OwnLayer(BertLayer):
    def forward(self, *args: object, **named: object) -> torch.Tensor:
        return super().forward(*args, **named) + 1.0


def remade(old: nn.Module, kind: type[nn.Module], *args: object) -> nn.Module:
    new = kind(*args)
    new.load_state_dict(old.state_dict())
    return new.eval()


def lora(model: nn.Module) -> None:
    attention = model.encoder.layer[0].attention.self
    attention.query = remade(attention.query, LoraLinear, 64, 64)


def adapter(model: nn.Module) -> None:
    layer = model.encoder.layer[1]
    layer.output = remade(layer.output, Adapter, model.config)


def own_layer(model: nn.Module) -> None:
    model.encoder.layer[2] = remade(model.encoder.layer[2], OwnLayer, model.config)


def hooked(model: nn.Module) -> None:
    dense = model.encoder.layer[1].output.dense
    dense.register_forward_hook(lambda module, args, out: out * 1.5)


def hooked_before(model: nn.Module) -> None:
    model.encoder.layer[1].register_forward_pre_hook(lambda module, args: (args[0] * 2, *args[1:]))


def hooked_backward(model: nn.Module) -> None:
    dense = model.encoder.layer[1].output.dense
    dense.register_full_backward_hook(lambda module, inputs, outputs: None)


def patched(model: nn.Module) -> None:
    layer = model.encoder.layer[0]
    layer.forward = types.MethodType(lambda self, x, *_, **__: x, layer)


def extra_parameter(model: nn.Module) -> None:
    model.encoder.layer[0].scale = nn.Parameter(torch.ones(64))


def extra_buffer(model: nn.Module) -> None:
    model.encoder.layer[0].register_buffer("seen", torch.zeros(1))


def extra_module(model: nn.Module) -> None:
    model.encoder.layer[0].attention.gate = nn.Linear(64, 64)


def stale_count(model: nn.Module) -> None:
    """The Llama runs as many layers as its config says, not as many as it has."""
    model.config.num_hidden_layers = 2


def causal_without_a_mask(model: nn.Module) -> None:
    """Stock attention asks the module only where there is no mask: no one answer is right."""
    model.encoder.layer[1].attention.self.is_causal = True


NOT_STOCK: dict[str, tuple[str, Callable[[nn.Module], None], str]] = {
    "a subclass of a linear": ("bert", lora, "expected a torch Linear as query"),
    "an adapter": ("bert", adapter, "its class Adapter"),
    "a layer of one's own": ("bert", own_layer, "its class OwnLayer"),
    "a forward hook": ("bert", hooked, r"encoder\.layer\.1\.output\.dense.*has the hook hooked"),
    "a hook before": ("bert", hooked_before, r"layer\.1, but it has the hook"),
    "a backward hook": ("bert", hooked_backward, "has the hook"),
    "a patched forward": ("bert", patched, r"layer\.0, but its forward was replaced"),
    "a parameter more": ("bert", extra_parameter, "layer.0 also has scale"),
    "a buffer more": ("bert", extra_buffer, "layer.0 also has seen"),
    "a module more": ("bert", extra_module, r"also has attention\.gate\.weight"),
    "causal only now and then": ("bert", causal_without_a_mask, r"layer\.1 does not compute"),
    "layers never called": ("llama", stale_count, r"layers\.2 is never called"),
}


@pytest.mark.parametrize("case", NOT_STOCK)
def test_what_is_not_stock_is_refused_and_the_model_left_alone(case):
    kind, change, told = NOT_STOCK[case]
    model = tiny_model(kind)
    change(model)
    model.train()
    state, layers = copy.deepcopy(model.state_dict()), list(model.modules())
    attention, attributes = model.config._attn_implementation, set(vars(model))
    for inplace in (False, True):
        with pytest.raises(FamilyError, match=told):
            convert(model, PLAN, inplace=inplace)
    assert list(model.modules()) == layers
    assert all(module.training for module in layers)
    assert model.config._attn_implementation == attention
    assert record_of(model) is None
    assert vars(model).keys() == attributes
    assert not model._forward_pre_hooks
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def another_activation(model: nn.Module) -> None:
    for layer in model.encoder.layer:
        layer.intermediate.intermediate_act_fn = nn.ReLU()


def torchs_gelu(model: nn.Module) -> None:
    for layer in model.encoder.layer:
        layer.intermediate.intermediate_act_fn = nn.GELU(approximate="tanh")


def an_activation_without_a_kernel(model: nn.Module) -> None:
    model.encoder.layer[1].intermediate.intermediate_act_fn = nn.ELU(alpha=0.5)


def another_scale(model: nn.Module) -> None:
    model.encoder.layer[1].attention.self.scaling = 0.9


def another_eps(model: nn.Module) -> None:
    model.encoder.layer[1].output.LayerNorm.eps = 0.5


def no_biases(model: nn.Module) -> None:
    model.encoder.layer[0].attention.self.key.bias = None
    model.encoder.layer[1].output.dense.bias = None


BEHAVIOURS = [
    another_activation,
    torchs_gelu,
    an_activation_without_a_kernel,
    another_scale,
    another_eps,
    no_biases,
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", BEHAVIOURS, ids=lambda f: f.__name__.replace("_", " "))
def test_behaviour_is_read_from_the_model(batch, change, dtype):
    model, stock = (tiny_model("bert", hidden_act="silu") for _ in range(2))
    change(model)
    want = answer(apply(model, PLAN), batch)
    assert relative(answer(apply(stock, PLAN), batch), want) > 1e-3
    got = answer(convert(model.to(dtype), PLAN), batch)
    assert relative(got.float(), want) < (1e-5 if dtype == torch.float32 else 5e-2)


def test_recorded_hidden_states_survive_a_conversion(batch):
    """transformers installs its hooks when states are first asked for, and only once."""
    model = tiny_model("bert")
    model(**batch, output_hidden_states=True)
    fast = convert(model, PLAN)
    want = apply(model, PLAN)(**batch, output_hidden_states=True).hidden_states
    for _ in range(2):
        got = fast(**batch, output_hidden_states=True).hidden_states
        assert len(got) == len(want) == 4
        keep = batch["attention_mask"].bool()
        for a, b in zip(got, want, strict=True):
            assert relative(a[keep], b[keep]) < 1e-5


def test_a_class_patched_at_run_time_is_refused_by_the_proof(monkeypatch):
    stock = BertLayer.feed_forward_chunk
    monkeypatch.setattr(BertLayer, "feed_forward_chunk", lambda self, x: stock(self, x) * 1.01)
    with pytest.raises(FamilyError, match=r"converted encoder\.layer\.0 does not compute"):
        convert(tiny_model("bert"), SparsityPlan())


def test_an_attention_of_ones_own_is_refused_and_its_stock_names_are_not():
    def doubled(module, query, key, value, attention_mask, **options):
        out, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return 2 * out, weights

    AttentionInterface.register("doubled", doubled)
    AttentionMaskInterface.register("doubled", sdpa_mask)
    for name in ("eager", "sdpa", "secateurs"):
        model = tiny_model("llama")
        convert(model, SparsityPlan())  # registers our attention
        model.set_attn_implementation(name)
        convert(model, SparsityPlan())
        assert model.config._attn_implementation == name
    model.set_attn_implementation("doubled")
    with pytest.raises(FamilyError, match=r"layers\.0 does not compute"):
        convert(model, SparsityPlan())
    assert model.config._attn_implementation == "doubled"


@pytest.mark.parametrize("run", ["padded", "with a cache"])
def test_the_proof_sees_what_only_some_calls_show(monkeypatch, run):
    """The converted layer is broken here, so that only calls of one kind go wrong."""
    from secateurs.conversion.modules import Attention

    computed = Attention.forward

    def broken(self, x, residual, mask, rotary, cache, *rest):
        if run == "padded":
            return computed(self, x, residual, None, rotary, cache, *rest)
        return computed(self, x, residual, mask, rotary, None, *rest)

    monkeypatch.setattr(Attention, "forward", broken)
    with pytest.raises(FamilyError, match=f"in the run '{run}"):
        convert(tiny_model("llama"), SparsityPlan())


def test_the_proof_sees_the_whole_layer_and_its_parts(monkeypatch):
    from secateurs.conversion.modules import FeedForward
    from secateurs.conversion.modules.prepared_layer import PreparedLayer

    model = tiny_model("bert", num_attention_heads=2)
    whole, part = PreparedLayer.__call__, FeedForward.forward
    with monkeypatch.context() as patch:
        patch.setattr(PreparedLayer, "__call__", lambda self, x, mask: whole(self, x, None))
        with pytest.raises(FamilyError, match="in the run 'padded'"):
            convert(model, SparsityPlan())
    monkeypatch.setattr(FeedForward, "forward", lambda self, x, residual: part(self, x, 2 * x))
    with pytest.raises(FamilyError, match="in the run 'padded with gradients'"):
        convert(model, SparsityPlan())


def test_the_proof_can_be_seen(model):
    fast = convert(model, PLAN)
    first = explain(fast)[0]
    assert (first.site, first.action) == ("layers", "proven")
    assert "plain" in first.reason
    assert "with gradients" in first.reason


def test_a_model_that_cannot_run_is_refused_in_a_sentence():
    model = BertModel(BertConfig(vocab_size=9, hidden_size=64, num_attention_heads=4))
    model.embeddings.word_embeddings = nn.Embedding(9, 32)
    with pytest.raises(FamilyError, match="fails with RuntimeError"):
        convert(model, SparsityPlan())


def test_sites_name_what_holds_the_linears_of_a_subclassed_attention():
    """Own classes around stock layers are fine: only layers are replaced."""

    class Own(BertModel):
        pass

    model = Own(BertConfig(hidden_size=64, num_attention_heads=4, intermediate_size=96))
    assert find_sites(model).paths == ("encoder.layer",)
    convert(model, SparsityPlan())
