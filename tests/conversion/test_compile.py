"""torch.compile of converted models: one graph, whatever the batch."""

from __future__ import annotations

import pytest
import torch
from support.models import opcheck, relative
from support.tiny_models import CAUSAL_FAMILIES, tiny_model
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from secateurs import AttentionRuleMask, HeadMask, NeuronMask, SparsityPlan, convert, ops
from secateurs.plan import BlockMask
from secateurs.plan.attention_rules import Local, Sinks, Strided, layout

PLAN = SparsityPlan(
    {
        "layers.0.heads": HeadMask(torch.tensor([True, False, True, True])),
        "layers.1.heads": HeadMask(torch.tensor([False, False, True, False])),
        "layers.1.neurons": NeuronMask(torch.arange(96) % 3 == 0),
        "layers.2.down": BlockMask(torch.eye(4, 6).bool(), (16, 16)),
    }
)
RULES = {"layers.0.attention_rules": AttentionRuleMask([Local(1), Local(0), Sinks(2), Strided(2)])}
RULED = PLAN.merge(SparsityPlan(RULES))


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("plan", [PLAN, RULED], ids=["all keys", "ruled"])
@pytest.mark.parametrize("masked", [True, False])
def test_one_graph_for_all_batch_sizes(kind, masked, plan):
    model = convert(tiny_model(kind), plan)
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=graphs)
    options = {"use_cache": False} if kind in CAUSAL_FAMILIES else {}
    made = None
    with torch.no_grad():
        for batch, length in ((3, 9), (5, 9), (2, 12), (8, 5)):
            inputs = {"input_ids": torch.randint(3, 100, (batch, length)), **options}
            if masked:
                inputs["attention_mask"] = (torch.arange(length) < length - 2).long()
                inputs["attention_mask"] = inputs["attention_mask"].expand(batch, -1).contiguous()
            got = compiled(**inputs)[0]
            assert relative(got, model(**inputs)[0]) < 1e-6
            made = made or graphs.frame_count
            assert graphs.frame_count == made, "recompiled"


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # inductor's own
def test_inductor_agrees():
    model = convert(tiny_model("bert"), PLAN)
    compiled = torch.compile(model, fullgraph=True)
    ids = torch.randint(3, 100, (3, 9))
    with torch.no_grad():
        assert relative(compiled(ids)[0], model(ids)[0]) < 1e-5


def test_patterns_are_part_of_the_graph():
    blocks = layout(Local(3) | Sinks(2), 20, 20, block=16)
    q = torch.randn(2, 3, 20, 8)
    call = lambda q: ops.attention(q, q, q, pattern=blocks)  # noqa: E731
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q), call(q))


def test_opcheck_of_attention_with_a_pattern():
    q = torch.randn(2, 3, 20, 8, requires_grad=True)
    blocks = layout([Local(3), Sinks(2), Local(0)], 20, 20, block=16)
    tensors = (blocks.indptr, blocks.indices, blocks.partial, blocks.masks)
    args = (q, q, q, None, None, None, True, 0.5, *tensors, False, None)
    opcheck(torch.ops.secateurs.attention.default, args)


@pytest.mark.parametrize("grad", [False, True])
def test_operations_are_seen_from_outside_with_and_without_gradients(grad):
    """By a mode that watches them, and by shapes alone."""
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    q = torch.randn(2, 3, 20, 8)
    with torch.set_grad_enabled(grad):
        with Watch():
            y = ops.attention(q, q, q)
        assert torch.ops.secateurs.attention.default in seen
        with FakeTensorMode() as mode:
            fake = mode.from_tensor(q)
            assert ops.attention(fake, fake, fake).shape == y.shape
        assert ops.attention(q, q, q.requires_grad_()).requires_grad == grad
