"""Which backend runs: automatic choice falls back and says why, a forced one does neither."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from secateurs.errors import BackendError, OperandError
from secateurs.ops import use_backend
from secateurs.ops._core.dispatch import Backend, Op


def refuse_negative(x):
    return "takes no negative numbers" if x < 0 else None


def make_op(*names, refuse=refuse_negative):
    def check(x):
        if x == 0:
            raise OperandError("expected a number other than 0, got 0")

    return Op("double", check, *(Backend(n, refuse, lambda x, n=n: (n, 2 * x)) for n in names))


def test_the_preferred_backend_comes_first_whatever_the_order_given():
    assert make_op("reference", "cpu", "triton").run(3) == ("triton", 6)
    assert make_op("reference", "cpu").run(3) == ("cpu", 6)


def test_automatic_choice_falls_back_and_says_why():
    op = Op(
        "double",
        lambda x: None,
        Backend("cpu", refuse_negative, lambda x: "cpu"),
        Backend("reference", lambda x: None, lambda x: "reference"),
    )
    assert op.run(-3) == "reference"
    assert op.explain(-3).backend == "reference"
    assert op.explain(-3).refusals == {"cpu": "takes no negative numbers"}
    assert op.explain(3).refusals == {"reference": "cpu comes first"}


def test_a_call_may_prefer_a_backend_that_others_do_not():
    """Where it refuses, the usual order holds; a forced backend goes before all."""
    backends = [Backend(n, refuse_negative, lambda x, n=n: n) for n in ("cuda", "triton", "cpu")]
    backends[2] = Backend("cpu", lambda x: None, lambda x: "cpu")
    prefer = {5: "triton", -5: "triton"}.get
    op = Op("double", lambda x: None, *backends, prefer=prefer)
    assert [op.run(x) for x in (3, 5, -5)] == ["cuda", "triton", "cpu"]
    assert op.explain(5).backend == "triton"
    assert op.explain(5).refusals == {"cuda": "triton comes first", "cpu": "triton comes first"}
    with use_backend("cuda"):
        assert op.run(5) == "cuda"


def test_no_backend_at_all_is_an_error_with_every_reason():
    op = make_op("cpu", "reference")
    with pytest.raises(
        BackendError, match=r"no backend runs double here \(cpu: takes no.*reference:"
    ):
        op.run(-3)
    assert op.explain(-3).backend is None


def test_forced_backend_runs_or_raises():
    op = make_op("cpu", "reference")
    with use_backend("reference"):
        assert op.run(3) == ("reference", 6)
        assert op.explain(3).refusals == {"cpu": "reference is forced"}
        with pytest.raises(BackendError, match="backend 'reference' refuses double: takes no neg"):
            op.run(-3)
        with use_backend("auto"):
            assert op.run(3) == ("cpu", 6)
    assert op.run(3) == ("cpu", 6)


def test_forced_backend_that_has_no_kernel():
    op = make_op("cpu")
    with use_backend("triton"), pytest.raises(BackendError, match=r"triton.*has no such kernel"):
        op.run(3)


def test_operands_are_checked_before_any_choice():
    with pytest.raises(OperandError, match="other than 0"):
        make_op("cpu").run(0)
    with pytest.raises(OperandError, match="other than 0"):
        make_op("cpu").explain(0)


@pytest.mark.parametrize("name", ["", "gpu", "CPU"])
def test_unknown_backend_is_refused(name):
    with (
        pytest.raises(BackendError, match="auto, cuda, triton, cpu, reference, got"),
        use_backend(name),
    ):
        pass


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


CALL = "import torch; from secateurs import ops; x = torch.randn(1, 1, 2, 8); "


def test_environment_forces_a_backend():
    code = CALL + "print(ops.explain_choice(ops.attention, x, x, x).backend)"
    assert run(code, SECATEURS_BACKEND="reference").stdout.strip() == "reference"
    assert run(code, SECATEURS_BACKEND="").stdout.strip() == "cpu"


def test_environment_with_an_unknown_backend_is_refused_at_first_use():
    result = run(CALL + "print('imported'); ops.attention(x, x, x)", SECATEURS_BACKEND="gpu")
    assert result.returncode
    assert result.stdout.strip() == "imported"
    assert "BackendError: expected a backend among auto, cuda" in result.stderr


def test_choice_holds_in_compiled_code():
    from secateurs.ops import attention

    q = torch.randn(1, 1, 2, 8)
    compiled = torch.compile(lambda q: attention(q, q, q), fullgraph=True, backend="aot_eager")
    compiled(q)
    with use_backend("triton"), pytest.raises(BackendError, match="backend 'triton' refuses"):
        compiled(q)
