"""Someone is recording: tracers, transforms, modes and exporters see every operation, write down no
answer that only one batch gives, and count what is computed."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from support.models import relative
from support.tiny_models import CAUSAL_FAMILIES, tiny_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from secateurs import (
    AttentionRuleMask,
    BlockMask,
    HeadMask,
    NeuronMask,
    SparsityPlan,
    convert,
    ops,
)
from secateurs.errors import BackendError
from secateurs.formats import BlockSparseWeight, LibraryWeight, VectorWeight
from secateurs.ops._core.recording import plain, recording
from secateurs.plan.attention_rules import Local, Sinks, layout

PLAN = SparsityPlan(
    {
        "layers.0.heads": HeadMask(torch.tensor([True, False, True, True])),
        "layers.1.heads": HeadMask(torch.tensor([False, False, True, False])),
        "layers.1.neurons": NeuronMask(torch.arange(96) % 3 == 0),
        "layers.2.down": BlockMask(torch.eye(4, 6).bool(), (16, 16)),
    }
)
IDS = torch.randint(3, 100, (3, 9), generator=torch.Generator().manual_seed(1))
WHOLE = torch.ones_like(IDS)
PADDED = WHOLE.clone()
PADDED[0, 5:] = 0
PADDED[2, 7:] = 0


class Positional(nn.Module):
    """A converted model as tracers want it: tensors in, one tensor out."""

    def __init__(self, kind: str, plan: SparsityPlan = PLAN) -> None:
        super().__init__()
        self.model = convert(tiny_model(kind), plan)
        self.options = {"use_cache": False} if kind in CAUSAL_FAMILIES else {}

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=ids, attention_mask=mask, **self.options)[0]


RULED = SparsityPlan({"layers.0.attention_rules": AttentionRuleMask([Local(1), Sinks(2)] * 2)})


@pytest.fixture(params=["bert", "llama", "bert under rules", "llama under rules"])
def model(request):
    kind, *ruled = request.param.split(" under ")
    with torch.no_grad():
        yield Positional(kind, PLAN.merge(RULED) if ruled else PLAN).eval()


def trace(model, *batch):
    return torch.jit.trace(model, batch, check_trace=False)


def export(strict):
    return lambda model, *batch: torch.export.export(model, batch, strict=strict).module()


def graph(mode):
    return lambda model, *batch: make_fx(model, tracing_mode=mode, _allow_non_fake_inputs=True)(
        *batch
    )


def vmapped(model, *_):
    return lambda *batch: torch.vmap(model)(*(torch.stack([x, x]) for x in batch))[1]


def compiled_vmap(model, *_):
    torch._dynamo.reset()
    compiled = torch.compile(torch.vmap(model), backend="aot_eager")
    return lambda *batch: compiled(*(torch.stack([x, x]) for x in batch))[1]


class Operations(TorchDispatchMode):
    """Passes everything on."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    """Passes everything on."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def watched(model, *_):
    def run(*batch):
        with Operations(), Functions(), FlopCounterMode(display=False):
            return model(*batch)

    return run


RECORDERS = {
    "jit.trace": trace,
    "export": export(strict=False),
    "strict export": export(strict=True),
    "make_fx": graph("real"),
    "make_fx of fake tensors": graph("fake"),
    "make_fx of symbols": graph("symbolic"),
    "vmap": vmapped,
    "compiled vmap": compiled_vmap,
    "modes": watched,
}


@pytest.mark.filterwarnings("ignore")  # what transformers and tracers warn of is theirs
@pytest.mark.parametrize("seen", [WHOLE, PADDED], ids=["seen whole", "seen padded"])
@pytest.mark.parametrize("recorder", RECORDERS)
def test_what_was_recorded_answers_for_every_batch(model, recorder, seen):
    recorded = RECORDERS[recorder](model, IDS, seen)
    for mask in (WHOLE, PADDED):
        real = mask.bool()
        assert relative(recorded(IDS, mask)[real], model(IDS, mask)[real]) < 1e-5


@pytest.mark.filterwarnings("ignore")
def test_a_trace_answers_for_other_lengths_and_needs_no_operation_of_ours(model):
    traced = trace(model, IDS, PADDED)
    shorter, longer = (IDS[:2, :6], PADDED[:2, :6]), (IDS.repeat(1, 4), PADDED.repeat(1, 4))
    for ids, mask in (shorter, longer):
        assert relative(traced(ids, mask)[mask.bool()], model(ids, mask)[mask.bool()]) < 1e-5
    assert "secateurs::" not in str(traced.inlined_graph)


@pytest.mark.parametrize("mode", ["a mode", "tensors alone"])
def test_fake_tensors_stay_fake(model, mode):
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    ids, mask = fakes.from_tensor(IDS), fakes.from_tensor(PADDED)
    with ExitStack() as stack:
        if mode == "a mode":
            stack.enter_context(fakes)
        y = model(ids, mask)
    assert isinstance(y, FakeTensor)
    assert y.shape == model(IDS, PADDED).shape


@pytest.mark.filterwarnings("ignore:.torch.jit.script")  # torch's own
@pytest.mark.parametrize("how", ["jvp", "dual numbers"])
def test_forward_mode_is_the_derivative(how):
    """Against the stock model, in float64, without gradients being recorded."""
    stock = tiny_model("bert").double()
    ours = convert(stock, SparsityPlan()).double()
    x = stock.get_input_embeddings()(IDS).detach()
    direction = torch.randn_like(x)

    def tangent(model):
        call = lambda x: model(inputs_embeds=x, attention_mask=PADDED)[0]  # noqa: E731
        if how == "jvp":
            return torch.func.jvp(call, (x,), (direction,))[1]
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(call(forward_ad.make_dual(x, direction))).tangent

    with torch.no_grad():
        stock.set_attn_implementation("eager")
        got, want = tangent(ours), tangent(stock)
    assert relative(got[PADDED.bool()], want[PADDED.bool()]) < 1e-9


@pytest.mark.filterwarnings("ignore")
def test_a_forced_kernel_is_not_traded_for_torch_operations(model):
    refusal = r"^backend 'cpu' refuses .*export_dense"
    with ops.use_backend("cpu"), pytest.raises(BackendError, match=refusal):
        trace(model, IDS, WHOLE)


def in_a_trace(call):
    return torch.jit.trace(lambda x: (call(), x + 1)[1], torch.ones(1), check_trace=False)


def in_vmap(call):
    torch.vmap(lambda x: (call(), x)[1])(torch.ones(2))


def in_mode(mode):
    def run(call):
        with mode():
            call()

    return run


WATCHERS = {
    "a trace": in_a_trace,
    "vmap": in_vmap,
    "dispatch mode": in_mode(Operations),
    "function mode": in_mode(Functions),
    "fake mode": in_mode(FakeTensorMode),
    "dual numbers": in_mode(forward_ad.dual_level),
    "make_fx": lambda call: make_fx(lambda x: (call(), x + 1)[1])(torch.ones(1)),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.trace")
@pytest.mark.parametrize("watcher", WATCHERS)
def test_the_predicate_sees(watcher):
    seen = []
    assert not recording()
    WATCHERS[watcher](lambda: seen.append(recording()))
    assert seen
    assert all(seen)
    assert not recording()


def test_no_gradients_is_nobody_recording():
    with torch.inference_mode(), torch.autocast("cpu"):
        assert not recording()
    assert plain(None)
    assert plain(torch.ones(1))
    assert plain(nn.Parameter(torch.ones(1)))
    assert not plain(FakeTensorMode().from_tensor(torch.ones(1)))


@pytest.mark.parametrize("grad", [False, True])
def test_an_unpruned_model_counts_what_stock_counts(grad):
    for kind in ("bert", "llama", "vit"):
        stock = tiny_model(kind)
        stock.set_attn_implementation("eager")
        batch = torch.ones(2, 3, 24, 24) if kind == "vit" else IDS
        with torch.set_grad_enabled(grad):
            assert flops(convert(stock, SparsityPlan()), batch) == flops(stock, batch)


def flops(call, *args):
    with FlopCounterMode(display=False) as counter:
        call(*args)
    return counter.get_total_flops()


def test_every_operation_has_a_formula():
    ours = {name for name in torch.ops.secateurs._dir if not name.startswith("_")}
    names = {"add_norm", "attention", "block_sparse_linear", "encoder_layer", "pattern_linear"}
    assert names <= ours | names
    assert all(getattr(torch.ops.secateurs, name) in flop_registry for name in names | ours)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_formulas_count_what_is_stored(dtype):
    dense, x = torch.randn(64, 96).to(dtype), torch.randn(5, 96).to(dtype)
    keep = torch.tensor([[True, False, True], [False, True, False]])
    blocks = BlockSparseWeight.pack(dense, keep)
    assert flops(ops.block_sparse_linear, x, blocks) == 2 * 5 * 3 * 32 * 32
    panels = BlockSparseWeight.pack_dense(dense[:37, :95])
    assert flops(ops.block_sparse_linear, x[:, :95], panels) == 2 * 5 * 37 * 95
    vectors = VectorWeight.pack(dense, (torch.arange(96) % 3 == 0).expand(64, 96), 32)
    assert flops(ops.pattern_linear, x, vectors) == 2 * 5 * 64 * 32
    two_four = LibraryWeight.pack_two_four(dense, (torch.arange(96) % 4 < 2).expand(64, 96))
    assert flops(ops.pattern_linear, x, two_four) == 2 * 5 * 64 * 48


def test_attention_counts_its_heads_and_the_blocks_of_its_pattern():
    q, k = torch.randn(2, 3, 40, 8), torch.randn(2, 3, 40, 8)
    assert flops(ops.attention, q, k, k) == 4 * 2 * 3 * 40 * 40 * 8
    blocks = layout(Local(0), 64, 64, block=16)  # four blocks on the diagonal, for all heads
    q, k = torch.randn(2, 3, 64, 8), torch.randn(2, 3, 64, 8)
    call = lambda: ops.attention(q, k, k, pattern=blocks)  # noqa: E731
    assert flops(call) == 4 * 2 * 3 * 4 * 16 * 16 * 8
