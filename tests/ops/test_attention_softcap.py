"""Scores that are capped: in torch's own operations, which every kernel leaves them to in words."""

from __future__ import annotations

import pytest
import torch
from support import oracles
from support.models import opcheck, relative

from ops.attention_check import qkv, truth_of
from secateurs.errors import BackendError, OperandError
from secateurs.ops import attention, explain_choice, use_backend


@pytest.mark.parametrize("cap", [0.3, 2.0, 50.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_capped_scores_against_the_formula(cap, dtype):
    q, k, v = qkv(hq=4, hkv=2, tq=7, tk=9, dtype=dtype)
    seen = torch.rand(2, 9) < 0.7
    for named in ({}, {"causal": True}, {"key_mask": seen}, {"mask": torch.randn(7, 9).to(dtype)}):
        y = attention(4 * q, k, v, softcap=cap, **named)
        truth = truth_of(4 * q, k, v, softcap=cap, **named)
        assert oracles.relative_error(y, truth) < (1e-6 if dtype == torch.float32 else 1e-2)


def test_what_hides_a_key_hides_it_whatever_the_cap():
    """A cap of what is hidden would make it visible again."""
    q, k, v = qkv(tq=3, tk=5)
    hidden = torch.zeros(3, 5).masked_fill_(torch.arange(5) > 2, -torch.inf)
    capped = attention(q, k, v, mask=hidden, softcap=1.0)
    assert relative(capped, attention(q, k[:, :, :3], v[:, :, :3], softcap=1.0)) < 1e-6


def test_every_kernel_leaves_it_to_torch_in_words():
    q, k, v = qkv()
    choice = explain_choice(attention, q, k, v, softcap=1.0)
    assert choice.backend == "reference"
    assert choice.refusals["cpu"] == "it does not cap scores"
    with use_backend("cpu"), pytest.raises(BackendError, match="it does not cap scores"):
        attention(q, k, v, softcap=1.0)


@pytest.mark.parametrize("cap", [0.0, -1.0, float("inf"), float("nan")])
def test_a_cap_that_is_none_is_refused(cap):
    with pytest.raises(OperandError, match="a finite softcap above 0"):
        attention(*qkv(), softcap=cap)


def test_opcheck_accepts_the_operator():
    rest = (None, None, None, True, 0.25, None, None, None, None, False, 2.0)
    q, k, v = (t.requires_grad_() for t in qkv(tq=5, tk=5))
    opcheck(torch.ops.secateurs.attention, (q, k, v, *rest))
