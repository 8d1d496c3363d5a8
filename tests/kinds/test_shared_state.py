"""What a process shares: choices that hold in every thread, tensors kept between calls, memory that
runs out inside a parallel region, and the layout in which a weight is packed."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from secateurs import BlockSparseWeight, ops
from secateurs.conversion.modules import PackedLinear
from secateurs.errors import BackendError
from secateurs.formats import LibraryWeight, VectorWeight
from secateurs.ops import use_backend
from secateurs.ops._backends import cpu
from secateurs.ops._core.dispatch import forced_backend
from secateurs.ops.attention.cpu import key_value_heads
from secateurs.plan.attention_rules import Local, layout

CHOICES = {
    "backend": (use_backend, forced_backend, ("reference", "cpu")),
    "instruction set": (cpu.use_isa, cpu.isa, (cpu.isas()[-1], cpu.isas()[0])),
}


def in_a_thread(call):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


@pytest.mark.parametrize("choice", CHOICES)
def test_a_choice_holds_in_threads_started_inside(choice):
    use, held, names = CHOICES[choice]
    before = held()
    for name in names:
        with use(name):
            assert in_a_thread(held) == name
            assert in_a_thread(lambda: in_a_thread(held)) == name
    assert in_a_thread(held) == held() == before


@pytest.mark.parametrize("choice", CHOICES)
def test_a_choice_holds_in_threads_started_before(choice):
    use, held, names = CHOICES[choice]
    with ThreadPoolExecutor(1) as pool:
        before = pool.submit(held).result()
        for name in names:
            with use(name):
                assert pool.submit(held).result() == name
        assert pool.submit(held).result() == before


@pytest.mark.parametrize("choice", CHOICES)
def test_two_threads_choose_differently(choice):
    """Each keeps its own choice, whatever the other opens and closes meanwhile."""
    use, held, names = CHOICES[choice]
    together = threading.Barrier(2, timeout=60)

    def work(name):
        seen = []
        for _ in range(20):
            together.wait()
            with use(name):
                together.wait()
                seen.append(held())
        return seen

    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(work, name) for name in names]
        for name, answer in zip(names, answers, strict=True):
            assert set(answer.result()) == {name}


@pytest.mark.parametrize("names", [("cpu", "reference"), ("reference", "reference")])
def test_blocks_that_close_in_another_order(names):
    first, second = map(use_backend, names)
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as two:
        one.submit(first.__enter__).result()
        two.submit(second.__enter__).result()
        assert forced_backend() == "reference"
        one.submit(first.__exit__, None, None, None).result()
        assert forced_backend() == "reference"
        two.submit(second.__exit__, None, None, None).result()
    assert forced_backend() == "auto"


def test_a_choice_ends_with_its_block_in_a_copied_context():
    with use_backend("cpu"):
        copied = copy_context()
        assert copied.run(forced_backend) == "cpu"
    assert copied.run(forced_backend) == "auto"
    with use_backend("reference"):
        assert copied.run(forced_backend) == "reference"


def test_a_forced_choice_never_falls_back_in_a_thread():
    double = torch.randn(2, 8, dtype=torch.float64)
    norm = lambda: ops.add_norm(double, None, torch.ones(8, dtype=torch.float64))  # noqa: E731
    with use_backend("cpu"), pytest.raises(BackendError, match="refuses add_norm"):
        in_a_thread(norm)


def test_a_choice_holds_in_the_threads_of_autograd():
    """The backward pass runs where autograd likes."""
    seen = []

    class Watch(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            seen.append(forced_backend())
            return grad

    with use_backend("reference"):
        y = Watch.apply(torch.ones(2, requires_grad=True)).sum()
        in_a_thread(y.backward)
    assert seen == ["reference"]


MODES = {
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
    "fake tensors": FakeTensorMode,
    "another default device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("mode", MODES)
def test_what_is_kept_serves_those_who_come_later(mode):
    length = 40 + list(MODES).index(mode)  # of a layout that nobody made before
    key_value_heads.cache_clear()
    with MODES[mode]():
        blocks = layout(Local(3), length, length, block=16)
        heads = key_value_heads(6, 3)
    for tensor in (blocks.indptr, blocks.indices, blocks.partial, blocks.masks, heads):
        assert type(tensor) is torch.Tensor
        assert not tensor.is_inference()
        assert tensor.device.type == "cpu"
    q = torch.randn(1, 6, length, 8, requires_grad=True)
    ops.attention(q, q[:, :3], q[:, 3:], pattern=blocks).sum().backward()
    assert torch.isfinite(q.grad).all()


# Operands of two threads whose working memory is what does not fit: of the order of 100 MB where
# the result is small.
BEYOND_MEMORY = {
    "add_norm": """
        x, w = torch.ones(2, 1 << 24).bfloat16(), torch.ones(1 << 24).bfloat16()
        call = lambda: ops.add_norm(x, None, w)
        small = lambda: ops.add_norm(x[:, :32768], None, w[:32768])
    """,
    "attention": """
        q, k = torch.ones(1, 2, 64, 1), torch.ones(1, 2, 1 << 24, 1)
        call = lambda: ops.attention(q, k, k)
        small = lambda: ops.attention(q, k[:, :, :9999], k[:, :, :9999])
    """,
}
OUT_OF_MEMORY = """
    import re, resource, torch
    from secateurs import ops
    torch.set_num_threads(2)
    torch.set_grad_enabled(False)
    {operands}
    small()  # starts the threads
    held = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10
    resource.setrlimit(resource.RLIMIT_AS, (held + ({more} << 20), resource.RLIM_INFINITY))
    try:
        call()
    except MemoryError:
        small()  # and the process goes on
        print("told")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
@pytest.mark.parametrize("op", BEYOND_MEMORY)
def test_memory_that_runs_out_in_a_thread_is_an_exception(op):
    operands = dedent(BEYOND_MEMORY[op])
    script = dedent(OUT_OF_MEMORY).format(operands=operands, more=80)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.stdout == "told\n", (run.returncode, run.stderr)


CSRC = Path(__file__).parents[2] / "csrc"


@pytest.mark.skipif(not CSRC.exists(), reason="the C++ sources are not beside these tests")
def test_one_place_opens_parallel_regions_of_kernels():
    """The one that hands on what a thread throws."""
    opens = {
        path.name: len(re.findall(r"#\s*pragma omp parallel", path.read_text()))
        for path in (CSRC / "cpu").rglob("*")
        if path.suffix in (".h", ".cpp")
    }
    assert {name for name, count in opens.items() if count} == {"share.h"}
    assert opens["share.h"] == 1


def weights(dtype):
    """A packed weight of every format that a kernel for CPUs reads, as their `pack` returns it."""
    dense = torch.randn(64, 64).to(dtype)
    keep = torch.rand(2, 2) < 0.9
    every = torch.ones(64, 64).bool()
    library = torch.rand(8, 16).argsort(1).lt(8).view(8, 4, 4)
    return {
        "blocks": (ops.block_sparse_linear, BlockSparseWeight.pack(dense, keep)),
        "panels": (ops.block_sparse_linear, BlockSparseWeight.pack_dense(dense[:33, :7])),
        "vectors": (ops.pattern_linear, VectorWeight.pack(dense, every, 32)),
        "library": (
            ops.pattern_linear,
            LibraryWeight.pack(dense, torch.zeros(16, 16), library.transpose(1, 2)),
        ),
        "2:4": (
            ops.pattern_linear,
            LibraryWeight.pack_two_four(dense, (torch.arange(64) % 4 < 2).expand(64, 64)),
        ),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", weights(torch.float32))
def test_packing_gives_what_kernels_read(form, dtype):
    torch.manual_seed(0)
    op, weight = weights(dtype)[form]
    weight.validate()
    x = torch.randn(4, weight.shape[1]).to(dtype)
    assert ops.explain_choice(op, x, weight).backend == "cpu"
    with use_backend("reference"):
        want = op(x, weight)
    assert torch.allclose(op(x, weight), want, atol=0.02 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("block", [(32, 32), (32, 64), (32, 2), None])
def test_a_weight_unpaired_is_the_one_that_files_hold(block):
    dense = torch.randn(64, 64).bfloat16()[:, : 64 if block else 7]
    pack = BlockSparseWeight.pack if block else BlockSparseWeight.pack_dense
    rest = (None, block) if block else ()
    packed, as_float = pack(dense, *rest), pack(dense.float(), *rest)
    assert packed.in_pairs
    assert not as_float.in_pairs
    plain = packed.unpaired().validate()
    assert torch.equal(plain.values.float(), as_float.values)
    assert plain.values.is_contiguous()
    assert torch.equal(plain.as_read().values, packed.values)
    assert packed.as_read() is packed


def test_a_module_of_a_public_pack_runs_our_kernel():
    weight = BlockSparseWeight.pack(torch.randn(64, 64).bfloat16())
    assert PackedLinear(weight, None).refusal() is None
