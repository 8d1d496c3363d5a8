"""Which stock norms run on our kernel, and that they compute the same there."""

from __future__ import annotations

import pytest
import torch
from support.tiny_models import tiny_model
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from secateurs import SparsityPlan, convert, find_sites, use_backend
from secateurs.conversion.modules import Attention, Norm
from secateurs.errors import FormatError


def shaken(norm: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(torch.randn(parameter.shape))
    return norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stock", [nn.LayerNorm(24, eps=0.1), LlamaRMSNorm(24, eps=0.1)])
def test_a_norm_by_our_kernel_computes_what_the_stock_one_does(stock, dtype):
    stock = shaken(stock).to(dtype)
    rms = isinstance(stock, LlamaRMSNorm)
    norm = Norm(stock.weight, getattr(stock, "bias", None), 0.1, rms)
    assert norm.state_dict().keys() == stock.state_dict().keys()
    x = torch.randn(3, 5, 24, dtype=dtype) * 0.3
    close = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(norm(x), stock(x), **close)


def test_norms_are_replaced_where_the_kernel_is_faster():
    layer, rms = nn.LayerNorm(8, eps=0.5), LlamaRMSNorm(8, eps=0.25)
    assert Norm.of(layer, rms=False) is layer
    ours = Norm.of(layer.bfloat16(), rms=False)
    assert (ours.eps, ours.rms, ours.bias is layer.bias) == (0.5, False, True)
    ours = Norm.of(rms, rms=True)
    assert (ours.eps, ours.rms, ours.weight is rms.weight) == (0.25, True, True)


def test_other_norms_stay_as_they_are():
    rms = LlamaRMSNorm(8)
    others = (
        (rms, False),  # the family does not say what its norm is
        (nn.Identity(), True),
        (nn.LayerNorm(8, elementwise_affine=False).bfloat16(), False),
        (nn.LayerNorm((2, 4)).bfloat16(), False),
    )
    for stock, is_rms in others:
        assert Norm.of(stock, is_rms) is stock
    with use_backend("reference"):
        assert Norm.of(rms, rms=True) is rms


@pytest.mark.parametrize(
    ("kind", "dtype", "ours"),
    [
        ("llama", torch.float32, True),
        ("llama", torch.bfloat16, True),
        ("bert", torch.float32, False),
        ("bert", torch.bfloat16, True),
    ],
)
def test_converted_layers_use_it(kind, dtype, ours):
    model = tiny_model(kind).to(dtype)
    sites = find_sites(model)
    converted = convert(model, SparsityPlan({}, sites.fingerprint()))
    for layer in converted.get_submodule(sites.paths[0]):
        assert isinstance(layer.attention_norm, Norm) == ours
        assert isinstance(layer.ffn_norm, Norm) == ours


@pytest.mark.parametrize("bad", [-1, 2])
def test_a_head_map_beyond_the_heads_is_refused(bad):
    kv_of = torch.tensor([0, bad, 1], dtype=torch.int32)
    with pytest.raises(FormatError, match=rf"in 0\.\.1, got \[0, {bad}, 1\]"):
        Attention(nn.Identity(), nn.Identity(), 3, 2, 8, kv_of, True, 0.25, 0)
